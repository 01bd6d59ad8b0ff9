"""`oncesign authorize`: what a set-code transaction needs of the accounts whose code it sets (EIP-7702)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.keys import Form, KeyCount, KeyForm, KeyPath, OpenToo, PasswordFile
from jobs.loading import load_settings
from jobs.output import emit
from pipeline.custody.key_file import PATH as MNEMONIC_PATH


def authorize(  # noqa: PLR0913, PLR0917 - the options of a command are its arguments
    files: Annotated[list[Path], typer.Argument(help="Files with the private keys of these accounts.")],
    address: Annotated[str, typer.Option(help="The contract whose code they get; 0x00…00 takes code away.")],
    nonce: Annotated[int, typer.Option(min=0, help="Of each account when the transaction is executed.")],
    form: KeyForm = Form.KEYSTORE,
    password_file: PasswordFile = None,
    path: KeyPath = MNEMONIC_PATH,
    count: KeyCount = 1,
    chain_id: Annotated[int | None, typer.Option(min=0, help="0 = every chain; default: that of --source.")] = None,
    force: OpenToo = False,
    source: Annotated[str, typer.Option(help="The source that the row is for; default: the first one.")] = "",
) -> None:
    """Sign authorizations of accounts that are not of the pool, as JSON for a row's `authorization_list`."""
    from jobs.key_import import read
    from pipeline.ethereum.authorization import sign_authorization

    if chain_id is None:
        settings = load_settings()
        chain_id = settings.source(source or settings.sources[0].name).chain_id
    keys = read(form, files, password_file, path, count, force=force)
    try:
        emit([sign_authorization(bytes(key.reveal()), chain_id, address, nonce) for key in keys])
    finally:
        for key in keys:
            key.wipe()

"""`oncesign authorize`: what a set-code transaction needs of the accounts whose code it sets (EIP-7702)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.keys import Form
from jobs.loading import load_settings
from jobs.output import emit
from pipeline.errors import UsageError


def authorize(  # noqa: PLR0913, PLR0917 - the options of a command are its arguments
    files: Annotated[list[Path], typer.Argument(help="Files with the private keys of these accounts.")],
    address: Annotated[str, typer.Option(help="The contract whose code they get; 0x00…00 takes code away.")],
    nonce: Annotated[int, typer.Option(min=0, help="Of each account when the transaction is executed.")],
    form: Annotated[Form, typer.Option("--format", help="What the files are: keystore V3, or hex.")] = Form.KEYSTORE,
    password_file: Annotated[Path | None, typer.Option(help="A file with the one password of all keystores.")] = None,
    chain_id: Annotated[int | None, typer.Option(min=0, help="0 = every chain; default: that of --source.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Take files that others could read or change.")] = False,
    source: Annotated[str, typer.Option(help="The source that the row is for; default: the first one.")] = "",
) -> None:
    """Sign authorizations of accounts that are not of the pool, as JSON for a row's `authorization_list`."""
    from pipeline.custody.key_file import KeyFiles
    from pipeline.ethereum.authorization import sign_authorization

    if chain_id is None:
        settings = load_settings()
        chain_id = settings.source(source or settings.sources[0].name).chain_id
    found = KeyFiles(files, open_too=force)
    if form is Form.HEX:
        keys = found.hex()
    elif form is Form.KEYSTORE and password_file is not None:
        keys = found.keystores(password_file)
    else:
        raise UsageError("keystores need --password-file.", hint="Or say what the files are: --format hex")
    signed = [sign_authorization(bytes(key.reveal()), chain_id, address, nonce) for key in keys]
    for key in keys:
        key.wipe()
    emit(signed)

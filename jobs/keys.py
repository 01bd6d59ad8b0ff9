"""`oncesign keys`: a key from its coming to its end."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from pydantic import SecretStr

from jobs.loading import load_settings
from jobs.output import Json, emit, emit_list, moment, say
from pipeline.custody.key_file import PATH as MNEMONIC_PATH
from pipeline.errors import RuntimeFault, UsageError
from pipeline.local.resolve import resolve
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.assignment.records import KeyRecord
    from pipeline.custody.kek_ring import KekRing

app = typer.Typer(no_args_is_help=True, help="The pool of keys, from their coming to their end.")

Source = Annotated[str, typer.Option(help="The source whose chain the keys are for; default: the first one.")]
Store = Annotated[str, typer.Option(help="A key store that keeps the KEK wrapped: aws-kms; default: none.")]
StoreKey = Annotated[str, typer.Option("--key", help="The key of the store that wraps it, as the store names it.")]
Addresses = Annotated[list[str], typer.Argument(metavar="ADDRESS...", help="One or more addresses.")]
TITLES = ("address", "chain_id", "state", "next_nonce", "since", "uses", "holder", "set_apart")

CHECKED = ("address", "next_nonce", "latest", "pending", "verdict", "detail")
LOOK_S: Final = 0.25


class Form(StrEnum):
    """What a file with private keys is."""

    KEYSTORE = "keystore"
    HEX = "hex"
    MNEMONIC = "mnemonic"


KeyForm = Annotated[
    Form, typer.Option("--format", help="What they are: keystore V3, hex (a key per line), or BIP-39 words.")
]
PasswordFile = Annotated[
    Path | None, typer.Option(help="A file with the one password of all keystores, or the BIP-39 passphrase.")
]
KeyPath = Annotated[str, typer.Option(help="Of a mnemonic: keys are derived at PATH/0, PATH/1 …")]
KeyCount = Annotated[int, typer.Option(min=1, max=10_000, help="Of a mnemonic: how many keys.")]
OpenToo = Annotated[bool, typer.Option("--force", help="Take files that others could read or change.")]


@app.command()
def create(
    count: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 1,
    source: Source = "",
    json: Json = False,
) -> None:
    """Make new private keys, seal them, and put them into the pool."""
    settings = resolve(load_settings())
    made = asyncio.run(create_keys(settings, count, source))
    _report("created", made, as_json=json)


@app.command("import")
def import_(  # noqa: PLR0913, PLR0917 - the options of a command are its arguments
    files: Annotated[list[Path], typer.Argument(help="Files with private keys.")],
    form: KeyForm = Form.KEYSTORE,
    password_file: PasswordFile = None,
    path: KeyPath = MNEMONIC_PATH,
    count: KeyCount = 1,
    nonce: Annotated[int | None, typer.Option(min=0, help="The next nonce of each key; default: 0.")] = None,
    rpc: Annotated[str, typer.Option(metavar="URL", help="Ask this Ethereum node for the next nonces instead.")] = "",
    with_pending: Annotated[
        bool, typer.Option("--with-pending", help="Begin after transactions that wait in the node, too.")
    ] = False,
    force: OpenToo = False,
    source: Source = "",
    json: Json = False,
) -> None:
    """Import private keys from files: all of them or none."""
    from jobs.key_import import Intake, Start, read

    settings = resolve(load_settings())
    start = Start(nonce, SecretStr(rpc), with_pending=with_pending)
    intake = Intake(settings, _chain_id(settings, source), start)
    keys = read(form, files, password_file, path, count, force=force)
    _report("imported", asyncio.run(intake.bring_in(keys)), as_json=json)


@app.command("list")
def list_(json: Json = False) -> None:
    """List the pool, the key that has been free for longest first, with who holds the others and since when."""
    settings = resolve(load_settings())
    rows = asyncio.run(_list(settings))
    emit_list(rows, TITLES, as_json=json)
    if not rows:
        say("The pool is empty. Next: oncesign keys create --count 16")


@app.command()
def disable(addresses: Addresses, source: Source = "") -> None:
    """Lend keys no more; one that is locked now, after its release."""
    _change("disable", addresses, source)
    say(f"{_told(addresses)} disabled. Next: oncesign keys list")


@app.command()
def enable(addresses: Addresses, source: Source = "") -> None:
    """Lend keys again."""
    _change("enable", addresses, source)
    say(f"{_told(addresses)} enabled. Next: oncesign keys list")


@app.command("set-apart")
def set_apart(
    addresses: Addresses,
    undo: Annotated[bool, typer.Option("--undo", help="Lend them for all other transactions again.")] = False,
    source: Source = "",
) -> None:
    """Lend keys for blob transactions alone: nodes refuse to have those and others of one account in their pools."""
    _change("set_apart", addresses, source, apart=not undo)
    say(f"{_told(addresses)} lent for {'all others' if undo else 'blob transactions'} alone. Next: oncesign keys list")


@app.command()
def drain(
    addresses: Addresses,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait for their release.")] = 60.0,
    source: Source = "",
) -> None:
    """Disable keys, and wait until nobody holds them."""
    _change("disable", addresses, source)
    settings = resolve(load_settings())
    held = asyncio.run(_released(settings, _chain_id(settings, source), _lower(addresses), timeout_s))
    if held:
        raise RuntimeFault(
            f"{held[0]} is still held after {timeout_s:g} s.", hint="It is disabled. See: oncesign assignments"
        )
    say(f"{_told(addresses)} disabled and held by nobody. Next: oncesign keys retire ADDRESS")


@app.command()
def retire(
    addresses: Addresses,
    destroy: Annotated[
        bool,
        typer.Option("--destroy", help="Delete the private keys from etcd and Postgres; what they own is lost."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    source: Source = "",
) -> None:
    """Lend disabled keys never again, for good; their nonces stay known."""
    what = "and their private keys deleted " if destroy else ""
    question = f"{_told(addresses)} to be retired {what}for good. Go on?"
    if not yes and not (sys.stdin.isatty() and typer.confirm(question, err=True)):
        raise UsageError("nothing was retired.", hint="Answer y, or give --yes.")
    _change("retire", addresses, source, destroy=destroy)
    say(f"{_told(addresses)} retired. Next: oncesign keys list")


@app.command("make-kek")
def make_kek(
    file: Annotated[Path, typer.Argument(help="A file that does not exist yet.")], store: Store = "", key: StoreKey = ""
) -> None:
    """Make a key-encryption key, before the pool has any key; later, rotate-kek makes its own."""
    from jobs import rotation

    say(f"made KEK {rotation.make_kek(file, store, key).id.hex()} in {file}. Next: ONCESIGN_KEK_FILE={file}")


@app.command("rotate-kek")
def rotate_kek(store: Store = "", key: StoreKey = "", json: Json = False) -> None:
    """Seal every key under a new key-encryption key, while signing goes on; the same command again goes on."""
    from jobs.rotation import Rotation

    done = asyncio.run(Rotation(resolve(load_settings()), store, key).run())
    if json:
        emit(done)


@app.command()
def check(
    rpc: Annotated[
        str, typer.Option(metavar="URL", help="An Ethereum node; default: the one in ONCESIGN_BROADCAST__RPC_FILE.")
    ] = "",
    source: Source = "",
    json: Json = False,
) -> None:
    """Compare the pool's nonces with the chain's: used elsewhere, gaps, stuck nonces."""
    from jobs.key_check import compared, require_agreement

    settings = resolve(load_settings())
    found = asyncio.run(compared(settings, _chain_id(settings, source), SecretStr(rpc)))
    emit_list([dataclasses.asdict(key) for key in found], CHECKED, as_json=json)
    require_agreement(found)


@app.command()
def fill(
    address: Annotated[str, typer.Argument(help="A key that `keys check` finds a gap before.")],
    rpc: Annotated[
        str, typer.Option(metavar="URL", help="An Ethereum node; default: the one in ONCESIGN_BROADCAST__RPC_FILE.")
    ] = "",
    fee_cap: Annotated[
        int | None, typer.Option(min=1, help="Wei per gas; default: twice what the node asks now.")
    ] = None,
    source: Source = "",
    json: Json = False,
) -> None:
    """Close nonces that were never given out, by transfers of nothing to the key itself, and see them mined."""
    from jobs.key_fill import filled

    settings = resolve(load_settings())
    done = asyncio.run(filled(settings, _chain_id(settings, source), address.lower(), SecretStr(rpc), fee_cap))
    if json:
        emit(done)
    else:
        say(f"nonces {done['first_nonce']} to {done['first_nonce'] + done['count'] - 1} of {done['address']} are mined")


async def create_keys(settings: Settings, count: int, source: str = "") -> list[str]:
    """Make and import; the addresses."""
    from jobs.desk import placed_desk
    from pipeline.stages import intake

    chain_id = _chain_id(settings, source)
    if settings.pool.placed:  # the key manager has the key-encryption key there, and this process has not
        made: list[str] = await placed_desk(settings).create_keys(chain_id, count)
        return made
    keys = intake.made(chain_id, count, await pool_keks(settings))
    await import_keys(settings, keys)
    return [address for _, address, _, _ in keys]


async def pool_keks(settings: Settings) -> KekRing:
    """What opens every key of the pool, and seals new ones; the data directory's own KEK is made at first.

    A KEK of its own for some keys would mean keys that get nonces and cannot sign. Raises SecretFileError,
    StoreUnavailable.
    """
    from jobs.desk import etcd_view
    from pipeline.custody.kek_ring import KekRing
    from pipeline.custody.sealing import Kek
    from pipeline.stages.intake import load_keks

    async with etcd_view(settings) as view:
        path = settings.kek_path
        if settings.kek_file is None and not path.exists() and not view.sealed:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            Kek.create(path)
            say(f"made a key-encryption key in {path}; keep a copy of it: without it no key can be opened")
            return KekRing(path)
        return load_keks(path, view)


async def import_keys(settings: Settings, keys: list[tuple[int, str, bytes, int]]) -> None:
    """Into the pool, by its key manager."""
    from jobs.desk import key_desk

    async with key_desk(settings) as desk:
        await desk.import_keys(keys)


async def _list(settings: Settings) -> list[dict[str, Any]]:
    from jobs.desk import etcd_view

    async with etcd_view(settings) as view:
        return [row_of(key) for key in view.oldest_first()]


def row_of(key: KeyRecord) -> dict[str, Any]:
    """A key as the list shows it."""
    holder = key.holder
    return {
        "address": key.address,
        "chain_id": key.chain_id,
        "state": key.state.value,
        "next_nonce": key.next_nonce,
        "since": moment(key.since_unix_ms),
        "uses": key.uses,
        "holder": f"{holder.worker} on {holder.node} for {holder.stream} batch {holder.seq}" if holder else None,
        "set_apart": "blobs" if key.set_apart else None,
    }


async def _released(settings: Settings, chain_id: int, addresses: list[str], timeout_s: float) -> list[str]:
    """Wait for them; those that are held still."""
    from jobs.desk import etcd_view

    deadline_s = time.monotonic() + timeout_s
    while True:
        async with etcd_view(settings) as view:
            held = [each for each in addresses if view.keys[chain_id, each].record.holder is not None]
        if not held or time.monotonic() > deadline_s:
            return held
        await asyncio.sleep(LOOK_S)


def _change(what: str, addresses: list[str], source: str, **options: bool) -> None:
    from jobs.desk import key_desk

    settings = resolve(load_settings())

    async def change() -> None:
        async with key_desk(settings) as desk:
            for address in _lower(addresses):
                await getattr(desk, what)(_chain_id(settings, source), address, **options)

    asyncio.run(change())


def _lower(addresses: list[str]) -> list[str]:
    return list(dict.fromkeys(address.lower() for address in addresses))


def _told(addresses: list[str]) -> str:
    found = _lower(addresses)
    return f"{found[0]} is" if len(found) == 1 else f"{len(found)} keys are"


def _chain_id(settings: Settings, source: str) -> int:
    return settings.source(source or settings.sources[0].name).chain_id


def _report(what: str, addresses: list[str], *, as_json: bool) -> None:
    if as_json:
        emit({what: addresses})
        return
    for address in addresses:
        typer.echo(address)
    say(f"{len(addresses)} {what}. Next: oncesign keys list")

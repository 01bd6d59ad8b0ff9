"""`oncesign keys`: create, import, list, disable, enable."""

from __future__ import annotations

import asyncio
import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.loading import load_settings
from jobs.output import Json, emit, emit_list, say
from pipeline.local.resolve import resolve
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.assignment.records import KeyRecord
    from pipeline.custody.sealing import Kek

app = typer.Typer(no_args_is_help=True, help="The pool of keys: create, import, list, disable, enable.")

Source = Annotated[str, typer.Option(help="The source whose chain the keys are for; default: the first one.")]
TITLES = ("address", "chain_id", "state", "next_nonce", "since", "uses", "holder")


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
def import_(
    files: Annotated[list[Path], typer.Argument(help="Keystore V3 files.")],
    password_file: Annotated[Path, typer.Option(help="A file with the one password of all of them.")],
    nonce: Annotated[int, typer.Option(min=0, help="The next nonce of each key on its chain.")] = 0,
    source: Source = "",
    json: Json = False,
) -> None:
    """Import private keys from keystore V3 files: all of them or none."""
    from pipeline.custody.keystore import open_keystores

    settings = resolve(load_settings())
    kek = asyncio.run(pool_kek(settings))
    keys = open_keystores(files, password_file)
    chain_id = _chain_id(settings, source)
    sealed = [(chain_id, key.address, kek.seal(bytes(key.reveal()), key.address), nonce) for key in keys]
    for key in keys:
        key.wipe()
    asyncio.run(_import(settings, sealed))
    _report("imported", [address for _, address, _, _ in sealed], as_json=json)


@app.command("list")
def list_(json: Json = False) -> None:
    """List the pool, the key that has been free for longest first, with who holds the others and since when."""
    settings = resolve(load_settings())
    rows = asyncio.run(_list(settings))
    emit_list(rows, TITLES, as_json=json)
    if not rows:
        say("The pool is empty. Next: oncesign keys create --count 16")


@app.command()
def disable(address: str, source: Source = "") -> None:
    """Lend a key no more; one that is locked now, after its release."""
    _change("disable", address, source)


@app.command()
def enable(address: str, source: Source = "") -> None:
    """Lend a key again."""
    _change("enable", address, source)


async def create_keys(settings: Settings, count: int, source: str = "") -> list[str]:
    """Make and import; the addresses."""
    from jobs.desk import placed_desk
    from pipeline.stages import intake

    chain_id = _chain_id(settings, source)
    if settings.pool.placed:  # the key manager has the key-encryption key there, and this process has not
        made: list[str] = await placed_desk(settings).create_keys(chain_id, count)
        return made
    keys = intake.made(chain_id, count, await pool_kek(settings))
    await _import(settings, keys)
    return [address for _, address, _, _ in keys]


async def pool_kek(settings: Settings) -> Kek:
    """The key-encryption key with which every key of the pool was sealed; the data directory's own is made at first.

    Two KEKs in one pool would mean keys that get nonces and cannot sign. Raises SecretFileError, StoreUnavailable.
    """
    from jobs.desk import etcd_view
    from pipeline.custody.sealing import Kek
    from pipeline.stages.intake import load_kek

    async with etcd_view(settings) as view:
        if settings.kek_file is None and not settings.kek_path.exists() and not view.sealed:
            path = settings.kek_path
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            kek = Kek.create(path)
            say(f"made a key-encryption key in {path}; keep a copy of it: without it no key can be opened")
            return kek
        return load_kek(settings.kek_path, view)


async def _import(settings: Settings, keys: list[tuple[int, str, bytes, int]]) -> None:
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
        "since": dt.datetime.fromtimestamp(key.since_unix_ms / 1000, dt.UTC).isoformat(timespec="milliseconds"),
        "uses": key.uses,
        "holder": f"{holder.worker} on {holder.node} for {holder.stream} batch {holder.seq}" if holder else None,
    }


def _change(what: str, address: str, source: str) -> None:
    from jobs.desk import key_desk

    settings = resolve(load_settings())

    async def change() -> None:
        async with key_desk(settings) as desk:
            await getattr(desk, what)(_chain_id(settings, source), address.lower())

    asyncio.run(change())
    say(f"{address.lower()} is {what}d. Next: oncesign keys list")


def _chain_id(settings: Settings, source: str) -> int:
    return settings.source(source or settings.sources[0].name).chain_id


def _report(what: str, addresses: list[str], *, as_json: bool) -> None:
    if as_json:
        emit({what: addresses})
        return
    for address in addresses:
        typer.echo(address)
    say(f"{len(addresses)} {what}. Next: oncesign keys list")

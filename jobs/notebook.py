"""What a notebook works with: commands, and what Postgres, Kafka and etcd hold as pandas DataFrames.

Everything goes where the ONCESIGN_ settings say: to servers of yours when they name their addresses, else to the
embedded ones of the data directory. Queries and reads change nothing.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias, TypeVar

import orjson
import pandas as pd

from actors.composition import bus
from jobs import keys, rows, servers
from jobs.chaos.signing import ERROR, PROGRESS, Signing, oncesign
from jobs.desk import etcd_client, etcd_view
from jobs.loading import load_settings
from pipeline.adapters.etcd_history import Change, EtcdHistory
from pipeline.adapters.postgres import uri
from pipeline.adapters.postgres_source import driver
from pipeline.assignment.paths import Paths
from pipeline.errors import RuntimeFault
from pipeline.ethereum.ipc import read_fields
from pipeline.local.resolve import resolve
from pipeline.ports import KeyValue
from pipeline.settings import Settings, SourceSettings

Result = TypeVar("Result")
Kind: TypeAlias = Literal["keys", "streams", "assignments"]

ACCIDENT_TIMEOUT_S: Final = 120.0
COMMAND_TIMEOUT_S: Final = 3600.0
NUMBERS: Final = ("shard", "seq", "chain_id", "first_nonce", "count", "fence")
READ_ONLY: Final = "SET TRANSACTION READ ONLY"


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment in the three memories: what comes after it is what a run did."""

    tx_id: int = 0  #: the highest id in the table of the first source
    offsets: dict[str, tuple[int, ...]] = field(default_factory=dict)  #: topic → the end of each partition
    revision: int = 0  #: of etcd


BEGINNING: Final = Mark()


def prepare(keys_wanted: int) -> None:
    """What `up`, `migrate` and, for an empty pool, `keys create` do: all of it is done once. Raises DependencyDown."""
    _aside(_prepare, keys_wanted)


def _prepare(keys_wanted: int) -> None:
    async def has_keys() -> bool:
        async with etcd_view(resolve(load_settings())) as view:
            return bool(view.keys)

    servers.up(members=None, json=False)
    rows.migrate(dry_run=False, json=False)
    if not asyncio.run(has_keys()):
        keys.create(keys_wanted, source="", json=False)


def command(*arguments: str) -> None:
    """Run `oncesign ARGUMENTS`, shown as on a terminal. Raises RuntimeFault when it fails."""
    data, said = _ended(*arguments)
    sys.stdout.write("\n".join([f"$ oncesign {' '.join(arguments)}", *said, data]).rstrip() + "\n")


def objects(*arguments: str) -> list[dict[str, Any]]:
    """What a command prints with --json: an object, or one per line of a list. Raises RuntimeFault."""
    data, _ = _ended(*arguments, "--json")
    return [orjson.loads(line) for line in data.splitlines()]


def _ended(*arguments: str) -> tuple[str, list[str]]:
    """A command's stdout, and the lines for people."""
    done = oncesign(*arguments, timeout_s=COMMAND_TIMEOUT_S)
    said = [line for line in done.stderr.splitlines() if not line.startswith(PROGRESS)]
    if done.returncode:
        errors = [line.removeprefix(ERROR) for line in said if line.startswith(ERROR)] or said[-1:]
        raise RuntimeFault(f"`oncesign {' '.join(arguments)}` ended with {done.returncode}: {' '.join(errors)}")
    return done.stdout, said


def sign(address: str = "") -> dict[str, Any]:
    """Sign all that waits, on the cluster of that dashboard or one of our own; the summary. Raises RuntimeFault."""
    [summary] = objects("sign", "--until-drained", *(("--address", address) if address else ()))
    return summary


def signing(address: str = "") -> Signing:
    """The same beside other cells, until it is closed or the kernel ends."""
    log = load_settings().data_dir / "logs" / "notebook.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    made = Signing(log, address)
    made.start()
    atexit.register(made.close)
    return made


def kill(name: str, running: Signing, address: str = "") -> pd.Timestamp:
    """End the process of an actor with SIGKILL when batches are under way; the moment.

    At that address by a job on its node. Raises RuntimeFault, also when no batch comes.
    """
    if address:
        from jobs import submission  # loads Ray

        done = _aside(submission.run, address, f"jobs.accident {name} --busy", ACCIDENT_TIMEOUT_S)
        return pd.Timestamp(done["at_s"], unit="s", tz="UTC")
    pid = running.pid(name)
    if pid is None:
        raise RuntimeFault(f"no actor is called {name}.", hint=f"There are {', '.join(running.names(''))}.")
    deadline_s = time.monotonic() + ACCIDENT_TIMEOUT_S
    while present("assignments").empty:
        if time.monotonic() > deadline_s:
            raise RuntimeFault("no batch was under way.", hint="Insert rows meanwhile.")
    os.kill(pid, signal.SIGKILL)
    return pd.Timestamp.now("UTC")


def source() -> SourceSettings:
    """The first source: its name, table and chain id."""
    return load_settings().sources[0]


def query(sql: str, *values: object) -> pd.DataFrame:
    """The rows of a query, by Arrow; $1, $2 … stand for the values. Postgres refuses it any change."""
    postgres = resolve(load_settings(), ["postgres"]).postgres
    with driver().connect(uri(postgres)) as connection, connection.cursor() as cursor:
        cursor.execute(READ_ONLY)
        cursor.execute(sql, list(values) or None)
        found: pd.DataFrame = cursor.fetch_arrow_table().to_pandas()
        return found


def mark() -> Mark:
    """This moment. Raises DependencyDown."""
    settings = resolve(load_settings())
    highest = query(f"SELECT coalesce(max(id), 0) AS id FROM {source().table}")  # noqa: S608 - a name of the settings
    revision = _run(_with_history(settings, lambda history: history.revision(_root(settings))))
    return Mark(int(highest["id"].iloc[0]), _run(_ends(settings)), revision)


def records(topic: str, after: Mark = BEGINNING) -> pd.DataFrame:
    """The committed records of a topic (its name without the prefix): partition, offset, time, key, value.

    Raises BusUnavailable.
    """
    found = _run(_records(resolve(load_settings(), ["kafka"]), topic, after))
    frame = pd.DataFrame(found, columns=["partition", "offset", "time", "key", "value"])
    return frame.assign(time=pd.to_datetime(frame["time"], unit="ms", utc=True))


def headers(found: pd.DataFrame) -> pd.DataFrame:
    """The same without key and value, with what the Arrow schema of each record says: source, shard, seq, …

    Raises MalformedBatch.
    """
    said = pd.DataFrame([read_fields(value) for value in found["value"]], index=found.index)
    numbers = {name: pd.to_numeric(said[name]) for name in NUMBERS if name in said}
    return found.drop(columns=["key", "value"]).join(said.assign(**numbers))


def present(kind: Kind) -> pd.DataFrame:
    """The keys, streams or assignments that etcd holds now: path, and the record's fields. Raises StoreUnavailable."""
    settings = resolve(load_settings(), ["etcd"])

    async def read() -> list[KeyValue]:
        async with etcd_client(settings) as store:
            return await store.list(f"{_root(settings)}{kind}/")

    return pd.DataFrame([_fields(kv.key.removeprefix(_root(settings)), kv.value) for kv in _run(read())])


def changes(kind: Kind, after: Mark = BEGINNING) -> pd.DataFrame:
    """What etcd's revisions made of keys, streams or assignments: revision, path, deleted, and the record's fields.

    Raises StoreUnavailable, also when etcd has compacted the revision of the mark.
    """
    settings = resolve(load_settings(), ["etcd"])
    root = _root(settings)

    async def read(history: EtcdHistory) -> list[Change]:
        until = await history.revision(root)
        return [change async for change in history.changes(f"{root}{kind}/", after.revision, until)]

    found = [
        {"revision": change.revision, "deleted": change.value is None}
        | _fields(change.key.removeprefix(root), change.value)
        for change in _run(_with_history(settings, read))
    ]
    return pd.DataFrame(found).convert_dtypes()


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _ends(settings: Settings) -> dict[str, tuple[int, ...]]:
    async with bus.topics(settings) as topics:
        names = [name for name in await topics.names() if name.startswith(f"{settings.kafka.topic_prefix}.")]
    async with bus.batch_log(settings) as log:
        return {name: await log.ends(name) for name in names}


async def _records(settings: Settings, topic: str, after: Mark) -> list[tuple[object, ...]]:
    name = f"{settings.kafka.topic_prefix}.{topic}"
    found = await bus.records(settings, name, after.offsets.get(name))
    return [(one.place.partition, one.place.offset, one.unix_ms, one.key, one.value) for one in found]


async def _with_history(settings: Settings, read: Callable[[EtcdHistory], Awaitable[Result]]) -> Result:
    history = EtcdHistory(settings.etcd)
    try:
        return await read(history)
    finally:
        await history.close()


def _fields(path: str, value: bytes | None) -> dict[str, Any]:
    return {"path": path} | (orjson.loads(value) if value is not None else {})


def _root(settings: Settings) -> str:
    return f"{Paths(settings.deployment).root}/"


def _run(reading: Coroutine[Any, Any, Result]) -> Result:
    found: Result = _aside(asyncio.run, reading)
    return found


def _aside(function: Callable[..., Result], *values: object) -> Result:
    """In a thread of its own: the kernel of a notebook has an event loop in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *values).result()

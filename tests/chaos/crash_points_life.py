"""One life of a whole pipeline in a process of its own: until it is killed at a boundary, or until all is settled.

All stages, the key manager and a signer on real servers, without Ray. A context variable says whose request it is, so
that a boundary has the name that it has in the simulation: "consumer: kafka EndTxn".
"""

from __future__ import annotations

import asyncio
import contextvars
import faulthandler
import hashlib
import json
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg
from pydantic import SecretStr

from actors import composition
from actors.composition import bus, consuming, managing, reading, signing, sweeping, tables, verifying
from jobs.chaos.evidence import breaches
from jobs.recovery import rebuild
from pipeline import effects
from pipeline.adapters.migrations import migrate
from pipeline.adapters.postgres import connection_string
from pipeline.assignment.manager import KeyManager
from pipeline.assignment.records import Assignment, KeyState, StreamRecord
from pipeline.custody.generation import address_of
from pipeline.custody.sealing import Kek
from pipeline.effects import Effect, Moment, effect
from pipeline.errors import DependencyDown, NotLeader
from pipeline.ports import Assigned, AssignReply, AssignRequest, SignedBatch
from pipeline.settings import EtcdSettings, KafkaSettings, PostgresSettings, ReaderSettings, Settings, SourceSettings
from pipeline.stages.consumer import Worker
from pipeline.stages.signer import Signer
from pipeline.stock.mix import Mix
from pipeline.stock.row import insert
from pipeline.stream import Stream
from pipeline.testing.simulation.crashes import Boundary

log = logging.getLogger(__name__)

TABLE: Final = "payouts"
SHARDS: Final = 2
ROWS: Final = 96
WAVE_ROWS: Final = 16
WAVE_EVERY_S: Final = 0.25
INVALID_SHARE: Final = 0.1
BATCH_ROWS_MAX: Final = 5
KEYS: Final = 3
"""That sign; one more is set apart, and one is retired and destroyed."""

POLICY: Final = "gas_limit_max = 16_777_216\n"
SLOTS: Final = 4
LOOK_S: Final = 0.1
LEASE_TTL_S: Final = 4
SETTLE_MAX_S: Final = 60.0
"""I9: how long after its start a pipeline may take until everything is settled."""

AGAIN_S: Final = 1.0
STOP_MAX_S: Final = 20.0
NODE: Final = "here"

CLIENT: ContextVar[str] = ContextVar("client", default="start")


class Point(NamedTuple):
    """Where a life ends; `nth` counts from 1 in each life."""

    boundary: Boundary
    moment: Moment
    nth: int = 1

    def __str__(self) -> str:
        return f"{self.boundary}, {self.moment}, the {self.nth}."


@dataclass(frozen=True, slots=True)
class Place:
    """Servers, and the names in them that belong to one case alone."""

    directory: Path
    deployment: str
    etcd: str
    dsn: str
    password_file: Path
    kafka: str

    def settings(self) -> Settings:
        """Small batches, a short lease, and otherwise what a deployment has."""
        return Settings(
            deployment=self.deployment,
            data_dir=self.directory,
            node=NODE,
            etcd=EtcdSettings(endpoints=self.etcd, lease_ttl_s=LEASE_TTL_S, timeout_s=1.5),
            postgres=PostgresSettings(dsn=SecretStr(self.dsn), password_file=self.password_file),
            kafka=KafkaSettings(bootstrap_servers=self.kafka, topic_prefix=self.deployment, signed_partitions=2),
            sources=[SourceSettings(table=TABLE, shards=SHARDS, policy_file=self.directory / "policy.toml")],
            reader=ReaderSettings(batch_rows_max=BATCH_ROWS_MAX),
        )

    def to_json(self) -> dict[str, str]:
        """For the zygote."""
        return {name: str(getattr(self, name)) for name in self.__slots__}

    @classmethod
    def from_json(cls, fields: dict[str, str]) -> Place:
        """Back again."""
        directory, password_file = Path(fields["directory"]), Path(fields["password_file"])
        return cls(**(fields | {"directory": directory, "password_file": password_file}))  # type: ignore[arg-type]


@dataclass(slots=True)
class Record:
    """What a life leaves behind, in a file."""

    met: bool = False
    settled_s: float = 0.0
    breaches: list[str] = field(default_factory=list)
    seen: dict[tuple[Boundary, Moment], int] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Also by a process that is about to be killed."""
        seen = [[*boundary, moment, times] for (boundary, moment), times in self.seen.items()]
        fields = {"met": self.met, "settled_s": self.settled_s, "breaches": self.breaches, "seen": seen}
        path.write_text(json.dumps(fields), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Record:
        """One that says nothing when there is no file."""
        if not path.exists():
            return cls()
        fields = json.loads(path.read_text(encoding="utf-8"))
        seen = {(Boundary(*at), Moment(moment)): times for *at, moment, times in fields.pop("seen")}
        return cls(**fields, seen=seen)


class Lookout:
    """Watches every boundary, and kills its own process at one of them."""

    def __init__(self, point: Point | None, path: Path) -> None:
        self._point = point
        self._path = path
        self._turn = threading.Lock()
        self.seen: Counter[tuple[Boundary, Moment]] = Counter()

    def __call__(self, at: Effect, moment: Moment) -> None:
        boundary = Boundary(CLIENT.get(), at.server, at.request)
        with self._turn:
            self.seen[boundary, moment] += 1
            if self._point == Point(boundary, moment, self.seen[boundary, moment]):
                Record(met=True, seen=dict(self.seen)).save(self._path)
                os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def as_client(name: str) -> Iterator[None]:
    """What is asked within, and by tasks that are made within, is asked by it."""
    before = CLIENT.set(name)
    try:
        yield
    finally:
        CLIENT.reset(before)


class Desk:
    """The key manager as the other processes see it: every call is a boundary, as in testing.simulation.remote."""

    def __init__(self, manager: KeyManager) -> None:
        self._manager = manager

    async def assign(self, requests: Sequence[AssignRequest], deadline_s: float) -> Sequence[AssignReply]:
        with effect("key-manager", "assign"):
            return await self._manager.assign(requests, deadline_s)

    async def release(self, batches: Sequence[tuple[Stream, int]], worker: str) -> None:
        with effect("key-manager", "release"):
            await self._manager.release(batches, worker)

    async def halt(self, stream: Stream, reason: str) -> None:
        with effect("key-manager", "halt"):
            await self._manager.halt(stream, reason)

    async def open_stream(self, record: StreamRecord) -> StreamRecord:
        with effect("key-manager", "open_stream"):
            return await self._manager.open_stream(record)

    async def assignments(self) -> Sequence[Assignment]:
        with effect("key-manager", "assignments"):
            return await self._manager.list_assignments()

    async def streams(self) -> Sequence[StreamRecord]:
        with effect("key-manager", "streams"):
            return await self._manager.list_streams()

    async def import_keys(self, keys: Sequence[tuple[int, str, bytes, int]]) -> None:
        with effect("key-manager", "import_keys"):
            await self._manager.import_keys(keys)


class OneSigner:
    """Fulfils ports.Signers; every call is a boundary, and what it asks of the ledger is the signer's."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def slots(self) -> int:
        return SLOTS

    async def sign(self, batch: bytes, assigned: Assigned) -> SignedBatch:
        with effect("signer", "sign"), as_client("signer"):
            return await self._signer.sign(batch, assigned)


@dataclass(slots=True)
class Life:
    """The processes of a deployment, all in this one."""

    settings: Settings
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def run(self) -> float:
        """Until all is settled; seconds since the start of the process."""
        born_s = time.monotonic()
        make_source(self.settings.postgres)
        leads = AsyncExitStack()
        with as_client("key-manager"):
            manager = await leads.enter_async_context(managing.key_manager(self.settings, lambda: None))
        try:
            desk = Desk(manager)
            await self._prepare(manager, desk)
            await self._start(desk)
            await self._settle(manager)
            return time.monotonic() - born_s
        finally:
            await self._end()
            with as_client("key-manager"):
                await leads.aclose()

    async def _prepare(self, manager: KeyManager, desk: Desk) -> None:
        await self._prepare_keys(manager, desk)
        async with bus.topics(self.settings) as admin:
            await tables.prepare(self.settings, desk, admin)

    async def _prepare_keys(self, manager: KeyManager, desk: Desk) -> None:
        chain_id = self.settings.sources[0].chain_id
        # Their own: a key of an etcd belongs to one deployment.
        names = [f"{self.settings.deployment} {n}".encode() for n in range(KEYS + 2)]
        secrets = [hashlib.sha256(name).digest() for name in names]
        *_, apart, gone = addresses = [address_of(secret) for secret in secrets]
        if not await manager.list_keys():
            kek = Kek.load(self.settings.kek_path)
            sealed = [kek.seal(secret, address) for secret, address in zip(secrets, addresses, strict=True)]
            await desk.import_keys([(chain_id, *key, 0) for key in zip(addresses, sealed, strict=True)])
        await manager.set_apart(chain_id, apart, apart=True)
        states = {key.address: key.state for key in await manager.list_keys()}
        if states.get(gone, KeyState.RETIRED) is not KeyState.RETIRED:
            await manager.disable(chain_id, gone)
            await manager.retire(chain_id, gone, destroy=True)

    async def _start(self, desk: Desk) -> None:
        settings = self.settings
        with as_client("signer"):
            signers = OneSigner(await signing.signer(settings, "signer-0"))
        [place] = composition.reader_places(settings)

        async def read() -> None:
            async with reading.readers(settings, place.source, place.shards, desk) as readers:
                await asyncio.gather(*(reader.run(self.stop) for reader in readers))

        async def consume() -> None:
            worker = Worker("consumer-0.1", NODE)
            async with consuming.consumer(settings, 0, worker, desk, signers) as consumer:
                await consumer.run(self.stop)

        async def sweep() -> None:
            async with sweeping.sweeper(settings, Worker("sweeper.1", NODE), desk, signers) as sweeper:
                await sweeper.run(self.stop)

        async def verify() -> None:
            async with verifying.verifier(settings) as verifier:
                await verifier.run(self.stop)

        self._spawn("desk", load(settings))
        for client, work in (("reader", read), ("consumer", consume), ("sweeper", sweep), ("verifier", verify)):
            self._spawn(client, work())

    def _spawn(self, client: str, work: Awaitable[None]) -> None:
        async def carried() -> None:
            await work

        context = contextvars.copy_context()
        context.run(CLIENT.set, client)
        self.tasks.append(asyncio.get_running_loop().create_task(carried(), name=client, context=context))

    async def _settle(self, manager: KeyManager) -> None:
        """Raises what a stage raised, and StuckError for a halted stream."""
        while True:
            for task in self.tasks:
                if task.done() and (task.get_name() != "desk" or task.exception() is not None):
                    task.result()
                    raise StuckError(f"{task.get_name()} ended")
            if halted := manager.status()["halted"]:
                raise StuckError(f"halted: {halted}")
            if self.tasks[0].done() and not await manager.list_assignments():
                settled = await asyncio.to_thread(count, self.settings, "SELECT count(*) FROM outcomes")
                if settled == ROWS:
                    return
            await asyncio.sleep(LOOK_S)

    async def _end(self) -> None:
        self.stop.set()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=STOP_MAX_S)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class StuckError(Exception):
    """What should go on has ended or halted, although nothing was lost."""


def make_source(settings: PostgresSettings) -> None:
    """All tables, those that are missing."""
    migrate(settings)
    with psycopg.connect(connection_string(settings)) as connection:
        made = "SELECT oncesign_create_source_v1(%s, %s) WHERE to_regclass(%s) IS NULL"
        connection.execute(made, [TABLE, SHARDS, TABLE])


async def load(settings: Settings) -> None:
    """A payout desk: rows in waves, until there are ROWS."""
    source = settings.sources[0]
    while (present := await asyncio.to_thread(count, settings, f"SELECT count(*) FROM {source.table}")) < ROWS:
        rows = list(Mix(present + 1, source.chain_id).rows(WAVE_ROWS, INVALID_SHARE))
        await asyncio.to_thread(insert, settings.postgres, source.table, rows)
        await asyncio.sleep(WAVE_EVERY_S)


def count(settings: Settings, query: str) -> int:
    with psycopg.connect(connection_string(settings.postgres)) as connection:
        row: Any = connection.execute(query).fetchone()
    return int(row[0])


async def check(settings: Settings) -> list[str]:
    """Every breach of the invariants that can be seen at rest, by the verifier and by the one checker."""
    async with verifying.verifier(settings) as verifier:
        await verifier.catch_up()
        found = await verifier.reconcile()
    return await breaches(settings, [str(violation) for violation in found])


async def repair(settings: Settings) -> float:
    """`oncesign recover`; how long it took."""
    born_s = time.monotonic()
    with as_client("recovery"):
        await rebuild(settings)
    return time.monotonic() - born_s


async def live(lookout: Lookout, work: Callable[[], Awaitable[float]]) -> Record:
    """A life that no boundary ended."""
    record = Record()
    effects.watch(lookout)
    try:
        record.settled_s = await asyncio.wait_for(_supervised(work), SETTLE_MAX_S)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the result
        record.breaches.append(f"I9: not settled: {type(error).__name__}: {error}")
    effects.watch(None)
    record.seen = dict(lookout.seen)
    return record


async def _supervised(work: Callable[[], Awaitable[float]]) -> float:
    """Begin again after what a supervisor begins again after: servers that stood still, a lease lost meanwhile."""
    born_s = time.monotonic()
    while True:
        try:
            await work()
            return time.monotonic() - born_s
        except (DependencyDown, NotLeader) as error:
            log.warning("begins again: %s", error)
            await asyncio.sleep(AGAIN_S)


async def checked(settings: Settings, lookout: Lookout, *, repairs: bool) -> Record:
    """A repair, or a life until all is settled and then the check of it."""
    if repairs:
        return await live(lookout, lambda: repair(settings))
    record = await live(lookout, lambda: Life(settings).run())
    if not record.breaches:
        record.breaches = await check(settings)
    return record


def begin(place: Place, point: Point | None, path: Path, log: Path, *, repairs: bool) -> None:
    """In a process that was forked for it, and that ends here."""
    with log.open("a", buffering=1) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        faulthandler.dump_traceback_later(SETTLE_MAX_S + STOP_MAX_S, file=output)
        composition.start_logging()
        try:
            asyncio.run(checked(place.settings(), Lookout(point, path), repairs=repairs)).save(path)
        except BaseException as error:  # noqa: BLE001 - as above; nobody else would see it
            Record(breaches=[f"the check failed: {type(error).__name__}: {error}"]).save(path)
    os._exit(0)

"""A deployment in one event loop: the real stages in processes that can die, around twins of all servers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from pipeline.assignment.manager import KeyManager
from pipeline.custody.generation import address_of
from pipeline.custody.sealing import Kek
from pipeline.errors import DeploymentHalted, OncesignError, UsageError
from pipeline.settings import PoolSettings, ReaderSettings, Settings, SigningSettings, SourceSettings
from pipeline.stages.admission import Admission
from pipeline.stages.consumer import BatchConsumer, ConsumerPorts, Worker
from pipeline.stages.publication import Outlets
from pipeline.stages.reader import BatchReader
from pipeline.stages.signer import Signer
from pipeline.stages.sweeper import Sweeper, SweeperPorts
from pipeline.stages.verifier import Verifier, VerifierPorts
from pipeline.stream import Stream
from pipeline.testing.batch_log import TwinBatchLog
from pipeline.testing.batch_subscription import TwinBatchSubscription
from pipeline.testing.broker import Broker
from pipeline.testing.database import Database
from pipeline.testing.group import Committed, Generation
from pipeline.testing.ledger import TwinLedger
from pipeline.testing.outcomes import TwinOutcomes
from pipeline.testing.policies import TwinPolicies
from pipeline.testing.round_writer import TwinRoundWriter
from pipeline.testing.simulation.clock import SimulatedClock
from pipeline.testing.simulation.history import History, WitnessEtcd, WitnessKernel
from pipeline.testing.simulation.loop import Process, SimulatedLoop
from pipeline.testing.simulation.remote import RemoteManager, RemoteSigners
from pipeline.testing.simulation.story import Story
from pipeline.testing.simulation.wire import Fates, SimulatedNetwork
from pipeline.testing.source import TwinSource
from pipeline.testing.store import TwinStore
from pipeline.testing.stream_writer import TwinStreamWriter

CHAIN: Final = 1
SOURCE: Final = "payouts"
BATCHES, SIGNED, REJECTED = "tx.batches.payouts", "tx.signed", "tx.rejected"
SIGNED_PARTITIONS: Final = 2
GROUP: Final = "local-consumers"
SECRETS: Final = [bytes([n]) * 32 for n in range(1, 9)]
KEK: Final = Kek(b"k" * 32)
SEALED: Final = [(CHAIN, address_of(secret), KEK.seal(secret, address_of(secret)), 0) for secret in SECRETS]

SUPERVISE_EVERY_S: Final = 1.0
SESSION_S: Final = 3.0
"""After so long Kafka notices that a member of the group is dead."""

LATE_JOIN_SESSIONS: Final = 10
"""For so many sessions a request of a dead member may arrive."""

FATAL: Final = (DeploymentHalted, UsageError)
"""What another start would not mend."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a deployment is."""

    streams: int = 2
    keys: int = 2
    consumers: int = 2
    signers: int = 2
    batch_rows_max: int = 2


@dataclass(slots=True)
class Member:
    """A process under supervision: how its work begins, and how it is."""

    name: str
    work: Callable[[Process], Awaitable[None]]
    process: Process | None = None
    task: asyncio.Task[None] | None = None
    started: int = 0
    failed: Exception | None = None  #: with what no other start would mend


@dataclass(slots=True)
class ManagerActor:
    """The key manager's process: leads when first asked, and again when its refusal is over."""

    cluster: Cluster
    process: Process
    manager: KeyManager | None = None
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def started(self) -> KeyManager:
        """A manager that leads. Raises NotLeader, DeploymentHalted, DependencyDown."""
        async with self.starting:
            if self.manager is None:
                made = self.cluster.key_manager(self.process)
                await made.start()
                self.manager = made
            return self.manager


class Cluster:
    """Everything that outlives a process, and the processes."""

    def __init__(self, loop: SimulatedLoop, fates: Fates, shape: Shape, story: Story) -> None:
        self.loop, self.shape, self.story = loop, shape, story
        self.clock = SimulatedClock(loop)
        self.network = SimulatedNetwork(loop, fates)
        self.broker = Broker(self.clock, self.network)
        self.history = History()
        self.etcd = WitnessEtcd(self.clock, history=self.history)
        self.database = database = Database(self.network)
        self.source = TwinSource(shape.streams, database=database)
        self.ledger = TwinLedger(database)
        self.outcomes = TwinOutcomes({SOURCE: self.source}, self.ledger, database)
        self.settings = _settings(shape)
        self.outlets = Outlets(SIGNED, REJECTED, SIGNED_PARTITIONS)
        self.managers: list[ManagerActor] = []  #: the latest is last; the earlier ones may live on
        self.stray: Callable[[], bool] = lambda: False  #: whether a request goes to an earlier key manager
        self.signers: dict[int, tuple[Process, Signer]] = {}
        self.verifier: Verifier | None = None
        self.members = [Member("key-manager", self._lead)]
        self.members += [Member(f"signer-{slot}", _bound(self._sign, slot)) for slot in range(shape.signers)]
        self.members += [Member(f"reader-{shard}", _bound(self._read, shard)) for shard in range(shape.streams)]
        self.members += [Member(f"consumer-{slot}", _bound(self._consume, slot)) for slot in range(shape.consumers)]
        self.members += [Member("sweeper", self._sweep), Member("verifier", self._verify)]

    @property
    def streams(self) -> list[Stream]:
        """All of them."""
        return [Stream(SOURCE, shard) for shard in range(self.shape.streams)]

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Topics, first offsets, every process, and keys, for which an operator asks until they are there."""
        for topic, partitions in ((BATCHES, self.shape.streams), (SIGNED, SIGNED_PARTITIONS), (REJECTED, 1)):
            self.broker.create_topic(topic, partitions)
        begin = {(BATCHES, shard): Committed(0, "0") for shard in range(self.shape.streams)}
        self.broker.group(GROUP).commit(Generation(GROUP), begin)
        for member in self.members:
            self._start(member)
        while not await self._keys_imported():
            await self.clock.sleep(SUPERVISE_EVERY_S)

    async def _keys_imported(self) -> bool:
        try:
            await RemoteManager(self).import_keys(SEALED[: self.shape.keys])
        except UsageError:  # they are there: the answer was lost
            return True
        except OncesignError:
            return False
        return True

    async def supervise(self) -> None:
        """Start again what has died or ended, for ever."""
        while True:
            await asyncio.sleep(SUPERVISE_EVERY_S)
            for member in self.members:
                self._look(member)

    def _look(self, member: Member) -> None:
        if member.process is None or member.process.dead:
            self._start(member)
        elif member.task is not None and member.task.done() and member.failed is None:
            error = member.task.exception()
            if isinstance(error, FATAL) or not isinstance(error, OncesignError | None):
                member.failed = error if isinstance(error, Exception) else RuntimeError(repr(error))
                self.story.tell(member.process.name, f"ends for good: {error!r}")
            else:
                self.story.tell(member.process.name, f"starts again after: {error!r}")
                member.task = member.process.spawn(_carried(member.work, member.process))

    def _start(self, member: Member) -> None:
        member.started += 1
        member.failed = None
        member.process = Process(self.loop, f"{member.name}.{member.started}")
        self.story.tell(member.process.name, "starts")
        member.task = member.process.spawn(_carried(member.work, member.process))

    def start_what_failed(self) -> None:
        """As an operator does who has mended what no other start would have."""
        for member in self.members:
            if member.failed is not None:
                self._start(member)

    def member(self, name: str) -> Member:
        """By its name without the number of its start."""
        return next(member for member in self.members if member.name == name)

    # ── what each process does ───────────────────────────────────────────────────────────────────────────────────────

    def store(self) -> TwinStore:
        """A key manager's client of etcd."""
        return TwinStore(self.etcd, self.network)

    def key_manager(self, process: Process) -> KeyManager:
        """One that does not lead yet."""
        return KeyManager(self.store(), self.ledger, self.clock, self.settings, process.kill)

    def leader(self) -> ManagerActor | None:
        """Whom a request for the key manager reaches."""
        living = [actor for actor in self.managers if not actor.process.dead]
        if len(living) > 1 and self.stray():
            return living[0]
        return self.managers[-1] if self.managers else None

    def usurp(self) -> None:
        """A second key manager beside the first, as after a partition of Ray's network."""
        member = self.member("key-manager")
        if member.process is not None and not member.process.dead:
            self._start(member)

    async def _lead(self, process: Process) -> None:
        self.managers.append(ManagerActor(self, process))
        await asyncio.Event().wait()

    async def _sign(self, process: Process, slot: int) -> None:
        kernel = WitnessKernel(self.history)
        ledger = self.ledger.client()
        process.ended.append(ledger.drop)
        await ledger.enlist()
        signer = Signer(process.name, ledger, KEK, kernel, self.clock, self.settings.signing)
        self.signers[slot] = process, signer
        await asyncio.Event().wait()

    async def _read(self, process: Process, shard: int) -> None:  # noqa: ARG002 - the same for every kind
        stream = Stream(SOURCE, shard)
        writer, source = TwinStreamWriter(self.broker, "local", stream, BATCHES), self.source.client()
        reader = BatchReader(stream, CHAIN, source, writer, RemoteManager(self), self.clock, self.settings.reader)
        await reader.run(asyncio.Event())

    async def _consume(self, process: Process, slot: int) -> None:
        member = f"{process.name}.{self.history.member()}"
        subscription = TwinBatchSubscription(self.broker, GROUP, member, [BATCHES])
        process.ended.append(lambda: self._miss(member))
        writer = TwinRoundWriter(self.broker, f"local-consumer-{slot}")
        log = TwinBatchLog(self.broker, GROUP)
        ports = ConsumerPorts(subscription, writer, RemoteManager(self), RemoteSigners(self), log, self.clock)
        admission = Admission({SOURCE: CHAIN}, {BATCHES: SOURCE})
        consumer = BatchConsumer(Worker(process.name, "node"), ports, admission, self.outlets, self.settings.pool)
        try:
            await consumer.run(asyncio.Event())
        finally:
            self._miss(member)  # should its leave not arrive
            await subscription.close()

    async def _sweep(self, process: Process) -> None:
        writer = TwinRoundWriter(self.broker, "local-sweeper")
        log = TwinBatchLog(self.broker, GROUP)
        sources = {SOURCE: self.source.client()}
        desk, signers, topics = RemoteManager(self), RemoteSigners(self), {SOURCE: BATCHES}
        ports = SweeperPorts(desk, signers, log, writer, sources, TwinPolicies(), topics, self.clock)
        await Sweeper(Worker(process.name, "node"), ports, self.outlets).run(asyncio.Event())

    async def _verify(self, process: Process) -> None:  # noqa: ARG002 - the same for every kind
        log = TwinBatchLog(self.broker, GROUP)
        sources = {SOURCE: self.source.client()}
        ports = VerifierPorts(log, sources, self.ledger, self.outcomes, TwinPolicies(), self.clock)
        self.verifier = Verifier(ports, self.settings.sources, (SIGNED, REJECTED))
        await self.verifier.run(asyncio.Event())

    def _miss(self, member: str) -> None:
        """A member is silent from here on; also one that joins by a late request."""
        for sessions in range(1, LATE_JOIN_SESSIONS + 1):
            self._later(sessions * SESSION_S, self._expel, member)

    def _expel(self, member: str) -> None:
        self.broker.leave(Generation(GROUP, member))

    def _later(self, delay_s: float, function: Callable[..., None], *args: Any) -> None:
        self.network.later(delay_s, function, *args)


def _settings(shape: Shape) -> Settings:
    return Settings.model_construct(
        deployment="local",
        node="node",
        etcd=Settings.model_fields["etcd"].default,
        sources=[SourceSettings(name=SOURCE, table="transactions", chain_id=CHAIN, shards=shape.streams)],
        reader=ReaderSettings(batch_rows_max=shape.batch_rows_max, poll_max_s=1.0),
        pool=PoolSettings(),
        signing=SigningSettings(check_rows=0),
    )


def _bound(work: Callable[[Process, int], Awaitable[None]], number: int) -> Callable[[Process], Awaitable[None]]:
    return lambda process: work(process, number)


async def _carried(work: Callable[[Process], Awaitable[None]], process: Process) -> None:
    await work(process)

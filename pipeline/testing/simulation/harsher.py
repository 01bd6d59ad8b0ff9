"""The simulation with more faults and more witnesses.

requests     arrive although their client gave them up; EndTxn is sent again meanwhile (KAFKA-17754)
processes    two readers, consumers or sweepers of one name
Kafka        forgets a reader's position; shows some markers of a transaction, and not yet the others
disasters    an empty etcd, another Postgres; one that a test chooses comes in every course
witnesses    see who writes to etcd while another leads, what is signed before it is sworn, and who lends although etcd
             was behind the ledger when it began to lead
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.assignment.manager import KeyManager
from pipeline.custody.unsealed import UnsealedKey
from pipeline.ethereum.batch import Batch
from pipeline.ethereum.signed import SignedColumns
from pipeline.ports import Assigned, AssignReply, AssignRequest, Waiting
from pipeline.stages.signer import Signer
from pipeline.testing.broker import REQUEST_TIMEOUT_S, Broker
from pipeline.testing.group import Generation
from pipeline.testing.network import Request
from pipeline.testing.refusal import Code, Refused
from pipeline.testing.simulation import course, crashes
from pipeline.testing.simulation.cluster import GROUP, KEK, SOURCE, Cluster, Member, Shape
from pipeline.testing.simulation.course import LOOK_S, RESUME_MAX_S, Verdict
from pipeline.testing.simulation.crashes import Crashes, Plan
from pipeline.testing.simulation.history import PATHS, History, WitnessKernel
from pipeline.testing.simulation.loop import Process, SimulatedLoop
from pipeline.testing.simulation.nemesis import Nemesis
from pipeline.testing.simulation.story import Story
from pipeline.testing.simulation.weather import Weather
from pipeline.testing.simulation.wire import Fate, Fates
from pipeline.testing.simulation.witnesses import WitnessStore
from pipeline.testing.simulation.workload import insert
from pipeline.testing.store import TwinEtcd, TwinStore
from pipeline.testing.transaction import Coordinated
from pipeline.testing.transactions import SOCKET_TIMEOUT_S

T = TypeVar("T")

LATE: Final = {
    "arrives late": Fate(there_s=0.4, reset_s=0.005),
    "arrives very late": Fate(there_s=13.0, reset_s=0.005),
    "arrives in the next": Fate(there_s=SOCKET_TIMEOUT_S + 0.02, reset_s=0.005),
    "is lost": Fate(lost=True, reset_s=0.005),
}
"""More ways to fail at a boundary. What arrives late was given up when the connection broke, and asked again."""

RETRY_BACKOFF_S: Final = 0.1
OTHER_SYSTEM: Final = "7000000000000000002"
SWAP_S: Final = 1.5
"""Longer than a reader waits between two looks: all of them see their connections break."""

NEW_ROWS: Final = 4
NEW_ROWS_S: Final = 1.0
"""What clients insert into another Postgres, and within what time: ids that the last one had given, too."""

TORN_S: Final = 9.0
"""Longer than the sweeper waits for an assignment and between two sweeps."""

SILENT_S: Final = 11.0
"""Longer than a client waits for the answer to its commit."""

PAUSE_S: Final = 3.0
REREAD_S: Final = 0.7
OVERSLEPT_S: Final = 0.8
DOUBLED: Final = ("reader", "consumer", "sweeper")


class AskedAgain(Broker):
    """With clients that send EndTxn again when a connection broke or is silent, as librdkafka does.

    A client that did so must not count its commit as certain (adapters.kafka.BrokerWatch): it takes its time.
    """

    torn = False
    """Of a decided transaction the offsets are seen, and not yet the records; Kafka leaves the order open."""

    async def call(self, request: Request, effect: Callable[[], T], within_s: float = REQUEST_TIMEOUT_S) -> T:
        """See Broker."""
        if request.name != "EndTxn":
            return await super().call(request, effect, within_s)
        begun_s = self.clock.monotonic_s()
        again = False
        while True:
            spent_s = self.clock.monotonic_s() - begun_s
            try:
                answer = await super().call(request, effect, min(SOCKET_TIMEOUT_S, within_s - spent_s))
            except Refused as refused:
                if refused.code is not Code.NO_ANSWER or spent_s + SOCKET_TIMEOUT_S >= within_s:
                    raise
                again = True
                await self.clock.sleep(RETRY_BACKOFF_S)
            else:
                if again:
                    await self.clock.sleep(max(0.0, begun_s + SOCKET_TIMEOUT_S + 0.01 - self.clock.monotonic_s()))
                return answer

    def write_markers(self, most: int | None = None) -> None:
        """See Broker."""
        if not self.torn:
            super().write_markers(most)

    def init_producer(self, transactional_id: str, timeout_s: float) -> int:
        """See Broker. A transaction that is not marked everywhere is waited for."""
        self._wait_for_markers(self._coordinated(transactional_id))
        return super().init_producer(transactional_id, timeout_s)

    def _begun(self, producer: Coordinated) -> Coordinated:
        self._wait_for_markers(producer)
        return super()._begun(producer)

    def _wait_for_markers(self, producer: Coordinated) -> None:
        if self.torn and producer.pending:
            raise Refused(Code.NO_ANSWER, "concurrent transactions")

    def _finish(self, producer: Coordinated) -> None:
        if not self.torn:
            super()._finish(producer)
        for name in [*producer.offsets] if producer.pending else ():
            self.group(name).settle(producer.id, producer.offsets.pop(name), commit=producer.decided is True)


class SwornKernel(WitnessKernel):
    """Tells what is signed before the ledger has it."""

    def __init__(self, history: History, cluster: HarshCluster, wrong: list[str]) -> None:
        super().__init__(history)
        self._cluster, self._wrong = cluster, wrong

    async def sign(self, batch: Batch, signable: NDArray[np.bool_], key: UnsealedKey, nonce: int) -> SignedColumns:
        """See WitnessKernel."""
        sworn = self._cluster.ledger.rows.get((batch.header.stream, batch.header.seq))
        if sworn is None and not self._cluster.lost_commits:
            self._wrong.append(f"I7: batch {batch.header.seq} of {batch.header.stream} was signed, and not sworn")
        return await super().sign(batch, signable, key, nonce)


class HarshCluster(Cluster):
    """With witnesses, and processes that can be there twice."""

    broker: AskedAgain

    def __init__(self, loop: SimulatedLoop, fates: Fates, shape: Shape, story: Story) -> None:
        super().__init__(loop, fates, shape, story)
        self.broker = AskedAgain(self.clock, self.network)
        self.doubles: list[Process] = []
        self.lost_commits = False  #: what was sworn may be gone
        self.wrong: list[str] = []

    def store(self) -> TwinStore:
        """See Cluster."""
        self._latest = WitnessStore(self.etcd, self.network, self.ledger, self.wrong)
        return self._latest

    def key_manager(self, process: Process) -> KeyManager:
        """See Cluster."""
        manager = super().key_manager(process)
        assign, store = manager.assign, self._latest

        async def witnessed(requests: Sequence[AssignRequest], deadline_s: float) -> Sequence[AssignReply]:
            heard = store.heard
            replies = await assign(requests, deadline_s)
            if store.heard == heard and not all(isinstance(reply, Waiting) for reply in replies):
                self.wrong.append(f"I7: {process.name} answered from its memory: {replies}")
            if store.behind and not self.lost_commits and any(isinstance(reply, Assigned) for reply in replies):
                self.wrong.append(f"I7: {process.name} lends while etcd is behind the ledger: {store.behind[0]}")
            return replies

        manager.assign = witnessed  # type: ignore[method-assign]
        return manager

    async def _sign(self, process: Process, slot: int) -> None:
        ledger = self.ledger.client()
        process.ended.append(ledger.drop)
        await ledger.enlist()
        kernel = SwornKernel(self.history, self, self.wrong)
        signer = Signer(process.name, ledger, KEK, kernel, self.clock, self.settings.signing)
        self.signers[slot] = process, signer
        await asyncio.Event().wait()

    def double(self, member: Member) -> None:
        """Another one of these beside the first, which nobody supervises any more."""
        if member.process is not None:
            self.doubles.append(member.process)
        self._start(member)


class HarshNemesis(Nemesis):
    """Bound to one cluster; `deed` comes in every course, and no disaster but it."""

    def __init__(self, cluster: HarshCluster, rng: random.Random, deed: str = "") -> None:
        self._harsh = cluster
        self._deeds_under_way: list[asyncio.Task[None]] = []
        self._over = False
        super().__init__(cluster, rng)
        if deed:
            self._disasters = [getattr(self, f"_{deed}")]

    def _faults(self) -> list[Callable[[], None]]:
        return [*super()._faults(), self._forget_position, self._double, self._tear_markers, self._pause_consumer]

    def _catastrophes(self) -> list[Callable[[], None]]:
        return [*super()._catastrophes(), self._empty_etcd, self._repeat_revision, self._replace_postgres]

    def end(self) -> None:
        """See Nemesis. Torn markers become whole in their own time."""
        super().end()
        self._over = True
        for process in self._harsh.doubles:
            process.kill()

    def _forget_position(self) -> None:
        """Retention takes a reader's committed position (offsets.retention.minutes), and the reader starts again."""
        shard = self._rng.randrange(self._harsh.shape.streams)
        self._fault("position forgotten", "kafka", f"forgets the position of reader {shard}")
        self._harsh.broker.group(f"local-reader-{SOURCE}-{shard}").offsets.clear()
        process = self._harsh.member(f"reader-{shard}").process
        if process is not None:
            process.kill()

    def _pause_manager(self) -> None:
        """The key manager stands still for longer than its lease, another leads, and the first goes on."""
        member = self._harsh.member("key-manager")
        if member.process is None or member.process.dead:
            return
        self._fault("standstill", member.process.name, "stands still until its lease is over, and another leads")
        member.process.freeze()
        self._later(OVERSLEPT_S, member.process.thaw)
        self._lose_leader()
        self._usurp()

    def _reread(self) -> None:
        """As above, when batches wait for consumers that stand still, and more rows have come since."""
        for member in self._harsh.members:
            if member.name.startswith("consumer") and member.process is not None and not member.process.frozen:
                member.process.freeze()
                self._later(PAUSE_S, member.process.thaw)
        self._fault("standstill", "consumers", f"stand still for {PAUSE_S} s")
        self._later(REREAD_S, self._forget_position)

    def _double(self) -> None:
        """Ray lost sight of a process, and starts another one beside it."""
        member = self._rng.choice([m for m in self._harsh.members if m.name.startswith(DOUBLED)])
        if member.process is not None and not member.process.dead:
            self._fault("double", "ray", f"starts a second {member.name} beside the first")
            self._harsh.double(member)

    def _tear_markers(self) -> None:
        """Committed offsets are seen a while before the records of their transaction."""
        self._fault("markers torn", "kafka", "writes the markers of offsets, and not yet those of records")
        self._harsh.broker.torn = True
        self._later(TORN_S, self._mend_markers)

    def _mend_markers(self) -> None:
        self._harsh.broker.torn = False
        self._harsh.broker.write_markers()

    def _tear_commit(self) -> None:
        """As above, of a round whose consumer dies before it hears of it."""
        self._spawn(self._torn_commit())

    async def _torn_commit(self) -> None:
        broker, slot = self._harsh.broker, await self._committing()
        broker.torn = True
        self._later(TORN_S, self._mend_markers)
        while not broker.producers[f"local-{slot}"].pending:
            await self._harsh.clock.sleep(crashes.LOOK_S)
        self._fault("markers torn", slot, "dies when it has committed; the offsets are seen, and not yet the records")
        process = self._harsh.member(slot).process
        if process is not None:
            process.kill()

    def _lose_commit(self) -> None:
        """Kafka is away for longer than a consumer waits for its commit."""
        self._spawn(self._lost_commit())

    async def _lost_commit(self) -> None:
        slot = await self._committing()
        self._fault("outage", "kafka", f"is away for {SILENT_S} s while {slot} commits")
        end_s = self._harsh.loop.time() + SILENT_S
        while self._harsh.loop.time() < end_s:
            self._harsh.broker.down = True
            await asyncio.sleep(crashes.LOOK_S * 100)
        self._harsh.broker.down = False

    async def _committing(self) -> str:
        """The consumer that has a transaction open next."""
        slots = [m.name for m in self._harsh.members if m.name.startswith("consumer")]
        while True:
            for slot in slots:
                producer = self._harsh.broker.producers.get(f"local-{slot}")
                if producer is not None and producer.begun_s is not None and producer.offsets:
                    return slot
            await asyncio.sleep(crashes.LOOK_S)

    def _spawn(self, deed: Coroutine[Any, Any, None]) -> None:
        self._deeds_under_way.append(asyncio.ensure_future(deed))

    def _pause_consumer(self) -> None:
        """It stands still, the group goes on without it, and then it goes on where it was."""
        member = self._rng.choice([m for m in self._harsh.members if m.name.startswith("consumer")])
        if member.process is None or member.process.dead or member.process.frozen:
            return
        self._fault("standstill", member.process.name, f"stands still for {PAUSE_S} s, and is out of the group")
        member.process.freeze()
        self._later(PAUSE_S, member.process.thaw)
        for name in sorted(self._harsh.broker.group(GROUP).members):
            if name.startswith(member.process.name):
                self._harsh.broker.leave(Generation(GROUP, name))

    def _lose_commits(self) -> None:
        super()._lose_commits()
        self._harsh.lost_commits = True

    def _empty_etcd(self) -> None:
        self._disaster("etcd", "it is replaced by an empty one")
        self._harsh.etcd.restore(TwinEtcd(self._harsh.clock))

    def _leave_etcd_behind(self) -> None:
        """It is restored to what it was before the ledger's last batch, another key manager leads, and rows come."""
        self._spawn(self._left_behind())

    async def _left_behind(self) -> None:
        harsh, backup, sworn = self._harsh, self._harsh.etcd.backup(), len(self._harsh.ledger.rows)
        await insert(harsh.source, self._rng, harsh.story, harsh.source.used_ids + NEW_ROWS, NEW_ROWS_S)
        if len(harsh.ledger.rows) == sworn or self._over:
            return
        self._disaster("etcd", "it is restored from a backup that is behind the ledger")
        harsh.etcd.restore(backup)
        self._lose_leader()
        self._usurp()
        await insert(harsh.source, self._rng, harsh.story, harsh.source.used_ids + NEW_ROWS, NEW_ROWS_S)

    def _repeat_revision(self) -> None:
        """A restored etcd gives a new leader the very revision of one that stands still, and that then goes on."""
        self._spawn(self._repeated_revision())

    async def _repeated_revision(self) -> None:
        harsh, backup = self._harsh, self._harsh.etcd.backup()
        self._lose_leader()
        self._usurp()
        while harsh.etcd.get(PATHS.leader) is None:
            await harsh.clock.sleep(crashes.LOOK_S)
        sleeper = harsh.member("key-manager").process
        if sleeper is None or sleeper.dead or self._over:
            return
        sleeper.freeze()
        self._later(OVERSLEPT_S, sleeper.thaw)
        self._disaster("etcd", f"it is restored to the moment before {sleeper.name} led, which stands still")
        harsh.etcd.restore(backup)
        self._lose_leader()
        self._usurp()

    def _replace_postgres(self) -> None:
        """The source was restored from an older dump into another cluster, whose sequence gives the same ids again."""
        self._disaster("postgres", "the source is another Postgres, restored from an older dump")
        self._spawn(self._replaced_postgres())

    async def _replaced_postgres(self) -> None:
        source, database = self._harsh.source, self._harsh.database
        end_s = self._harsh.loop.time() + SWAP_S
        while self._harsh.loop.time() < end_s:  # also when another outage ends meanwhile
            database.down = True
            await asyncio.sleep(crashes.LOOK_S * 100)
        source.fail_over()
        kept = sorted(source.rows)[: len(source.rows) // 2]
        source.rows = {tx_id: source.rows[tx_id] for tx_id in kept}
        source.system, source.used_ids = OTHER_SYSTEM, max(kept, default=0)
        database.down = False
        await insert(source, self._rng, self._harsh.story, source.used_ids + NEW_ROWS, NEW_ROWS_S)


def run(seed: int, deed: str = "", *, told: bool = False) -> Verdict:
    """The course of events that a seed stands for; with that deed of the nemesis if one is named."""
    loop = SimulatedLoop()  # type: ignore[abstract] # what it lacks is I/O
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    story = Story(loop, kept=told)
    weather = Weather(rng, story)
    shape = Shape(keys=rng.choice([1, 2, 3]), batch_rows_max=rng.choice([1, 2, 3]))
    cluster = HarshCluster(loop, weather, shape, story)
    return loop.run(_followed(cluster, weather, rng, HarshNemesis(cluster, rng, deed)))


def run_points(plan: Plan, *, told: bool = False, alone: bool = False) -> Verdict:
    """As simulation.crashes.run_points; with one consumer `alone` every round is its own."""
    loop = SimulatedLoop()  # type: ignore[abstract] # as above
    story = Story(loop, kept=told)
    fates = Crashes(plan.points, story)
    cluster = HarshCluster(loop, fates, Shape(consumers=1 if alone else 2, keys=4 if alone else 2), story)
    if plan.lost_batch:
        loop.create_task(crashes.lose_batch(cluster))
    rng = random.Random(0)  # noqa: S311 - not for secrets
    return loop.run(_followed(cluster, fates, rng, None))


async def _followed(cluster: HarshCluster, fates: Any, rng: random.Random, nemesis: Nemesis | None) -> Verdict:
    """The course, and what late requests do after its end."""
    verdict = await course.unfold(cluster, fates, rng, nemesis)
    late_s = cluster.network.last_arrival_s - cluster.loop.time()
    if not (verdict.breaches or verdict.faults["disaster"]) and late_s > 0:
        supervising = asyncio.ensure_future(cluster.supervise())
        await asyncio.sleep(late_s + LOOK_S)
        settled = await course.settle(cluster, cluster.loop.time() + RESUME_MAX_S)
        supervising.cancel()
        verdict.breaches.extend(course.found_wrong(cluster, settled=settled, disasters=0))
    verdict.breaches.extend(cluster.wrong)
    return verdict


@contextmanager
def late() -> Iterator[None]:
    """Crash points that are late requests, while this lasts."""
    before = dict(crashes.HOW)
    crashes.HOW.update(LATE)
    try:
        yield
    finally:
        crashes.HOW.clear()
        crashes.HOW.update(before)

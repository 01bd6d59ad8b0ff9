"""The simulation with more faults and more witnesses, for the mutants.

requests     arrive although their client gave them up; EndTxn is sent again meanwhile (KAFKA-17754)
processes    two readers, consumers or sweepers of one name
Kafka        forgets a reader's position; shows some markers of a transaction, and not yet the others
disasters    an empty etcd, another Postgres; one that a test chooses comes in every course
witnesses    see who writes to etcd while another leads, and what is signed before it is sworn
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.custody.unsealed import UnsealedKey
from pipeline.ethereum.batch import Batch
from pipeline.ethereum.kernel import SignedColumns
from pipeline.ports import KeyValue, Txn, TxnResult
from pipeline.stages.signer import Signer
from pipeline.testing.broker import REQUEST_TIMEOUT_S, Broker
from pipeline.testing.network import Network, Request
from pipeline.testing.refusal import Code, Refused
from pipeline.testing.simulation import course, crashes, evidence
from pipeline.testing.simulation.cluster import KEK, SOURCE, Cluster, Member, Shape
from pipeline.testing.simulation.course import LOOK_S, RESUME_MAX_S, Verdict
from pipeline.testing.simulation.crashes import Crashes, Plan
from pipeline.testing.simulation.history import History, WitnessKernel
from pipeline.testing.simulation.loop import Process, SimulatedLoop
from pipeline.testing.simulation.nemesis import Nemesis
from pipeline.testing.simulation.story import Story
from pipeline.testing.simulation.weather import Weather
from pipeline.testing.simulation.wire import Fate, Fates, SimulatedNetwork
from pipeline.testing.store import TwinEtcd, TwinStore
from pipeline.testing.transaction import Coordinated
from pipeline.testing.transactions import SOCKET_TIMEOUT_S

T = TypeVar("T")

LATE: Final = {
    "arrives late": Fate(there_s=0.4, reset_s=0.005),
    "arrives very late": Fate(there_s=13.0, reset_s=0.005),
    "arrives after the next": Fate(there_s=SOCKET_TIMEOUT_S + 0.5, reset_s=0.005),
    "takes long": Fate(there_s=1.5),
}
"""More ways to fail at a boundary. What arrives late was given up when the connection broke, and asked again."""

RETRY_BACKOFF_S: Final = 0.1
OTHER_SYSTEM: Final = "7000000000000000002"
SWAP_S: Final = 1.5
"""Longer than a reader waits between two looks: all of them see their connections break."""

TORN_S: Final = 9.0
"""Longer than the sweeper waits for an assignment and between two sweeps."""

DOUBLED: Final = ("reader", "consumer", "sweeper")


class LateNetwork(SimulatedNetwork):
    """Knows when the last request that is under way arrives."""

    last_arrival_s = 0.0

    def later(self, delay_s: float, function: Callable[..., None], *args: Any) -> Any:
        """See SimulatedNetwork."""
        if function == self._arrive:
            self.last_arrival_s = max(self.last_arrival_s, self._loop.time() + delay_s)
        return super().later(delay_s, function, *args)


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


class WitnessStore(TwinStore):
    """Of one key manager; tells the history what it wrote while another one led."""

    def __init__(self, server: TwinEtcd, network: Network, wrong: list[str]) -> None:
        super().__init__(server, network)
        self._wrong = wrong
        self._claim: tuple[int, bytes] | None = None

    def _commit(self, txn: Txn) -> TxnResult:
        self.server.expire()
        path = evidence.PATHS.leader
        leads = _claim_of(self.server.get(path))
        result = super()._commit(txn)
        written = {key for key, _ in txn.puts} | set(txn.deletes)
        if result.succeeded and path in written:
            self._claim = _claim_of(self.server.get(path))
        elif result.succeeded and written and leads != self._claim:
            self._wrong.append(f"I7: {sorted(written)} were written under {self._claim}, while {leads} led")
        return result


def _claim_of(leader: KeyValue | None) -> tuple[int, bytes] | None:
    return None if leader is None else (leader.create_revision, leader.value)


class SwornKernel(WitnessKernel):
    """Tells what is signed before the ledger has it."""

    def __init__(self, history: History, cluster: Cluster, wrong: list[str]) -> None:
        super().__init__(history)
        self._cluster, self._wrong = cluster, wrong

    async def sign(self, batch: Batch, signable: NDArray[np.bool_], key: UnsealedKey, nonce: int) -> SignedColumns:
        """See WitnessKernel."""
        sworn = self._cluster.ledger.rows.get((batch.header.stream, batch.header.seq))
        if sworn is None:
            self._wrong.append(f"I7: batch {batch.header.seq} of {batch.header.stream} was signed, and not sworn")
        return await super().sign(batch, signable, key, nonce)


class HarshCluster(Cluster):
    """With witnesses, and processes that can be there twice."""

    network: LateNetwork
    broker: AskedAgain

    def __init__(self, loop: SimulatedLoop, fates: Fates, shape: Shape, story: Story) -> None:
        super().__init__(loop, fates, shape, story)
        self.network = self.database.network = LateNetwork(loop, fates)
        self.broker = AskedAgain(self.clock, self.network)
        self.doubles: list[Process] = []
        self.wrong: list[str] = []

    def store(self) -> TwinStore:
        """For one more key manager."""
        return WitnessStore(self.etcd, self.network, self.wrong)

    def key_manager(self, process: Process) -> Any:
        """See Cluster."""
        manager = super().key_manager(process)
        manager._store = manager._leadership._store = self.store()
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
    """Bound to one cluster; `disaster` comes in every course, and no other."""

    def __init__(self, cluster: HarshCluster, rng: random.Random, disaster: str = "") -> None:
        self._harsh = cluster
        super().__init__(cluster, rng)
        if disaster:
            self._disasters = [getattr(self, f"_{disaster}")]

    def _faults(self) -> list[Callable[[], None]]:
        return [*super()._faults(), self._forget_position, self._double, self._double, self._tear_markers]

    def _catastrophes(self) -> list[Callable[[], None]]:
        return [*super()._catastrophes(), self._empty_etcd, self._replace_postgres]

    def end(self) -> None:
        """See Nemesis. Torn markers become whole in their own time."""
        super().end()
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

    def _empty_etcd(self) -> None:
        self._disaster("etcd", "it is replaced by an empty one")
        self._harsh.etcd.restore(TwinEtcd(self._harsh.clock))

    def _replace_postgres(self) -> None:
        """The source was restored from an older dump into another cluster, whose sequence gives the same ids again."""
        source, database = self._harsh.source, self._harsh.database
        database.down = True
        self._disaster("postgres", "the source is another Postgres, restored from an older dump")

        def replaced() -> None:
            kept = sorted(source.rows)[: len(source.rows) // 2]
            source.rows = {tx_id: source.rows[tx_id] for tx_id in kept}
            source.system, source.used_ids = OTHER_SYSTEM, max(kept, default=0)
            database.down = False

        self._later(SWAP_S, replaced)


def run(seed: int, disaster: str = "", *, told: bool = False) -> Verdict:
    """As simulation.course.run, and harsher; with that disaster if one is named."""
    loop = SimulatedLoop()  # type: ignore[abstract] # what it lacks is I/O
    rng = random.Random(seed)
    story = Story(loop, kept=told)
    weather = Weather(rng, story)
    shape = Shape(keys=rng.choice([1, 2, 3]), batch_rows_max=rng.choice([1, 2, 3]))
    cluster = HarshCluster(loop, weather, shape, story)
    return loop.run(_followed(cluster, weather, rng, HarshNemesis(cluster, rng, disaster)))


def run_points(plan: Plan, *, told: bool = False) -> Verdict:
    """As simulation.crashes.run_points."""
    loop = SimulatedLoop()  # type: ignore[abstract] # as above
    story = Story(loop, kept=told)
    fates = Crashes(plan.points, story)
    cluster = HarshCluster(loop, fates, Shape(), story)
    if plan.lost_batch:
        loop.create_task(crashes.lose_batch(cluster))
    return loop.run(_followed(cluster, fates, random.Random(0), None))


async def _followed(cluster: HarshCluster, fates: Any, rng: random.Random, nemesis: Nemesis | None) -> Verdict:
    """The course, and what late requests do after its end."""
    verdict = await course._course(cluster, fates, rng, nemesis)
    late_s = cluster.network.last_arrival_s - cluster.loop.time()
    if not (verdict.breaches or verdict.faults["disaster"]) and late_s > 0:
        supervising = asyncio.ensure_future(cluster.supervise())
        await asyncio.sleep(late_s + LOOK_S)
        settled = await course._settle(cluster, cluster.loop.time() + RESUME_MAX_S)
        supervising.cancel()
        verdict.breaches.extend(course._breaches(cluster, settled=settled, disasters=0))
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

"""An operator after a disaster: etcd was lost or restored, everything is stopped, recovered, and started again.

The recovery is a process like any other: it can be killed at any await, its requests can be lost, and then it is run
again. Now and then the operator overlooks a process, which stands still meanwhile and goes on afterwards.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Final

from pipeline.assignment.records import StreamRecord
from pipeline.errors import Halted, OncesignError
from pipeline.stages.admission import Admission
from pipeline.stages.recovery import Recovery, RecoveryPorts
from pipeline.stages.remains import Remains, RemainsPorts
from pipeline.testing.batch_log import TwinBatchLog
from pipeline.testing.invariants import Lent
from pipeline.testing.round_writer import TwinRoundWriter
from pipeline.testing.simulation import evidence
from pipeline.testing.simulation.cluster import BATCHES, CHAIN, GROUP, SIGNED, SOURCE, Cluster, Shape
from pipeline.testing.simulation.course import LOOK_S, RESUME_MAX_S
from pipeline.testing.simulation.history import loan_of
from pipeline.testing.simulation.loop import Process, SimulatedLoop
from pipeline.testing.simulation.nemesis import Nemesis
from pipeline.testing.simulation.remote import RemoteManager
from pipeline.testing.simulation.story import Story
from pipeline.testing.simulation.weather import Weather
from pipeline.testing.simulation.workload import insert
from pipeline.testing.store import TwinEtcd, TwinStore
from pipeline.testing.stream_writer import TwinStreamWriter

TRIES_MAX: Final = 60
STEPS_MAX: Final = 120
"""A recovery that is killed is killed within so many awaits."""

KILLED_SHARE: Final = 0.5
KILLED_MAX: Final = 8
FOUND_S: Final = (0.5, 3.0, 15.0)
"""How long after the start an overlooked process lives on."""

OVERLOOKED_SHARE: Final = 0.3
LOST_SHARE: Final = 0.5
PAUSE_S: Final = 1.0
STORM_S: Final = 1.5
NOTICED_S: Final = (0.0, 0.0, 0.05, 0.5, 3.0)
"""How long after the disaster everything is stopped."""

ROWS: Final = 8


def recovery_of(cluster: Cluster, process: Process) -> Recovery:
    """The real one over the twins, with connections that end with its process."""
    ledger = cluster.ledger.client()
    process.ended.append(ledger.drop)
    slots = [f"local-consumer-{slot}" for slot in range(cluster.shape.consumers)]
    rounds = [TwinRoundWriter(cluster.broker, name) for name in [*slots, "local-sweeper"]]
    streams = {stream: TwinStreamWriter(cluster.broker, "local", stream, BATCHES) for stream in cluster.streams}
    log = TwinBatchLog(cluster.broker, GROUP)
    found = RemainsPorts(ledger, log, cluster.outcomes, {SOURCE: cluster.source}, streams)
    admission = Admission({SOURCE: CHAIN}, {BATCHES: SOURCE})
    settings = cluster.settings
    remains = Remains(found, settings.sources, admission, cluster.outlets, settings.node)
    ports = RecoveryPorts(TwinStore(cluster.etcd, cluster.network), found, rounds, cluster.clock)
    return Recovery(settings.deployment, settings.node, ports, remains, settings.etcd, SIGNED)


class Faults(Nemesis):
    """Everything but disasters, and what needs an operator of its own."""

    def _faults(self) -> list[Callable[[], None]]:
        return [deed for deed in super()._faults() if deed != self._shrink_messages]

    def _catastrophes(self) -> list[Callable[[], None]]:
        return []


class Operator:
    """Of one cluster."""

    def __init__(self, cluster: Cluster, rng: random.Random, killed_at: int | None) -> None:
        """With `killed_at` the first recovery is killed at that await, and no other one."""
        self._cluster, self._rng, self._killed_at = cluster, rng, killed_at
        self._overlooked: Process | None = None
        self.tries = 0
        self.supervising = asyncio.ensure_future(cluster.supervise())

    def lose_etcd(self) -> None:
        """All of it: another one, empty, is put in its place."""
        self._cluster.story.fault("disaster", "etcd", "DISASTER: all its data is gone")
        self._cluster.etcd.restore(TwinEtcd(self._cluster.clock))

    def restore_etcd(self, backup: TwinEtcd) -> None:
        """An older copy is put in its place."""
        self._cluster.story.fault("disaster", "etcd", "DISASTER: it is restored from a backup, revisions included")
        self._cluster.etcd.restore(backup)

    async def mend(self) -> None:
        """Stop everything, recover until that has succeeded, start everything."""
        self._stop()
        while not await self._recovered():
            await self._cluster.clock.sleep(PAUSE_S)
        self._cluster.history.lent = list(_still_lent(self._cluster))
        self._cluster._start(self._cluster.members[0])  # noqa: SLF001 - the key manager first, as the driver does
        while not await self._prepared():
            await self._cluster.clock.sleep(PAUSE_S)
        self._start()

    def _stop(self) -> None:
        self.supervising.cancel()
        processes = [member.process for member in self._cluster.members if member.process is not None]
        processes += [actor.process for actor in self._cluster.managers]
        if self._killed_at is None and self._rng.random() < OVERLOOKED_SHARE:
            self._overlooked = self._rng.choice(processes)
            self._overlooked.freeze()
            self._cluster.story.fault("overlooked", self._overlooked.name, "stands still, and is not stopped")
        for member in self._cluster.members:
            member.failed = None
        for process in processes:
            if process is not self._overlooked:
                process.kill()

    def _start(self) -> None:
        if self._overlooked is not None:
            for member in self._cluster.members:
                if member.process is self._overlooked:
                    member.process = None  # another is started beside it
            self._overlooked.thaw()
            self._cluster.network.later(self._rng.choice(FOUND_S), self._overlooked.kill)
        self.supervising = asyncio.ensure_future(self._cluster.supervise())

    async def _recovered(self) -> bool:
        """One run of the recovery; False when it must be run again. Raises what no other run would mend."""
        self.tries += 1
        if self.tries > TRIES_MAX:
            raise RuntimeError("the recovery does not come to its end")
        process = Process(self._cluster.loop, f"recover.{self.tries}")
        story = self._cluster.story
        steps = self._killed_at if self.tries == 1 else None
        if self._killed_at is None and self._rng.random() < KILLED_SHARE and self.tries < KILLED_MAX:
            steps = self._rng.randint(0, STEPS_MAX)
        if steps is not None:
            story.fault("kill", process.name, f"is killed at its await number {steps} from now")
            process.kill_after(steps)
        died = asyncio.get_running_loop().create_future()
        process.ended.append(lambda: died.set_result(None))
        task = process.spawn(recovery_of(self._cluster, process).repair())
        await asyncio.wait([task, died], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return False
        try:
            differences = task.result()
        except Halted as error:
            story.tell(process.name, f"is refused: {error}")
            self._find_overlooked(error)
            return False
        except OncesignError as error:
            story.tell(process.name, f"failed: {error}")
            return False
        finally:
            process.kill()
        for difference in differences:
            story.tell(process.name, f"changed {difference}")
        return True

    def _find_overlooked(self, error: Halted) -> None:
        """What could still sign, the operator looks for and stops; that there is nothing such would be a fault."""
        if "cannot be rebuilt" in str(error):
            raise error
        if self._overlooked is not None and not self._overlooked.dead:
            self._overlooked.kill()

    async def _prepared(self) -> bool:
        """The streams are there (stages.preparation), and the halts from between disaster and stop are taken off."""
        manager = RemoteManager(self._cluster)
        key_manager = self._cluster.members[0]
        if key_manager.process is None or key_manager.process.dead:
            self._cluster._start(key_manager)  # noqa: SLF001
        try:
            for stream in self._cluster.streams:
                await manager.open_stream(StreamRecord(stream, CHAIN, self._cluster.source.system))
                await manager.unhalt(stream)
        except OncesignError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one course of events came to."""

    breaches: list[str]
    tries: int  #: runs of the recovery
    story: Story


def run(seed: int, *, told: bool = False, killed_at: int | None = None) -> Outcome:
    """A storm, a disaster of etcd, an operator.

    With `killed_at` no request is lost, and the first recovery is killed at that await if it takes so many.
    """
    loop = SimulatedLoop()  # type: ignore[abstract] # what it lacks is I/O
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    story = Story(loop, kept=told)
    weather = Weather(rng, story)
    cluster = Cluster(loop, weather, Shape(keys=rng.choice([1, 2, 3]), batch_rows_max=rng.choice([1, 2, 3])), story)
    return loop.run(_course(cluster, weather, rng, killed_at))


async def _course(cluster: Cluster, weather: Weather, rng: random.Random, killed_at: int | None) -> Outcome:
    operator = Operator(cluster, rng, killed_at)
    await cluster.start()
    weather.calm = killed_at is not None
    nemesis = Faults(cluster, rng)
    inserting = asyncio.ensure_future(insert(cluster.source, rng, cluster.story, ROWS, STORM_S))
    raging = asyncio.ensure_future(nemesis.rage(STORM_S))
    await asyncio.sleep(rng.random() * STORM_S)
    backup = cluster.etcd.backup()
    await asyncio.sleep(rng.random() * STORM_S)
    if rng.random() < LOST_SHARE:
        operator.lose_etcd()
    else:
        operator.restore_etcd(backup)
    await asyncio.sleep(rng.choice(NOTICED_S))
    await operator.mend()
    await asyncio.gather(inserting, raging)
    weather.calm = True
    nemesis.end()
    breaches = [*_breaches(cluster, settled=await _settled(cluster))]
    return Outcome(breaches, operator.tries, cluster.story)


async def _settled(cluster: Cluster) -> bool:
    until_s = cluster.loop.time() + RESUME_MAX_S
    while cluster.loop.time() < until_s:
        await asyncio.sleep(LOOK_S)
        if evidence.is_settled(cluster):
            return True
    return False


def _breaches(cluster: Cluster, *, settled: bool) -> Iterator[str]:
    yield from evidence.breaches_always(cluster)
    if not settled:
        yield f"I9: not settled {RESUME_MAX_S:.0f} s after the recovery: {evidence.unsettled(cluster)}"
    yield from evidence.stuck(cluster)
    if settled:
        yield from evidence.breaches_when_settled(cluster)


def _still_lent(cluster: Cluster) -> Iterator[tuple[Hashable, int, Lent]]:
    """What was lent before the disaster, as far as it counts: what etcd lost and nobody signed was never lent."""
    counts = {batch: evidence.lent_of(entry) for batch, entry in cluster.ledger.rows.items()}
    for batch, held in evidence.view(cluster.etcd).assignments.items():
        _, _, counts[batch] = loan_of(held.record)
    for stream, seq, _ in cluster.history.lent:
        if (stream, seq) in counts:
            yield stream, seq, counts[stream, seq]  # type: ignore[index] # streams, where the checker takes anything

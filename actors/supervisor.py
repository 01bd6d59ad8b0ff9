"""The supervisor as a Ray actor: gives every actor of the crew its work, again after each death, with growing pauses.

Ray starts a dead process again (max_restarts); the new process knows nothing, says `idle`, and is given its work. A
stage that ended with an error is started again after a pause, unless another start cannot help: then the supervisor
holds that error, and the driver ends the job with it. A supervisor that dies leaves the crew at work.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import ray

from actors import composition
from actors import crew as crews
from actors.clients import LET_GO_TIMEOUT_S, RemoteKeyManager, SignerPool, ask
from actors.composition import bus, sweeping, tables
from actors.crew import Crew
from actors.host import StageHost, StageState, StageStatus
from actors.key_manager import NAME as KEY_MANAGER
from actors.member import KINDS, STAGES, Member, members, merged, signing
from actors.metrics import PUBLISH_EVERY_S, TELEMETRY, publishing
from actors.names import CALL_TIMEOUT_S, START_TIMEOUT_S, find, running
from actors.scaling import SCALE_EVERY_S, Scale
from pipeline.errors import DependencyDown, NotLeader, OncesignError, RuntimeFault
from pipeline.journal import Journal
from pipeline.settings import Settings
from pipeline.stages import figures
from pipeline.stages.backoff import Backoff
from pipeline.stages.consumer import Worker
from pipeline.stages.lag import Lag
from pipeline.stages.loops import again, cancel, together, wait
from pipeline.stages.sweeper import SweepCount
from pipeline.stream import Stream
from pipeline.telemetry import ACTORS, RESTARTS, STREAMS_HALTED, Growth

journal = Journal(__name__, "supervisor")

SUPERVISE_EVERY_S: Final = 1.0
AGAIN_S: Final = 10.0
"""Before a pipeline without a job looks once more for a server that was away for too long."""

PREPARE_TIMEOUT_S: Final = 60.0
NAME: Final = "supervisor"
CLAIM_S: Final = 15.0
"""A job that asked nothing for so long is gone, and another may follow the pipeline."""


@dataclass(slots=True)
class PipelineStatus:
    """How the pipeline is, as the driver and the command line see it."""

    pid: int = 0
    error: OncesignError | None = None
    members: dict[str, StageStatus | None] = field(default_factory=dict)
    drained: bool = False
    halted: dict[str, str] = field(default_factory=dict)
    restarts: int = 0


@ray.remote
class SupervisorActor:
    """One per job at a time."""

    def __init__(self, settings: Settings, crew: Crew, stamp: str) -> None:
        """`stamp` is what actors.stamp makes of the code and settings that the crew was made with."""
        self._settings = composition.here(settings)
        self._crew = crew
        self._stamp = stamp
        self._follower = ""
        self._followed_s = -CLAIM_S
        self._members: list[Member] = []
        self._host = StageHost("supervisor")
        self._seqs: dict[str, int] = {}
        self._ready = False
        self._signers = SignerPool({}, 1)
        self._told: set[str] = set()  #: signers, to all that give out batches
        self._lag = Lag()
        self._swept = SweepCount()
        # Ray makes it anew after its node died, perhaps when no job is there to start it. Ray runs this method in the
        # actor's loop, so no call has to find its way to a process that is just coming up.
        self._starting = asyncio.create_task(self.start(), name="start")

    def __repr__(self) -> str:
        return NAME

    async def stamp(self) -> str:
        """What the crew was made of."""
        return self._stamp

    async def follow(self, job: str) -> None:
        """This job follows and ends the pipeline. Raises NotLeader while another one does."""
        now_s = time.monotonic()
        if job != self._follower and now_s - self._followed_s < CLAIM_S:
            raise NotLeader(
                f"deployment {self._settings.deployment} is being signed already, by job {self._follower}.",
                hint="Stop that job with `ray job stop`, or let it end.",
            )
        self._follower, self._followed_s = job, now_s

    async def start(self) -> None:
        """Bring the pipeline up in the background."""
        composition.start_logging()

        async def run(stop: asyncio.Event) -> None:
            await again(partial(self._run, stop), stop, AGAIN_S, self._goes_on)

        self._host.start(run)

    async def _run(self, stop: asyncio.Event) -> None:
        async with bus.topics(self._settings) as self._topics:
            await self._prepare(stop)
            self._find_signers()
            self._members = members(self._settings, self._crew)
            self._ready = True
            await together(
                self._supervise(stop), self._sweep(stop), self._scale(stop), self._tell(stop), self._publish(stop)
            )

    def _goes_on(self, error: OncesignError) -> bool:
        """Of a pipeline that nobody follows: a job that does ends with the error instead."""
        followed = time.monotonic() - self._followed_s < CLAIM_S
        goes_on = self._settings.pool.placed and not followed and isinstance(error, DependencyDown | RuntimeFault)
        if goes_on:
            journal.failed("starts over", error=error)
        return goes_on

    async def status(self, *, look: bool) -> PipelineStatus:
        """Whether it is drained is looked at only if told to: that asks Postgres, Kafka and etcd. Never raises."""
        own = self._host.status()
        errors = [own.error] + [m.status.error for m in self._members if m.status is not None and m.status.fatal]
        return PipelineStatus(
            pid=os.getpid(),
            error=next((error for error in errors if error is not None), None),
            members={member.name: member.status for member in self._members},
            drained=look and self._ready and own.error is None and await self._drained(),
            halted=self._halted(),
            restarts=sum(member.restarts for member in self._members),
        )

    async def drain(self) -> None:
        """Readers first, then consumers with what they hold, then the rest; the key manager last.

        On a cluster with node groups the key manager stays: it serves other clients, too.
        """
        for prefix in STAGES:
            actors = [member.actor for member in self._members if member.name.startswith(prefix)]
            await asyncio.gather(*(actor.drain.remote() for actor in actors), return_exceptions=True)
        await self._host.drain()
        for member in self._members:
            if member.name != KEY_MANAGER:
                ray.kill(member.actor, no_restart=True)
        if self._settings.pool.placed:
            return
        await asyncio.gather(self._crew.key_manager.drain.remote(), return_exceptions=True)
        ray.kill(self._crew.key_manager, no_restart=True)

    # ── bringing up ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _prepare(self, stop: asyncio.Event) -> None:
        """Lead, then topics and streams; what a server on its way up refuses is asked again, within a bound."""
        backoff = Backoff(composition.CLOCK, give_up_s=PREPARE_TIMEOUT_S)
        while not stop.is_set():
            try:
                await self._lead()
                await tables.prepare(self._settings, RemoteKeyManager(self._crew.key_manager), self._topics)
            except (DependencyDown, RuntimeFault) as error:
                journal.failed("tries again", error=error)
                await backoff.pause(error)
            else:
                return

    async def _lead(self) -> None:
        """Wait until the key manager leads. Raises its refusal."""
        status: StageStatus = await ask(self._crew.key_manager.status.remote(), START_TIMEOUT_S, "the key manager")
        if status.error is not None:
            raise status.error

    # ── keeping it up ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _supervise(self, stop: asyncio.Event) -> None:
        looks: dict[str, asyncio.Task[None]] = {}
        try:
            while not stop.is_set():
                now_s = time.monotonic()
                for member in self._members:  # each by itself: one whose node is gone does not answer for long
                    if member.is_due(now_s) and (member.name not in looks or looks[member.name].done()):
                        looks[member.name] = asyncio.create_task(member.look(now_s))
                await asyncio.sleep(SUPERVISE_EVERY_S)
        finally:
            await cancel(looks.values())

    async def _sweep(self, stop: asyncio.Event) -> None:
        worker = Worker(f"sweeper.{os.getpid()}", self._settings.node)
        manager = RemoteKeyManager(self._crew.key_manager)
        try:
            async with sweeping.sweeper(self._settings, worker, manager, self._signers) as sweeper:
                self._swept = sweeper.count
                await sweeper.run(stop)
        finally:
            await self._signers.close()

    # ── more signers, fewer signers ──────────────────────────────────────────────────────────────────────────────────

    def _find_signers(self) -> None:
        """Those that were made before this process was."""
        present = running(self._settings.deployment) if self._settings.pool.placed else []
        for name in present:
            if name.startswith("signer-") and name not in self._crew.signers:
                self._crew.signers[name] = find(name, self._settings.deployment)
        self._signers = SignerPool(self._crew.signers, self._settings.pool.batches_per_signer)

    async def _scale(self, stop: asyncio.Event) -> None:
        pool = self._settings.pool
        if not pool.placed or pool.signers_max <= pool.signers:
            return
        scale = Scale(pool.signers, pool.signers_max)
        while not stop.is_set():
            await asyncio.sleep(SCALE_EVERY_S)
            try:
                await self._scale_to(scale.wanted(await self._backlog(), len(self._crew.signers), time.monotonic()))
            except OncesignError as error:
                journal.failed("the number of signers stays", error=error)

    async def _scale_to(self, wanted: int) -> None:
        for slot in range(len(self._crew.signers), wanted):
            name = crews.signer_name(slot)
            self._crew.signers[name] = await crews.signer(self._settings, slot)
            self._members.append(signing(name, self._crew.signers[name]))
            journal.succeeded("signer asked for", actor=name)
        gone = [crews.signer_name(slot) for slot in range(wanted, len(self._crew.signers))]
        ended = {name: self._crew.signers.pop(name) for name in gone}
        self._members = [member for member in self._members if member.name not in ended]
        await self._tell_signers(let_go=gone)
        for name, actor in ended.items():
            ray.kill(actor, no_restart=True)
            journal.succeeded("signer let go", actor=name)

    async def _tell(self, stop: asyncio.Event) -> None:
        """Whoever gives out batches, when there is another signer or one less."""
        while not stop.is_set():
            await asyncio.sleep(SUPERVISE_EVERY_S)
            if self._answering().keys() != self._told:
                await self._tell_signers()

    def _answering(self) -> dict[str, Any]:
        """Signers by name. One whose node is still to come, or leaves, would keep a batch waiting."""
        ready = {member.name for member in self._members if member.answered and not member.leaves}
        return {name: actor for name, actor in self._crew.signers.items() if name in ready}

    async def _tell_signers(self, let_go: Collection[str] = ()) -> None:
        """A consumer that is away meanwhile is told again, or finds out by itself."""
        signers = self._answering()
        self._signers.use(signers)
        told = await self._ask_consumers("use", signers)
        if let_go:
            await self._signers.let_go(let_go)
            await self._ask_consumers("let_go", [*let_go])
        self._told = set(signers) if told else set()

    async def _ask_consumers(self, method: str, *args: Any) -> bool:
        """Whether all of them answered."""
        calls = [getattr(consumer, method).remote(*args) for consumer in self._crew.consumers]
        answers = await asyncio.gather(
            *(ask(call, LET_GO_TIMEOUT_S + 1, "a consumer") for call in calls), return_exceptions=True
        )
        return not any(isinstance(answer, BaseException) for answer in answers)

    async def _backlog(self) -> int:
        """Batches in Kafka that no consumer has committed. Raises BusUnavailable."""
        seqs = self._heads()
        self._lag.take(seqs, await self._committed())
        return self._lag.total

    def _heads(self) -> dict[str, int]:
        """The last batch that each stream's reader has put into Kafka."""
        return merged([member for member in self._members if member.name.startswith("reader")], "seq")

    async def _committed(self) -> dict[str, int]:
        """The last committed batch of each stream that has an offset. Raises BusUnavailable."""
        committed: dict[str, int] = {}
        for source in self._settings.sources:
            progress = await self._topics.progress(self._settings.deployment, source)
            committed |= {str(Stream(source.name, shard)): at.seq for shard, at in progress.items()}
        return committed

    # ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _publish(self, stop: asyncio.Event) -> None:
        growth = Growth(TELEMETRY)
        async with publishing(lambda: self._tell_figures(growth)):
            while not await wait(stop, PUBLISH_EVERY_S):
                if self._lag.is_due(self._heads()):
                    try:
                        await self._backlog()
                    except OncesignError as error:
                        journal.failed("the lag is not known", error=error)

    def _tell_figures(self, growth: Growth) -> None:
        self._lag.tell(TELEMETRY, [source.name for source in self._settings.sources], self._halted())
        TELEMETRY.set(STREAMS_HALTED, len(self._halted()))
        figures.of_sweeper(growth, self._swept)
        actors: Counter[str] = Counter(member.stage for member in self._members)
        restarts: Counter[str] = Counter()
        for member in self._members:
            restarts[member.stage] += member.restarts
        for kind in KINDS:
            TELEMETRY.set(ACTORS, actors[kind], stage=kind)
            growth.tell(RESTARTS, restarts[kind], stage=kind)

    # ── a node that is about to end ──────────────────────────────────────────────────────────────────────────────────

    async def leave(self, ray_node: str) -> None:
        """What runs on that Ray node finishes what it holds and takes nothing new; it goes on elsewhere."""
        leaving = [m for m in self._members if m.status is not None and m.status.ray_node == ray_node]
        for member in leaving:
            member.leaving = ray_node
        await self._tell_signers(let_go=[m.name for m in leaving if m.name in self._crew.signers])
        for member in leaving:
            if member.name.startswith(STAGES):
                await ask(member.actor.drain.remote(), CALL_TIMEOUT_S, member.name)
        if any(member.name == KEY_MANAGER for member in leaving):
            await ask(self._crew.key_manager.leave.remote(ray_node), CALL_TIMEOUT_S, KEY_MANAGER)

    # ── drained? ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _drained(self) -> bool:
        """Everything that was committed is in a batch, every batch is committed by the consumers, and released.

        Halted streams aside. The order matters: rows first, then batches, then assignments, so that nothing moves from
        a place not yet looked at to one already looked at.
        """
        readers = [member for member in self._members if member.name.startswith("reader")]
        seqs = merged(readers, "seq")
        if seqs != self._seqs or not all(
            m.status is not None and m.status.state is StageState.RUNNING for m in readers
        ):
            self._seqs = seqs  # still reading: look closer when nothing came between two looks
            return False
        try:
            return not await self._rows_wait(readers) and not await self._batches_left()
        except OncesignError:
            return False

    async def _rows_wait(self, readers: list[Member]) -> bool:
        return any([await ask(r.actor.rows_wait.remote(), CALL_TIMEOUT_S, r.name) for r in readers])

    async def _batches_left(self) -> int:
        halted, committed = self._halted(), await self._committed()
        streams = [str(Stream(source.name, n)) for source in self._settings.sources for n in range(source.shards)]
        left = sum(stream not in halted and committed.get(stream, 0) != self._seqs.get(stream, 0) for stream in streams)
        assignments = await RemoteKeyManager(self._crew.key_manager).assignments()
        return left + sum(str(a.stream) not in halted for a in assignments)

    def _halted(self) -> dict[str, str]:
        return merged(self._members, "halted")

"""The supervisor as a Ray actor: gives every actor of the crew its work, again after each death, with growing pauses.

Ray starts a dead process again (max_restarts); the new process knows nothing, says `idle`, and is given its work. A
stage that ended with an error is started again after a pause, unless another start cannot help: then the supervisor
holds that error, and the driver ends the job with it. A supervisor that dies leaves the crew at work.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import ray

from actors import composition
from actors.clients import RemoteKeyManager, SignerPool, ask
from actors.crew import Crew
from actors.host import StageHost, StageState, StageStatus
from actors.key_manager import NAME as KEY_MANAGER
from actors.names import CALL_TIMEOUT_S, START_TIMEOUT_S
from pipeline.errors import DependencyDown, OncesignError, RuntimeFault
from pipeline.settings import Settings
from pipeline.stages.backoff import Backoff
from pipeline.stages.consumer import Worker
from pipeline.stream import Stream

log = logging.getLogger(__name__)

SUPERVISE_EVERY_S: Final = 1.0
RESTART_FIRST_S: Final = 0.5
RESTART_LONGEST_S: Final = 15.0
HEALTHY_AFTER_S: Final = 30.0
"""A stage that ran this long starts over with the shortest pause."""

PREPARE_TIMEOUT_S: Final = 60.0


@dataclass(slots=True)
class Member:
    """One actor under supervision."""

    name: str
    actor: Any
    start: Callable[[], Awaitable[None]]
    status: StageStatus | None = None
    pause_s: float = RESTART_FIRST_S
    started_s: float = 0.0
    starts: int = 0
    answered: bool = False

    async def look(self, now_s: float) -> None:
        """Ask how it is, and start it when it does not run and its pause is over."""
        timeout_s = CALL_TIMEOUT_S if self.answered else START_TIMEOUT_S
        try:
            self.status = await ask(self.actor.status.remote(), timeout_s, self.name)
            self.answered = True
            if self.status.state is not StageState.RUNNING and not self.status.fatal:
                await self._start(now_s)
        except OncesignError as error:
            log.warning("%s: failed: %s", self.name, error)
            self.answered = False

    async def _start(self, now_s: float) -> None:
        if self.starts and now_s - self.started_s < self.pause_s:
            return
        longer = min(self.pause_s * 2, RESTART_LONGEST_S)
        self.pause_s = RESTART_FIRST_S if now_s - self.started_s > HEALTHY_AFTER_S else longer
        self.started_s = now_s
        self.starts += 1
        await self.start()


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

    def __init__(self, settings: Settings, crew: Crew) -> None:
        self._settings = settings
        self._crew = crew
        self._members: list[Member] = []
        self._host = StageHost("supervisor")
        self._seqs: dict[str, int] = {}
        self._ready = False

    def __repr__(self) -> str:
        return "supervisor"

    async def start(self) -> None:
        """Bring the pipeline up in the background."""
        composition.start_logging()

        async def run(stop: asyncio.Event) -> None:
            async with composition.topics(self._settings) as self._topics:
                await self._prepare(stop)
                self._members = _members(self._settings, self._crew)
                self._ready = True
                await asyncio.gather(self._supervise(stop), self._sweep(stop))

        self._host.start(run)

    async def status(self) -> PipelineStatus:
        """Never raises."""
        own = self._host.status()
        errors = [own.error] + [m.status.error for m in self._members if m.status is not None and m.status.fatal]
        return PipelineStatus(
            pid=os.getpid(),
            error=next((error for error in errors if error is not None), None),
            members={member.name: member.status for member in self._members},
            drained=self._ready and own.error is None and await self._drained(),
            halted=self._halted(),
            restarts=sum(max(0, member.starts - 1) for member in self._members),
        )

    async def drain(self) -> None:
        """Readers first, then consumers with what they hold, then the rest; the key manager last."""
        for prefix in ("reader", "consumer", "tx-verifier"):
            actors = [member.actor for member in self._members if member.name.startswith(prefix)]
            await asyncio.gather(*(actor.drain.remote() for actor in actors), return_exceptions=True)
        await self._host.drain()
        await asyncio.gather(self._crew.key_manager.drain.remote(), return_exceptions=True)
        ray.kill(self._crew.key_manager, no_restart=True)

    # ── bringing up ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _prepare(self, stop: asyncio.Event) -> None:
        """Lead, then topics and streams; what a server on its way up refuses is asked again, within a bound."""
        backoff = Backoff(composition.CLOCK, give_up_s=PREPARE_TIMEOUT_S)
        while not stop.is_set():
            try:
                await self._lead()
                await composition.prepare(self._settings, RemoteKeyManager(self._crew.key_manager), self._topics)
            except (DependencyDown, RuntimeFault) as error:
                log.warning("supervisor: failed, tries again: %s", error)
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
        while not stop.is_set():
            now_s = time.monotonic()
            await asyncio.gather(*(member.look(now_s) for member in self._members))
            await asyncio.sleep(SUPERVISE_EVERY_S)

    async def _sweep(self, stop: asyncio.Event) -> None:
        worker = Worker(f"sweeper.{os.getpid()}", self._settings.node)
        manager = RemoteKeyManager(self._crew.key_manager)
        signers = SignerPool(self._crew.signers, self._settings.pool.batches_per_signer)
        async with composition.sweeper(self._settings, worker, manager, signers) as sweeper:
            await sweeper.run(stop)

    # ── drained? ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _drained(self) -> bool:
        """Everything that was committed is in a batch, every batch is committed by the consumers, and released.

        Halted streams aside. The order matters: rows first, then batches, then assignments, so that nothing moves from
        a place not yet looked at to one already looked at.
        """
        readers = [member for member in self._members if member.name.startswith("reader")]
        seqs = _merged(readers, "seq")
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
        halted = self._halted()
        left = 0
        for source in self._settings.sources:
            progress = await self._topics.progress(self._settings.deployment, source)
            for shard in range(source.shards):
                stream = str(Stream(source.name, shard))
                done = progress[shard].seq if shard in progress else 0
                left += stream not in halted and done != self._seqs.get(stream, 0)
        assignments = await RemoteKeyManager(self._crew.key_manager).assignments()
        return left + sum(str(a.stream) not in halted for a in assignments)

    def _halted(self) -> dict[str, str]:
        return _merged(self._members, "halted")


def _members(settings: Settings, crew: Crew) -> list[Member]:
    """Every actor of the crew with how it is given its work."""
    members = [Member(KEY_MANAGER, crew.key_manager, _nothing)]
    members += [Member(f"signer-{slot}", actor, _nothing) for slot, actor in enumerate(crew.signers)]
    for place, reader in zip(composition.reader_places(settings), crew.readers, strict=True):
        start = partial(reader.start.remote, settings, place.source, place.shards, crew.key_manager)
        members.append(Member(place.name, reader, start))
    for slot, consumer in enumerate(crew.consumers):
        start = partial(consumer.start.remote, settings, crew.key_manager, crew.signers)
        members.append(Member(f"consumer-{slot}", consumer, start))
    if crew.verifier is not None:
        members.append(Member("tx-verifier", crew.verifier, partial(crew.verifier.start.remote, settings)))
    return members


def _merged(members: list[Member], count: str) -> dict[str, Any]:
    """One mapping out of each member's."""
    merged: dict[str, Any] = {}
    for member in members:
        if member.status is not None:
            merged |= member.status.counts.get(count, {})
    return merged


async def _nothing() -> None:
    """For an actor that starts by being asked how it is."""

"""The actors under supervision: how each is given its work, and started again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from actors import composition
from actors.broadcaster import NAME as BROADCASTER
from actors.clients import ask
from actors.crew import Crew
from actors.host import StageState, StageStatus
from actors.key_manager import NAME as KEY_MANAGER
from actors.names import CALL_TIMEOUT_S, START_TIMEOUT_S
from pipeline.errors import ActorBroken, OncesignError
from pipeline.journal import Journal
from pipeline.settings import Settings

journal = Journal(__name__, "supervisor")

RESTART_FIRST_S: Final = 0.5
RESTART_LONGEST_S: Final = 15.0
LOOK_S: Final = 2.0
"""Between two looks at one that runs."""

HEALTHY_AFTER_S: Final = 30.0
"""A stage that ran this long starts over with the shortest pause."""

STAGES: Final = ("reader", "consumer", "tx-verifier", BROADCASTER)
"""Names of actors with a stage that drains begin so, in the order of the flow."""

KINDS: Final = (*STAGES, "signer", KEY_MANAGER)
"""Names of all actors begin so."""


@dataclass(slots=True)
class Member:
    """One actor under supervision."""

    name: str
    actor: Any
    start: Callable[[], Awaitable[None]]
    status: StageStatus | None = None
    pause_s: float = RESTART_FIRST_S
    started_s: float = 0.0
    looked_s: float = -LOOK_S
    starts: int = 0
    started_as: tuple[str, int] = ("", 0)  #: node and pid
    restarts: int = 0  #: of its process or of its stage alone
    answered: bool = False
    leaving: str = ""  #: the Ray node that is about to end, where it is not started again

    @property
    def stage(self) -> str:
        """What kind of actor it is."""
        return next(kind for kind in KINDS if self.name.startswith(kind))

    @property
    def leaves(self) -> bool:
        """Whether it is still on a node that is about to end."""
        return self.status is not None and bool(self.leaving) and self.status.ray_node == self.leaving

    def is_due(self, now_s: float) -> bool:
        """Whether it should be looked at."""
        runs = self.answered and self.status is not None and self.status.state is StageState.RUNNING
        return not runs or now_s - self.looked_s >= LOOK_S

    async def look(self, now_s: float) -> None:
        """Ask how it is, and start it when it does not run and its pause is over."""
        self.looked_s = now_s
        timeout_s = CALL_TIMEOUT_S if self.answered else START_TIMEOUT_S
        try:
            status: StageStatus = await ask(self.actor.status.remote(), timeout_s, self.name)
            if self.status is not None and self.status.process != status.process:
                self.restarts += 1  # Ray made its process anew
            self.status, self.answered = status, True
            idle = status.state is not StageState.RUNNING and not status.fatal
            if idle and not self.leaves:
                await self._start(now_s, status.process)
        except OncesignError as error:
            journal.failed("does not answer", actor=self.name, error=error)
            self.answered = False
            if isinstance(error, ActorBroken):  # Ray makes no other process after a constructor has failed
                self.status = StageStatus(StageState.FAILED, 0, error, ray_node="")

    async def _start(self, now_s: float, process: tuple[str, int]) -> None:
        if self.starts and now_s - self.started_s < self.pause_s:
            return
        longer = min(self.pause_s * 2, RESTART_LONGEST_S)
        self.pause_s = RESTART_FIRST_S if now_s - self.started_s > HEALTHY_AFTER_S else longer
        self.started_s = now_s
        self.starts += 1
        if process == self.started_as and self.start is not nothing:
            self.restarts += 1  # its stage had ended, its process not
        self.started_as = process
        await self.start()


def members(settings: Settings, crew: Crew) -> list[Member]:
    """Every actor of the crew with how it is given its work."""
    found = [Member(KEY_MANAGER, crew.key_manager, nothing)]
    found += [signing(name, actor) for name, actor in crew.signers.items()]
    for place, reader in zip(composition.reader_places(settings), crew.readers, strict=True):
        start = partial(reader.start.remote, settings, place.source, place.shards, crew.key_manager)
        found.append(Member(place.name, reader, start))
    for slot, consumer in enumerate(crew.consumers):
        start = partial(consumer.start.remote, settings, crew.key_manager, crew.signers)
        found.append(Member(f"consumer-{slot}", consumer, start))
    if crew.verifier is not None:
        found.append(Member("tx-verifier", crew.verifier, partial(crew.verifier.start.remote, settings)))
    if crew.broadcaster is not None:
        found.append(Member(BROADCASTER, crew.broadcaster, partial(crew.broadcaster.start.remote, settings)))
    return found


def merged(found: list[Member], count: str) -> dict[str, Any]:
    """One mapping out of each member's."""
    together: dict[str, Any] = {}
    for member in found:
        if member.status is not None:
            together |= member.status.counts.get(count, {})
    return together


def signing(name: str, actor: Any) -> Member:
    """A signer; it needs no work to be given."""
    return Member(name, actor, nothing)


async def nothing() -> None:
    """For an actor that starts by being asked how it is."""

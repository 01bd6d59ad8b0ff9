"""Between a client and a server in memory: a request travels, has its effect, and its answer travels back.

A request travels on its own: a client that gives up, or is cancelled, does not take it back.

    client ── request ──▶ (BEFORE) ──▶ effect ──▶ (AFTER) ── answer ──▶ client
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

from pipeline.ports import Clock

T = TypeVar("T")


class Moment(Enum):
    """Where a request is."""

    BEFORE = auto()
    AFTER = auto()


class Unanswered(Exception):
    """No answer came. `sent` is False when the request certainly had no effect and never will."""

    def __init__(self, detail: str, *, sent: bool = True) -> None:
        self.sent = sent
        super().__init__(detail)


class Request(NamedTuple):
    """The protocol's own name of a request, whose it is, and of which server it is asked."""

    name: str
    client: str = ""
    server: str = "kafka"


class Network(Protocol):
    """How requests reach their server."""

    async def call(self, request: Request, effect: Callable[[], T], within_s: float) -> T:
        """What `effect` returns or raises, else Unanswered after `within_s` at the latest."""
        ...


class InstantNetwork:
    """Every answer comes at once; other tasks run in between."""

    async def call(self, request: Request, effect: Callable[[], T], within_s: float) -> T:  # noqa: ARG002
        """See Network."""
        await asyncio.sleep(0)
        answer = effect()
        await asyncio.sleep(0)
        return answer


Hook: TypeAlias = Callable[[Request, Moment], Awaitable[None]]
"""Awaited before a request has its effect and before its answer leaves. It loses either by raising Unanswered, delays
either by sleeping, and may kill the client meanwhile."""


@dataclass(slots=True, eq=False)
class HookedNetwork:
    """A network whose faults a test plans."""

    clock: Clock
    hook: Hook | None = None
    under_way: set[asyncio.Task[object]] = field(default_factory=set)

    async def call(self, request: Request, effect: Callable[[], T], within_s: float) -> T:
        """See Network."""
        task = asyncio.create_task(self._travel(request, effect), name=request.name)
        self.under_way.add(task)
        task.add_done_callback(self._arrived)
        timer = asyncio.create_task(self.clock.sleep(within_s))
        try:
            await asyncio.wait({task, timer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
        if not task.done():
            raise Unanswered(f"{request.name} in {within_s:g} s")
        return task.result()

    async def close(self) -> None:
        """Drop the requests that are still under way."""
        for task in self.under_way:
            task.cancel()
        await asyncio.gather(*self.under_way, return_exceptions=True)

    async def _travel(self, request: Request, effect: Callable[[], T]) -> T:
        if self.hook is not None:
            await self.hook(request, Moment.BEFORE)
        answer = effect()
        if self.hook is not None:
            await self.hook(request, Moment.AFTER)
        return answer

    def _arrived(self, task: asyncio.Task[object]) -> None:
        self.under_way.discard(task)
        if not task.cancelled():
            task.exception()  # seen, even if the client has given up

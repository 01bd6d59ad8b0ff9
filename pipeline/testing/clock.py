"""Time that a test owns: it stands still until it is moved, and moves from one sleeper to the next."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable
from typing import Final, TypeVar

T = TypeVar("T")

SETTLE_TURNS: Final = 50
"""Turns of the event loop in which tasks that wait for nothing but each other come to rest."""

VIRTUAL_MAX_S: Final = 300.0
START_UNIX_MS: Final = 1_700_000_000_000


class TwinClock:
    """Fulfils ports.Clock."""

    def __init__(self, unix_ms: int = START_UNIX_MS) -> None:
        self._unix_ms = unix_ms
        self._now_s = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    def unix_ms(self) -> int:
        """See ports.Clock."""
        return self._unix_ms + round(self._now_s * 1000)

    def monotonic_s(self) -> float:
        """See ports.Clock."""
        return self._now_s

    def set_unix_ms(self, unix_ms: int) -> None:
        """Jump, as a machine's wall clock may, back too; monotonic time is not touched."""
        self._unix_ms = unix_ms - round(self._now_s * 1000)

    async def sleep(self, seconds: float) -> None:
        """Until somebody has moved time that far."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        waker = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._sleepers, (self._now_s + seconds, self._count, waker))
        await waker

    async def advance(self, seconds: float) -> None:
        """Move time, waking every sleeper at its own moment."""
        end_s = self._now_s + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end_s:
            self._wake_next()
            await settle()
        self._now_s = end_s

    async def until(self, awaitable: Awaitable[T]) -> T:
        """Move time until this is done. Raises TimeoutError when it is not, 300 virtual seconds later."""
        task = asyncio.ensure_future(awaitable)
        end_s = self._now_s + VIRTUAL_MAX_S
        await settle()
        while not task.done():
            if not self._sleepers or self._sleepers[0][0] > end_s:
                task.cancel()
                raise TimeoutError(f"not done after {VIRTUAL_MAX_S} virtual seconds")
            self._wake_next()
            await settle()
        return task.result()

    def _wake_next(self) -> None:
        at_s, _, waker = heapq.heappop(self._sleepers)
        if not waker.done():  # a sleeper that was cancelled moves no time
            self._now_s = max(self._now_s, at_s)
            waker.set_result(None)


async def settle() -> None:
    """Let every task run until it waits for time or for the outside."""
    for _ in range(SETTLE_TURNS):
        await asyncio.sleep(0)

"""The clock of a simulated cluster: the loop's virtual time."""

from __future__ import annotations

import asyncio
from typing import Final

from pipeline.testing.simulation.loop import SimulatedLoop

START_UNIX_MS: Final = 1_700_000_000_000


class SimulatedClock:
    """Fulfils ports.Clock. `skew_ms` is how far this machine's wall clock is off."""

    def __init__(self, loop: SimulatedLoop, skew_ms: int = 0) -> None:
        self._loop = loop
        self.skew_ms = skew_ms

    def unix_ms(self) -> int:
        """See ports.Clock."""
        return START_UNIX_MS + self.skew_ms + round(self._loop.time() * 1000)

    def monotonic_s(self) -> float:
        """See ports.Clock."""
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        """See ports.Clock."""
        waker = self._loop.create_future()
        timer = self._loop.call_later(seconds, _wake, waker)
        try:
            await waker
        finally:
            timer.cancel()


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)

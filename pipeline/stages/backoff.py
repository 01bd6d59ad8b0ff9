"""Waiting longer after each failure, up to a bound, and giving up after a deadline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pipeline.errors import OncesignError
from pipeline.ports import Clock

FIRST_S: Final = 0.1
LONGEST_S: Final = 1.0
GIVE_UP_S: Final = 120.0
"""A dependency that is away for longer ends the stage with its name; the supervisor starts it again."""


@dataclass(slots=True)
class Backoff:
    """One per loop; `reset` when something worked."""

    clock: Clock
    give_up_s: float = GIVE_UP_S
    longest_s: float = LONGEST_S
    wait_s: float = FIRST_S
    failing_since_s: float | None = None

    async def pause(self, error: OncesignError) -> None:
        """Sleep before the next try. Raises the error when the deadline has passed."""
        now = self.clock.monotonic_s()
        if self.failing_since_s is None:
            self.failing_since_s = now
        if now - self.failing_since_s > self.give_up_s:
            raise error
        await self.clock.sleep(self.wait_s)
        self.wait_s = min(self.wait_s * 2, self.longest_s)

    def reset(self) -> None:
        """Start over."""
        self.wait_s = FIRST_S
        self.failing_since_s = None

"""The real clock."""

from __future__ import annotations

import asyncio
import time


class SystemClock:
    """Fulfils ports.Clock."""

    def unix_ms(self) -> int:
        """Milliseconds since 1970, as the machine has it."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Let others run for that long."""
        await asyncio.sleep(seconds)

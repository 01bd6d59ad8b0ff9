"""Whether the key manager leads and is not halted, without letting a probe wait, or ask etcd at each look."""

from __future__ import annotations

import asyncio
from typing import Final

from pipeline.errors import NotLeader, OncesignError
from pipeline.ports import Clock
from pipeline.service.desk import Desk, Leading

READY_WAIT_S: Final = 0.5
"""How long a probe waits for a key manager that is about to lead."""

TRY_AGAIN_S: Final = 5.0
"""Least pause between two starts that failed."""


class Readiness:
    """One attempt to lead is under way at a time; the error of the last one is kept for a while."""

    def __init__(self, leading: Leading, clock: Clock) -> None:
        self._leading = leading
        self._clock = clock
        self._attempt: asyncio.Task[Desk] | None = None
        self._failed_s = 0.0
        self._error: OncesignError | None = None

    async def require(self) -> None:
        """Raises NotLeader, DeploymentHalted, DependencyDown: why it is not ready."""
        if self._error is not None and self._clock.monotonic_s() < self._failed_s + TRY_AGAIN_S:
            raise self._error
        self._error = None
        if self._attempt is None:
            self._attempt = asyncio.ensure_future(self._lead())
        attempt = self._attempt
        done, _ = await asyncio.wait({attempt}, timeout=READY_WAIT_S)
        if not done:
            raise NotLeader("the key manager starts, or waits until another one's lease is over.")
        if self._attempt is attempt:
            self._attempt = None
        try:
            _require(attempt.result())
        except OncesignError as error:
            self._failed_s, self._error = self._clock.monotonic_s(), error
            raise

    async def _lead(self) -> Desk:
        return await self._leading()

    async def stop(self) -> None:
        """Wait for no attempt."""
        if self._attempt is not None:
            self._attempt.cancel()
            await asyncio.gather(self._attempt, return_exceptions=True)


def _require(desk: Desk) -> None:
    desk.view()
    if desk.trouble is not None:
        raise desk.trouble

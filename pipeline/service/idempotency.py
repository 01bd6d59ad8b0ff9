"""Requests that may be sent again: the same Idempotency-Key gives the same answer, and does nothing twice.

After draft-ietf-httpapi-idempotency-key-header. Kept in memory, for a bounded time: after a restart a request is
carried out anew, which for assign, release, disable and enable changes nothing; the protocol itself sees to that.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from pipeline.ports import Clock
from pipeline.service.problem import Code, Problem

HEADER: Final = "Idempotency-Key"
KEPT_MAX: Final = 1_024
KEPT_S: Final = 600.0
KEY: Final = re.compile(r'"([!#-~]{1,128})"|([!#-~]{1,128})')
"""A structured field's string (RFC 8941), or its content without quotes."""


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer that a repeat gets again; `final` is false for one that another try may better."""

    status: int
    body: bytes
    final: bool = True


@dataclass(slots=True, eq=False)
class _Entry:
    fingerprint: bytes
    until_s: float
    answer: asyncio.Task[Kept]


class Repeats:
    """What was answered to which key, the oldest forgotten first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._secret = os.urandom(32)  # a body may hold a password: no plain hash of it stays in memory
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    async def once(self, key: str, content: bytes, carry_out: Callable[[], Awaitable[Kept]]) -> Kept:
        """The answer of before, or of the request that is under way, or a new one.

        Raises Problem: INVALID for no key, KEY_REUSED for one that came with other content, BUSY when nothing can be
        forgotten. A caller that goes away does not stop what it began.
        """
        match = KEY.fullmatch(key)
        if match is None:
            raise Problem(Code.INVALID, f"{HEADER} should be 1 to 128 visible characters.")
        name, fingerprint = match[1] or match[2], hmac.digest(self._secret, content, "sha256")
        self._forget()
        entry = self._entries.get(name)
        if entry is None:
            entry = self._entered(name, fingerprint, carry_out)
        elif not hmac.compare_digest(entry.fingerprint, fingerprint):
            raise Problem(Code.KEY_REUSED, f"this {HEADER} came with another request before.", "Use a new one.")
        return await asyncio.shield(entry.answer)

    def _entered(self, name: str, fingerprint: bytes, carry_out: Callable[[], Awaitable[Kept]]) -> _Entry:
        if len(self._entries) >= KEPT_MAX:
            raise Problem(Code.BUSY, f"{KEPT_MAX} requests with an {HEADER} are under way.")

        async def answer() -> Kept:
            kept = None
            try:
                kept = await carry_out()
            finally:
                if kept is None or not kept.final:
                    self._entries.pop(name, None)
            return kept

        entry = _Entry(fingerprint, self._clock.monotonic_s() + KEPT_S, asyncio.ensure_future(answer()))
        self._entries[name] = entry
        return entry

    def _forget(self) -> None:
        """What is too old; and the oldest of what was answered, when there is no room."""
        now_s = self._clock.monotonic_s()
        done = [name for name, entry in self._entries.items() if entry.answer.done()]
        too_many = len(self._entries) - KEPT_MAX + 1
        for index, name in enumerate(done):
            if index < too_many or self._entries[name].until_s <= now_s:
                del self._entries[name]

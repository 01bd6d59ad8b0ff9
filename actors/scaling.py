"""How many signers the batches that wait ask for. That there is a node for each is for Ray's autoscaler to see to."""

from __future__ import annotations

from math import ceil
from typing import Final

SCALE_EVERY_S: Final = 5.0
BACKLOG_PER_SIGNER: Final = 8
"""Batches that may wait for each signer before another one is asked for: some seconds of its work."""

SHRINK_AFTER_S: Final = 60.0
"""Fewer signers are kept only when fewer have been enough for so long: a new node takes about as long to come."""


class Scale:
    """Between two bounds, quickly up and slowly down."""

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, max(least, most)
        self._needed_s: float | None = None

    def wanted(self, backlog: int, have: int, now_s: float) -> int:
        """How many signers there should be, for so many batches that wait."""
        asked = min(self._most, max(self._least, ceil(backlog / BACKLOG_PER_SIGNER)))
        if asked >= have or self._needed_s is None:
            self._needed_s = now_s
        return asked if asked >= have or now_s - self._needed_s >= SHRINK_AFTER_S else have

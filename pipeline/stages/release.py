"""Telling the key manager which batches are published, beside the rounds that publish the next ones."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from pipeline.errors import OncesignError
from pipeline.journal import Journal
from pipeline.ports import Assigner
from pipeline.stream import Stream

journal = Journal(__name__, "consumer")

RELEASE_WAITING_MAX: Final = 4096
"""Beyond this, published batches are left to the sweeper to release."""


class Releases:
    """Published batches whose keys are not given back yet, of one worker."""

    def __init__(self, assigner: Assigner, worker: str) -> None:
        self._assigner = assigner
        self._worker = worker
        self._waiting: list[tuple[Stream, int]] = []
        self._under_way = False
        self._added = asyncio.Event()

    def __bool__(self) -> bool:
        return self._under_way or bool(self._waiting)

    def add(self, batches: Iterable[tuple[Stream, int]]) -> None:
        """Batches of a round that is committed."""
        room = RELEASE_WAITING_MAX - len(self._waiting)
        self._waiting += list(batches)[:room]
        self._added.set()

    async def run(self) -> None:
        """Give back until cancelled, all that wait in one call."""
        while True:
            await self._added.wait()
            self._added.clear()
            batches, self._waiting = self._waiting, []
            self._under_way = True
            await self._release(batches)
            self._under_way = False

    async def _release(self, batches: list[tuple[Stream, int]]) -> None:
        try:
            await self._assigner.release(batches, self._worker)
        except OncesignError as error:
            # The sweeper finds these assignments published and releases them.
            journal.failed("release is left to the sweeper", worker=self._worker, error=error)

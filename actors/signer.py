"""The signer as a Ray actor: the only process that opens private keys."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from functools import partial

import ray

from actors import composition
from actors.composition import signing
from actors.host import StageState, StageStatus
from actors.metrics import TELEMETRY, publish
from pipeline.custody.kek_ring import KekRing
from pipeline.ports import Assigned, SignedBatch
from pipeline.settings import Settings
from pipeline.stages import figures
from pipeline.stages.signer import Signer
from pipeline.telemetry import Growth


@ray.remote
class SignerActor:
    """Ledger row, then signature."""

    def __init__(self, slot: int, settings: Settings) -> None:
        self._name = f"signer-{slot}"
        self._settings = composition.here(settings)
        self._signer: Signer | None = None
        self._publishing: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()

    def __repr__(self) -> str:
        return self._name

    @ray.method(enable_task_events=False)  # dozens a second
    async def sign(self, batch: bytes, assigned: Assigned) -> SignedBatch:
        """See stages.signer.Signer."""
        return await (await self._started()).sign(batch, assigned)

    async def keks(self) -> list[str]:
        """Ids of the KEKs that it can read now, the one that seals first. Raises SecretFileError."""
        keks = await asyncio.to_thread(KekRing, self._settings.kek_path)
        return [known.hex() for known in keks.ids]

    async def status(self) -> StageStatus:
        """Start it if need be. Raises SecretFileError, DatabaseUnavailable."""
        signer = await self._started()
        return StageStatus(StageState.RUNNING, os.getpid(), counts=dataclasses.asdict(signer.count))

    async def _started(self) -> Signer:
        # Not in __init__: an exception there would end the actor for good, and Ray starts a dead process again
        # without anybody's call.
        async with self._starting:
            if self._signer is None:
                composition.start_logging()
                self._signer = await signing.signer(self._settings, f"{self._name}.{os.getpid()}")
                tell = partial(figures.of_signer, Growth(TELEMETRY), self._signer.count)
                self._publishing = asyncio.create_task(publish(tell), name="metrics")
            return self._signer

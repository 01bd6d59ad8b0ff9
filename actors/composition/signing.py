"""What a signer works with."""

from __future__ import annotations

import asyncio

from actors.composition import CLOCK
from pipeline.adapters.ledger import PostgresLedger
from pipeline.custody.kek_ring import KekRing
from pipeline.settings import Settings
from pipeline.stages.signer import NativeKernel, Signer


async def signer(settings: Settings, worker: str) -> Signer:
    """A signer, its kernel compiled and its key-encryption key read. Lives as long as its process."""
    keks = await asyncio.to_thread(KekRing, settings.kek_path)
    kernel = NativeKernel()
    await kernel.warm()
    ledger = PostgresLedger(settings.postgres)
    await ledger.enlist()
    return Signer(worker, ledger, keks, kernel, CLOCK, settings.signing)

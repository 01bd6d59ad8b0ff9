"""The verifier as a Ray actor: follows tx.signed and tx.rejected, and writes outcomes."""

from __future__ import annotations

import asyncio
from functools import partial

import ray

from actors import composition
from actors.composition import tables, verifying
from actors.host import StageHost, StageStatus
from actors.metrics import TELEMETRY, publishing
from pipeline.ethereum import validity
from pipeline.settings import Settings
from pipeline.stages import figures
from pipeline.stages.verifier import Verifier
from pipeline.telemetry import Growth


@ray.remote
class TxVerifierActor:
    """Reads what was signed with its own eyes."""

    def __init__(self) -> None:
        self._name = "tx-verifier"
        self._host: StageHost | None = None
        self._verifier: Verifier | None = None
        tables.warm_source()
        validity.warm()

    def __repr__(self) -> str:
        return self._name

    async def start(self, settings: Settings) -> None:
        """Follow the topics. Does nothing while it runs."""
        if self._host is None:
            composition.start_logging()
            self._host = StageHost(self._name)

        async def run(stop: asyncio.Event) -> None:
            async with verifying.verifier(settings, TELEMETRY) as verifier:
                self._verifier = verifier
                async with publishing(partial(figures.of_verifier, Growth(TELEMETRY), verifier.count)):
                    await verifier.run(stop)

        self._host.start(run)

    async def status(self) -> StageStatus:
        """Counts of verified, rejected and violations."""
        host = self._host or StageHost(self._name)
        return host.status(self._verifier.counts() if self._verifier is not None else None)

    async def drain(self) -> None:
        """Finish the records at hand."""
        if self._host is not None:
            await self._host.drain()

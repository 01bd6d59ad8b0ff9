"""The batch consumer as a Ray actor: one slot of the consumer group, feeding the signer pool."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from functools import partial
from typing import Any

import ray

from actors import composition
from actors.clients import RemoteKeyManager, SignerPool
from actors.composition import consuming
from actors.host import StageHost, StageStatus
from actors.metrics import TELEMETRY, publishing
from pipeline.ethereum import validity
from pipeline.settings import Settings
from pipeline.stages import figures
from pipeline.stages.consumer import BatchConsumer, Worker
from pipeline.telemetry import Growth


@ray.remote
class BatchConsumerActor:
    """Batches in, signed records out."""

    def __init__(self, slot: int) -> None:
        self._slot = slot
        self._name = f"consumer-{slot}"
        self._host: StageHost | None = None
        self._consumer: BatchConsumer | None = None
        self._pool = SignerPool({}, 1)
        validity.warm()

    def __repr__(self) -> str:
        return self._name

    async def start(self, settings: Settings, key_manager: Any, signers: dict[str, Any]) -> None:
        """Join the group; `signers` by their names. Does nothing while it runs."""
        if self._host is None:
            composition.start_logging()
            self._host = StageHost(self._name)

        async def run(stop: asyncio.Event) -> None:
            worker = Worker(f"{self._name}.{os.getpid()}", composition.here(settings).node)
            self._pool = SignerPool(signers, settings.pool.batches_per_signer)
            manager = RemoteKeyManager(key_manager)
            opened = consuming.consumer(settings, self._slot, worker, manager, self._pool, TELEMETRY)
            try:
                async with opened as consumer:
                    self._consumer = consumer
                    async with publishing(partial(figures.of_consumer, Growth(TELEMETRY), consumer.count)):
                        await consumer.run(stop)
            finally:
                await self._pool.close()

        self._host.start(run)

    async def use(self, signers: dict[str, Any]) -> None:
        """Give batches to these signers from here on."""
        self._pool.use(signers)

    async def let_go(self, signers: list[str]) -> None:
        """Returns when these, which are no longer used, have no batch left."""
        await self._pool.let_go(signers)

    async def status(self) -> StageStatus:
        """Counts as in stages.consumer.ConsumerCount, and halted partitions."""
        host = self._host or StageHost(self._name)
        if self._consumer is None:
            return host.status()
        halted = {str(stream): reason for stream, reason in self._consumer.halted_streams().items()}
        return host.status(dataclasses.asdict(self._consumer.count) | {"halted": halted})

    async def drain(self) -> None:
        """Commit what has a key and leave the group."""
        if self._host is not None:
            await self._host.drain()

"""The broadcaster as a Ray actor: there is one when ONCESIGN_BROADCAST__RPC_FILE names a node."""

from __future__ import annotations

import asyncio
import dataclasses

import ray

from actors import composition
from actors.composition import broadcasting
from actors.host import StageHost, StageStatus
from pipeline.settings import Settings
from pipeline.stages.broadcaster import Broadcaster

NAME = "broadcaster"


@ray.remote
class BroadcasterActor:
    """Sends what was signed and verified."""

    def __init__(self) -> None:
        self._host: StageHost | None = None
        self._broadcaster: Broadcaster | None = None

    def __repr__(self) -> str:
        return NAME

    async def start(self, settings: Settings) -> None:
        """Follow what is verified. Does nothing while it runs."""
        if self._host is None:
            composition.start_logging()
            self._host = StageHost(NAME)

        async def run(stop: asyncio.Event) -> None:
            url = broadcasting.rpc_url(settings)
            async with broadcasting.broadcaster(settings, url) as broadcaster:
                self._broadcaster = broadcaster
                await broadcaster.run(stop)

        self._host.start(run)

    async def status(self) -> StageStatus:
        """Counts as in stages.broadcaster.BroadcastCount."""
        host = self._host or StageHost(NAME)
        return host.status(dataclasses.asdict(self._broadcaster.count) if self._broadcaster is not None else None)

    async def drain(self) -> None:
        """Finish the requests at hand; the next one goes on with what is not decided."""
        if self._host is not None:
            await self._host.drain()

"""The key manager as a detached Ray actor: the only writer to etcd.

A second actor under another name, or a zombie of this one, is harmless: every write compares the fence. One that has
lost the fence exits its process; Ray starts it again, and it waits for the leader record like any other.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack

import ray

from actors import composition
from actors.composition import managing
from actors.host import StageState, StageStatus, ray_node
from actors.metrics import TELEMETRY, publish
from actors.names import Group, is_elsewhere
from pipeline.assignment.administration import Resealed
from pipeline.assignment.manager import KeyManager
from pipeline.assignment.records import Assignment, KeyRecord, StreamRecord
from pipeline.assignment.view import View
from pipeline.custody.kek_ring import KekRing
from pipeline.errors import NotLeader, OncesignError
from pipeline.journal import Journal
from pipeline.ports import AssignReply, AssignRequest
from pipeline.service.server import Server
from pipeline.settings import Settings
from pipeline.stages import figures, intake
from pipeline.stream import Stream

journal = Journal(__name__, "key-manager")

NAME = "key-manager"
FENCE_LOST_EXIT = 70


@ray.remote
class KeyManagerActor:
    """Lends keys and nonces."""

    def __init__(self, settings: Settings, stamp: str) -> None:
        """`stamp` is what actors.stamp makes of the code and settings that this one was made with."""
        self._settings = composition.here(settings)
        self._stamp = stamp
        self._manager: KeyManager | None = None
        self._leads = AsyncExitStack()
        self._server: Server | None = None
        self._publishing: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._leaving = False
        # Ray makes it anew after its node died, perhaps while nobody asks: it leads again by itself.
        ray.get_runtime_context().current_actor.status.remote()

    def __repr__(self) -> str:
        return NAME

    @ray.method(enable_task_events=False)  # dozens a second
    async def assign(self, requests: Sequence[AssignRequest], deadline_s: float) -> Sequence[AssignReply]:
        """See ports.Assigner."""
        return await (await self._started()).assign(requests, deadline_s)

    @ray.method(enable_task_events=False)
    async def release(self, batches: Sequence[tuple[Stream, int]], worker: str) -> None:
        """See ports.Assigner."""
        await (await self._started()).release(batches, worker)

    async def halt(self, stream: Stream, reason: str) -> None:
        """See ports.Assigner."""
        await (await self._started()).halt(stream, reason)

    async def open_stream(self, record: StreamRecord) -> StreamRecord:
        """See stages.reader.Streams."""
        return await (await self._started()).open_stream(record)

    async def assignments(self) -> Sequence[Assignment]:
        """See stages.sweeper.Desk."""
        return await (await self._started()).list_assignments()

    async def streams(self) -> Sequence[StreamRecord]:
        """All streams of the deployment."""
        return await (await self._started()).list_streams()

    async def keys(self) -> Sequence[KeyRecord]:
        """All keys, the longest unused first."""
        return await (await self._started()).list_keys()

    async def import_keys(self, keys: Sequence[tuple[int, str, bytes, int]]) -> None:
        """(chain id, address, sealed key, start nonce) each."""
        await (await self._started()).import_keys(keys)

    async def disable(self, chain_id: int, address: str) -> None:
        """Lend this key no more; a locked one after its release."""
        await (await self._started()).disable(chain_id, address)

    async def enable(self, chain_id: int, address: str) -> None:
        """Lend this key again."""
        await (await self._started()).enable(chain_id, address)

    async def create_keys(self, chain_id: int, count: int) -> list[str]:
        """Make private keys, seal them here, and put them into the pool; their addresses. Raises SecretFileError."""
        manager = await self._started()
        keks = await self._opening_all(manager)
        keys = intake.made(chain_id, count, keks)
        await manager.import_keys(keys)
        return [address for _, address, _, _ in keys]

    async def examine_kek(self) -> str:
        """That the key-encryption keys open every key of the pool. Raises SecretFileError."""
        manager = await self._started()
        return intake.opened(manager.view(), await self._keks())

    async def keks(self) -> list[str]:
        """Ids of the KEKs that are in its files now, the one that seals first. Raises SecretFileError."""
        return [known.hex() for known in (await self._keks()).ids]

    async def reseal(self, keys: Sequence[Resealed]) -> None:
        """Put other sealed bytes in the place of those that are there."""
        await (await self._started()).reseal(keys)

    async def reseal_all(self) -> int:
        """Seal every key under the KEK that seals, and the number of those that were not. Raises SecretFileError."""
        manager = await self._started()
        keys = intake.resealed(manager.view(), await self._opening_all(manager))
        await manager.reseal(keys)
        return len(keys)

    async def retire(self, chain_id: int, address: str, *, destroy: bool) -> None:
        """Lend a disabled key never again."""
        await (await self._started()).retire(chain_id, address, destroy=destroy)

    async def set_apart(self, chain_id: int, address: str, *, apart: bool) -> None:
        """Lend a key for blob transactions alone, or for all others alone."""
        await (await self._started()).set_apart(chain_id, address, apart=apart)

    async def unhalt(self, stream: Stream) -> None:
        """Let a halted stream go on."""
        await (await self._started()).unhalt(stream)

    async def lose(self, stream: Stream, end: int) -> None:
        """See KeyManager."""
        await (await self._started()).lose(stream, end)

    async def view(self) -> View:
        """All that etcd holds."""
        return (await self._started()).view()

    async def stamp(self) -> str:
        """What it was made of."""
        return self._stamp

    async def leave(self, node: str) -> None:
        """This Ray node is about to end: if it is ours, give up the lead, and take it no more in this process.

        Only where another node takes key managers: the next pod takes longer to come than our lease to end.
        """
        if node == ray_node() and is_elsewhere(Group.KEY_MANAGER, node):
            self._leaving = True
            await self.drain()

    async def status(self) -> StageStatus:
        """Start it if need be. Its own refusal to start is in the status, not raised."""
        if self._leaving:
            return StageStatus(StageState.IDLE, os.getpid())
        try:
            manager = await self._started()
        except OncesignError as error:
            return StageStatus(StageState.FAILED, os.getpid(), error)
        return StageStatus(StageState.RUNNING, os.getpid(), counts=manager.status())

    async def drain(self) -> None:
        """Give up the leader record, so that the next key manager need not wait for the lease to end."""
        server, self._server = self._server, None
        leads, self._leads, self._manager = self._leads, AsyncExitStack(), None
        if server is not None:
            server.refuse()  # a request could make us lead again
        await leads.aclose()
        if server is not None:
            await server.stop()

    async def _started(self) -> KeyManager:
        # Not in __init__: an exception there would end the actor for good.
        async with self._starting:
            if self._leaving:
                raise NotLeader("this key manager's node is about to end.", hint="Another one will lead in a moment.")
            if self._manager is None:
                composition.start_logging()
                self._publishing = self._publishing or asyncio.create_task(publish(self._tell), name="metrics")
                if self._server is None:  # before it leads: /readyz says why it does not
                    self._server = await managing.service(self._settings, self._started)
                leads = AsyncExitStack()
                leading = managing.key_manager(self._settings, self._fence_lost)
                self._manager = await leads.enter_async_context(leading)
                self._leads = leads
            return self._manager

    async def _keks(self) -> KekRing:
        """In a thread: a key store may take longer to answer than our lease lasts."""
        return await asyncio.to_thread(KekRing, self._settings.kek_path)

    async def _opening_all(self, manager: KeyManager) -> KekRing:
        keks = await self._keks()
        intake.require_opening(keks, manager.view())
        return keks

    def _tell(self) -> None:
        """While it leads: what another key manager does is not ours to say."""
        if self._manager is not None:
            figures.of_key_manager(TELEMETRY, self._manager.status())

    def _fence_lost(self) -> None:
        journal.ended("the leader record is no longer ours; exits")
        os._exit(FENCE_LOST_EXIT)

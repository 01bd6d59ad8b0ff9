"""Other processes as ports: the key manager and the signers, as actors.clients has them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pipeline.assignment.manager import KeyManager
from pipeline.assignment.records import Assignment, StreamRecord
from pipeline.ports import Assigned, AssignReply, AssignRequest, SignedBatch
from pipeline.stream import Stream
from pipeline.testing.network import Request
from pipeline.testing.simulation.history import loan_of
from pipeline.testing.simulation.wire import Callee

if TYPE_CHECKING:
    from pipeline.testing.simulation.cluster import Cluster

T = TypeVar("T")

ANSWER_MARGIN_S: Final = 10.0
SIGN_TIMEOUT_S: Final = 120.0
"""Both as in actors.clients."""


class RemoteManager:
    """Fulfils ports.Assigner, stages.reader.Streams and stages.sweeper.Desk."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def assign(self, requests: Sequence[AssignRequest], deadline_s: float) -> Sequence[AssignReply]:
        """See ports.Assigner."""

        async def assigned(manager: KeyManager) -> Sequence[AssignReply]:
            replies = await manager.assign(requests, deadline_s)
            self._cluster.history.lent += [loan_of(r.assignment) for r in replies if isinstance(r, Assigned)]
            return replies

        return await self._ask("assign", assigned, deadline_s)

    async def release(self, batches: Sequence[tuple[Stream, int]], worker: str) -> None:
        """See ports.Assigner."""
        await self._ask("release", lambda manager: manager.release(batches, worker))

    async def halt(self, stream: Stream, reason: str) -> None:
        """See ports.Assigner."""
        await self._ask("halt", lambda manager: manager.halt(stream, reason))

    async def unhalt(self, stream: Stream) -> None:
        """See assignment.manager.KeyManager."""
        await self._ask("unhalt", lambda manager: manager.unhalt(stream))

    async def open_stream(self, record: StreamRecord) -> StreamRecord:
        """See stages.reader.Streams."""
        return await self._ask("open_stream", lambda manager: manager.open_stream(record))

    async def assignments(self) -> Sequence[Assignment]:
        """See stages.sweeper.Desk."""
        return await self._ask("assignments", lambda manager: manager.list_assignments())

    async def import_keys(self, keys: Sequence[tuple[int, str, bytes, int]]) -> None:
        """See assignment.manager.KeyManager."""
        await self._ask("import_keys", lambda manager: manager.import_keys(keys))

    async def _ask(self, name: str, work: Callable[[KeyManager], Coroutine[Any, Any, T]], deadline_s: float = 0.0) -> T:
        def callee() -> Callee[T] | None:
            actor = self._cluster.leader()
            if actor is None:
                return None

            async def carried_out() -> T:
                return await work(await actor.started())

            return Callee(actor.process, carried_out)

        request = Request(name, server="key-manager")
        return await self._cluster.network.ask(request, callee, deadline_s + ANSWER_MARGIN_S)


class RemoteSigners:
    """Fulfils ports.Signers: one signer after the other."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._turn = 0

    def slots(self) -> int:
        """See ports.Signers."""
        return 2 * self._cluster.shape.signers

    async def sign(self, batch: bytes, assigned: Assigned) -> SignedBatch:
        """See ports.Signers."""
        self._turn += 1
        slot = self._turn % self._cluster.shape.signers

        def callee() -> Callee[SignedBatch] | None:
            process, signer = self._cluster.signers.get(slot, (None, None))
            if process is None or signer is None:
                return None
            return Callee(process, lambda: signer.sign(batch, assigned))

        return await self._cluster.network.ask(Request("sign", server="signer"), callee, SIGN_TIMEOUT_S)

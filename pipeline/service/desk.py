"""What the service needs of a key manager."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from pipeline.assignment.budget import Budget
from pipeline.assignment.pending import Queued
from pipeline.assignment.records import Assignment, KeyRecord, StreamRecord
from pipeline.assignment.view import View
from pipeline.errors import OncesignError
from pipeline.ports import AssignReply, AssignRequest
from pipeline.stream import Stream


class Desk(Protocol):
    """assignment.manager.KeyManager fulfils it. Its methods raise NotLeader, DeploymentHalted, DependencyDown."""

    @property
    def trouble(self) -> OncesignError | None:
        """What kept it from its last write, until one succeeds."""
        ...

    @property
    def budgets(self) -> Mapping[str, Budget]:
        """By source, of those that have one."""
        ...

    async def assign(self, requests: Sequence[AssignRequest], deadline_s: float) -> Sequence[AssignReply]:
        """See ports.Assigner."""
        ...

    async def release_held(self, batches: Sequence[tuple[Stream, int]], worker: str) -> None:
        """Release, all or nothing, what this very worker holds. Raises NotReleasable."""
        ...

    async def import_keys(self, keys: Sequence[tuple[int, str, bytes, int]]) -> None:
        """(chain id, address, sealed key, start nonce) each. Raises UsageError for a key that is there."""
        ...

    async def disable(self, chain_id: int, address: str) -> None:
        """Lend this key no more; a locked one after its release. Raises KeyNotInPool."""
        ...

    async def enable(self, chain_id: int, address: str) -> None:
        """Lend this key again. Raises KeyNotInPool, UsageError when its private key was lost."""
        ...

    async def list_keys(self) -> list[KeyRecord]:
        """In the order in which free ones are lent."""
        ...

    async def list_assignments(self) -> list[Assignment]:
        """What was not released yet."""
        ...

    async def list_streams(self) -> list[StreamRecord]:
        """All streams, by name."""
        ...

    def list_queue(self) -> list[Queued]:
        """Who waits for a key, first come first."""
        ...

    def view(self) -> View:
        """All that etcd holds."""
        ...

    def status(self) -> dict[str, Any]:
        """Counts: `queue`, `queue_oldest_s`, `halted`, `fence` …"""
        ...


Leading: TypeAlias = Callable[[], Awaitable[Desk]]
"""The key manager, made to lead if it does not yet. Raises NotLeader, DeploymentHalted, DependencyDown."""

"""The key manager at hand: the one that runs in Ray, else one of our own for as long as the command takes.

Only a leader writes to etcd. While a pipeline runs, its key manager leads and is asked; while none runs, the command
leads itself and resigns when it is done. On a cluster with node groups (ONCESIGN_POOL__PLACED) a command cannot reach
etcd: the key manager is asked for everything, and made if there is none.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol, cast

from pipeline.adapters.etcd import EtcdStore
from pipeline.adapters.ledger import PostgresLedger
from pipeline.assignment import startup
from pipeline.assignment.administration import Resealed
from pipeline.assignment.manager import KeyManager
from pipeline.assignment.paths import Paths
from pipeline.assignment.view import View
from pipeline.clock import SystemClock
from pipeline.errors import NotLeader
from pipeline.settings import Settings
from pipeline.stream import Stream

CALL_TIMEOUT_S: Final = 60.0


class KeyDesk(Protocol):
    """What commands ask of a key manager."""

    async def import_keys(self, keys: Sequence[tuple[int, str, bytes, int]]) -> None:
        """See KeyManager."""
        ...

    async def disable(self, chain_id: int, address: str) -> None:
        """See KeyManager."""
        ...

    async def enable(self, chain_id: int, address: str) -> None:
        """See KeyManager."""
        ...

    async def reseal(self, keys: Sequence[Resealed]) -> None:
        """See KeyManager."""
        ...

    async def retire(self, chain_id: int, address: str, *, destroy: bool) -> None:
        """See KeyManager."""
        ...

    async def set_apart(self, chain_id: int, address: str, *, apart: bool) -> None:
        """See KeyManager."""
        ...

    async def unhalt(self, stream: Stream) -> None:
        """See KeyManager."""
        ...

    async def lose(self, stream: Stream, end: int) -> None:
        """See KeyManager."""
        ...


@asynccontextmanager
async def key_desk(settings: Settings) -> AsyncIterator[KeyDesk]:
    """Raises NotLeader when a leader lives that cannot be asked, DeploymentHalted, DependencyDown."""
    if settings.pool.placed:
        yield cast("KeyDesk", placed_desk(settings))
        return
    store = EtcdStore(settings.etcd)
    ledger = PostgresLedger(settings.postgres)
    try:
        leader = await store.get(Paths(settings.deployment).leader)
        remote = _running_manager(settings) if leader is not None else None
        if remote is not None:
            yield cast("KeyDesk", RemoteDesk(remote))
            return
        manager = KeyManager(store, ledger, SystemClock(), settings)
        await manager.start()
        try:
            yield manager
        finally:
            await manager.stop()
    finally:
        await store.close()
        await ledger.close()


@asynccontextmanager
async def etcd_client(settings: Settings) -> AsyncIterator[EtcdStore]:
    """A client for as long as it is needed."""
    store = EtcdStore(settings.etcd)
    try:
        yield store
    finally:
        await store.close()


async def signs(settings: Settings) -> bool:
    """Whether a pipeline runs. Raises StoreUnavailable, RayUnavailable."""
    if settings.pool.placed:
        from actors.names import running
        from actors.supervisor import NAME

        connect(settings)
        return NAME in running(settings.deployment)
    return await leads(settings)


async def leads(settings: Settings) -> bool:
    """Whether a key manager holds the deployment. Raises StoreUnavailable."""
    async with etcd_client(settings) as store:
        return await store.get(Paths(settings.deployment).leader) is not None


async def has_keys(settings: Settings) -> bool:
    """Whether the pool has any key. Raises StoreUnavailable."""
    async with etcd_client(settings) as store:
        return bool(await store.list(Paths(settings.deployment).sealed_keys))


@asynccontextmanager
async def etcd_view(settings: Settings) -> AsyncIterator[View]:
    """What etcd holds now, read without leading. Raises StoreUnavailable; on a cluster NotLeader, DeploymentHalted."""
    if settings.pool.placed:
        yield cast("View", await placed_desk(settings).view())
        return
    async with etcd_client(settings) as store:
        yield await startup.load(store, Paths(settings.deployment))


class RemoteDesk:
    """Fulfils KeyDesk over the key manager actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **named: Any) -> Any:
            from actors.clients import ask

            return await ask(getattr(self._actor, method).remote(*args, **named), CALL_TIMEOUT_S, "the key manager")

        return call


def connect(settings: Settings) -> None:
    """Become a driver of the cluster that this process runs in. Raises RayUnavailable."""
    import ray

    from actors.names import namespace
    from pipeline.errors import RayUnavailable

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "auto")
    try:
        ray.init(address, namespace=namespace(settings.deployment), log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise RayUnavailable(
            "no cluster is found from here", address=address, hint="Run it as a job: ray job submit -- oncesign …"
        ) from error


def placed_desk(settings: Settings) -> RemoteDesk:
    """The key manager of the cluster, made if there is none. Raises RayUnavailable."""
    from actors import crew

    connect(settings)
    return RemoteDesk(crew.key_manager(settings))


def running_head(settings: Settings) -> bool:
    """Become a driver of the data directory's Ray cluster, if there is one."""
    from actors import cluster

    head = cluster.running(settings.data_dir)
    if head is None:
        return False
    os.environ |= cluster.environment(head.token_file)  # before ray is imported: it looks for its token then
    import ray

    from actors.names import namespace

    if not ray.is_initialized():
        space = namespace(settings.deployment)
        ray.init(head.address, namespace=space, log_to_driver=False, logging_level=logging.ERROR)
    return True


def _running_manager(settings: Settings) -> Any:
    """The key manager actor of the data directory's Ray cluster, if there is one."""
    if not running_head(settings):
        return None
    from actors.key_manager import NAME
    from actors.names import find
    from pipeline.errors import RayUnavailable

    try:
        return find(NAME, settings.deployment)
    except RayUnavailable as error:
        raise NotLeader("another key manager leads, and it is not in this Ray cluster.") from error

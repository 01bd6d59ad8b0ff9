"""What the key manager works with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from actors.composition import CLOCK
from actors.composition.budgets import budgets
from pipeline.adapters.etcd import EtcdStore
from pipeline.adapters.ledger import PostgresLedger
from pipeline.assignment.manager import KeyManager
from pipeline.service.desk import Leading
from pipeline.service.server import Server
from pipeline.settings import Settings


@asynccontextmanager
async def key_manager(settings: Settings, fence_lost: Callable[[], None]) -> AsyncIterator[KeyManager]:
    """A key manager that leads. Raises NotLeader, DeploymentHalted, DependencyDown."""
    async with AsyncExitStack() as stack:
        store, ledger = EtcdStore(settings.etcd), PostgresLedger(settings.postgres)
        for client in (store, ledger):
            stack.push_async_callback(client.close)
        manager = KeyManager(store, ledger, CLOCK, settings, fence_lost, budgets(settings))
        await manager.start()
        stack.push_async_callback(manager.stop)
        yield manager


async def service(settings: Settings, leading: Leading) -> Server | None:
    """The key manager's HTTP service, if there is a port for it. Raises SecretFileError, SettingError, RuntimeFault."""
    if not settings.service.port:
        return None
    server = Server(leading, settings)
    await server.start()
    return server

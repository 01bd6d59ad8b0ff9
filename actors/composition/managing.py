"""What the key manager works with."""

from __future__ import annotations

from collections.abc import Callable

from actors.composition import CLOCK
from actors.composition.budgets import budgets
from pipeline.adapters.etcd import EtcdStore
from pipeline.adapters.ledger import PostgresLedger
from pipeline.assignment.manager import KeyManager
from pipeline.service.desk import Leading
from pipeline.service.server import Server
from pipeline.settings import Settings


async def key_manager(settings: Settings, fence_lost: Callable[[], None]) -> KeyManager:
    """A key manager that leads. Raises NotLeader, DeploymentHalted, DependencyDown."""
    store = EtcdStore(settings.etcd)
    ledger = PostgresLedger(settings.postgres)
    manager = KeyManager(store, ledger, CLOCK, settings, fence_lost, budgets(settings))
    await manager.start()
    return manager


async def service(settings: Settings, leading: Leading) -> Server | None:
    """The key manager's HTTP service, if there is a port for it. Raises SecretFileError, SettingError, RuntimeFault."""
    if not settings.service.port:
        return None
    server = Server(leading, settings)
    await server.start()
    return server

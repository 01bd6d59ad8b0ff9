"""What the key manager works with."""

from __future__ import annotations

from collections.abc import Callable

from actors.composition import CLOCK
from pipeline.adapters.etcd import EtcdStore
from pipeline.adapters.ledger import PostgresLedger
from pipeline.adapters.policies import policy_of
from pipeline.assignment.budget import Budget
from pipeline.assignment.manager import KeyManager
from pipeline.service.desk import Leading
from pipeline.service.server import Server
from pipeline.settings import Settings


def budgets(settings: Settings) -> dict[str, Budget]:
    """Of the sources whose policy has one. Raises InputFileError."""
    files = {source.name: source.policy_file for source in settings.sources if source.policy_file is not None}
    policies = {name: policy_of(file) for name, file in files.items()}
    bounds = {name: (policy.budget, policy.period_s) for name, policy in policies.items()}
    return {name: Budget(wei, seconds * 1000) for name, (wei, seconds) in bounds.items() if wei is not None and seconds}


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

"""Settings with every address filled in: what is not set is the embedded server of the data directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import SecretStr

from pipeline.errors import BusUnavailable, DatabaseUnavailable, DependencyDown, StoreUnavailable
from pipeline.local import record
from pipeline.local.stack import SERVERS
from pipeline.settings import Settings


def embedded(settings: Settings) -> tuple[str, ...]:
    """The servers that the settings do not replace by an address."""
    given = {
        "etcd": settings.etcd.endpoints,
        "postgres": settings.postgres.dsn.get_secret_value(),
        "kafka": settings.kafka.bootstrap_servers,
    }
    return tuple(name for name, address in given.items() if not address)


def resolve(settings: Settings, needs: Sequence[str] = SERVERS) -> Settings:
    """Settings that name the servers in `needs`.

    Raises StoreUnavailable, DatabaseUnavailable or BusUnavailable when an embedded one is needed but not up.
    """
    missing = [name for name in embedded(settings) if name in needs]
    if not missing:
        return settings
    known = record.load(settings.data_dir.resolve())
    down: dict[str, type[DependencyDown]] = {
        "etcd": StoreUnavailable,
        "postgres": DatabaseUnavailable,
        "kafka": BusUnavailable,
    }
    for name in missing:
        if name not in known.servers or not known.ready:
            raise down[name](f"no embedded one runs in {settings.data_dir}")
    resolved = settings.model_copy(deep=True)
    if "etcd" in missing:
        resolved.etcd.endpoints = known.addresses["etcd.endpoints"]
    if "postgres" in missing:
        resolved.postgres.dsn = SecretStr(known.addresses["postgres.dsn"])
        resolved.postgres.password_file = Path(known.addresses["postgres.password_file"])
    if "kafka" in missing:
        resolved.kafka.bootstrap_servers = known.addresses["kafka.bootstrap_servers"]
    return resolved

"""What `oncesign doctor` tries, one coroutine each; the answer is a short text, a failure is its error."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from typing import Final

from jobs.desk import etcd_client, etcd_view
from pipeline.adapters.migrations import migrate
from pipeline.adapters.postgres_source import PostgresSource
from pipeline.adapters.topics import TopicAdmin
from pipeline.assignment.paths import Paths
from pipeline.custody.kek_ring import KekRing
from pipeline.errors import UsageError
from pipeline.local.resolve import resolve
from pipeline.settings import Settings
from pipeline.stages import intake


async def data_directory(settings: Settings) -> str:
    """Room on the disk."""
    free = shutil.disk_usage(settings.data_dir if settings.data_dir.exists() else ".").free
    return f"{settings.data_dir} has {free // 1024**3} GiB free"


async def etcd(settings: Settings) -> str:
    """A linearizable read."""
    resolved = resolve(settings)
    async with etcd_client(resolved) as store:
        genesis = await store.get(Paths(settings.deployment).genesis)
    return f"{resolved.etcd.endpoints} serves; deployment {settings.deployment} is {'known' if genesis else 'new'}"


async def postgres(settings: Settings) -> str:
    """Migrations and sources."""
    resolved = resolve(settings)
    missing = migrate(resolved.postgres, dry_run=True)
    if missing:
        raise UsageError(f"{len(missing)} migration(s) are missing.", hint="Run: oncesign migrate")
    for source in resolved.sources:
        table = PostgresSource(resolved.postgres, source)
        try:
            await table.check()
            if writer := await table.held_back_by():
                return f"serves; rows committed since then wait for {writer}"
        finally:
            await table.close()
    return "serves; the tables of all sources are there"


async def kafka(settings: Settings) -> str:
    """The broker's metadata."""
    resolved = resolve(settings)
    admin = TopicAdmin(resolved.kafka)
    try:
        return f"{resolved.kafka.bootstrap_servers} serves {len(await admin.names())} topics"
    finally:
        await admin.close()


async def key_encryption_key(settings: Settings) -> str:
    """The KEK can be read, and opens a key of the pool."""
    resolved = resolve(settings)
    keks = KekRing(settings.kek_path)
    async with etcd_view(resolved) as view:
        if not view.sealed:
            raise UsageError("the pool has no key.", hint="Run: oncesign keys create --count 16")
        return intake.opened(view, keks)


EXAMINATIONS: Final[dict[str, Callable[[Settings], Awaitable[str]]]] = {
    "data directory": data_directory,
    "etcd": etcd,
    "postgres": postgres,
    "kafka": kafka,
    "key-encryption key": key_encryption_key,
}

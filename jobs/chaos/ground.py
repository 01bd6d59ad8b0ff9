"""The stack that chaos has for itself: three etcd members, three brokers, Postgres, each behind a link."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import psycopg
from pydantic import SecretStr

from actors import cluster
from jobs.chaos.disks import Disks
from jobs.loading import load_settings
from pipeline.adapters import migrations
from pipeline.adapters.postgres import connection_string
from pipeline.errors import RuntimeFault, UsageError
from pipeline.local.record import StackRecord
from pipeline.local.resolve import embedded, resolve
from pipeline.local.server import LOOPBACK
from pipeline.local.stack import SERVERS, Stack
from pipeline.settings import ENV_PREFIX, Settings, SourceSettings
from pipeline.testing.chaos.links import Links

MEMBERS: Final = 3
BROKERS: Final = 3
SHARDS: Final = 4
SIGNED_PARTITIONS: Final = 4
CONSUMERS: Final = 2
SIGNERS: Final = 2
BATCH_ROWS_MAX: Final = 200
LINGER_S: Final = 0.1
QUOTA_BYTES: Final = 64 * 1024**2
HEAP_MIB: Final = 384
SOURCE: Final = "chaos"
ETCD_PORTS: Final = tuple(f"etcd-{index}.client" for index in range(MEMBERS))
KAFKA_PORTS: Final = tuple(f"kafka-{index}" for index in range(BROKERS))
LINKED_PORTS: Final = (*ETCD_PORTS, *KAFKA_PORTS, "postgres")


@dataclass(frozen=True, slots=True)
class Ground:
    """Servers that run, and the links to them."""

    data_dir: Path
    stack: Stack
    links: Links
    disks: Disks
    settings: Settings  #: as the pipeline has them: every address is a link's
    direct: Settings  #: the same without links, for what is no part of the experiment

    @property
    def source(self) -> SourceSettings:
        """The one that is signed."""
        return self.settings.sources[0]

    def record(self) -> StackRecord:
        """Who runs now."""
        return self.stack.status()

    def etcd_urls(self) -> list[str]:
        """Of the members themselves."""
        return self.direct.etcd.endpoints.split(",")

    def server(self, name: str) -> psutil.Process:
        """The process of a server. Raises RuntimeFault while it does not run."""
        process = self.record().running().get(name)
        if process is None:
            raise RuntimeFault(f"{name} does not run now.")
        return process


@contextmanager
def ground(settings: Settings, *, keep: bool) -> Iterator[Ground]:
    """Bring all of it up, below the data directory; take it down afterwards, and away unless it is to be kept.

    Raises UsageError when the settings name servers or one is there already, RuntimeFault, DiskFull.
    """
    if len(embedded(settings)) < len(SERVERS):
        raise UsageError("chaos kills its servers, so it uses its own, but the settings name others.", hint="")
    data_dir = settings.data_dir.resolve() / "chaos"
    if data_dir.exists():
        raise UsageError(f"{data_dir} is there already.", hint="Another run uses it, or one was told to keep it.")
    data_dir.mkdir(mode=0o700, parents=True)
    links = Links(LINKED_PORTS)
    disks = Disks(data_dir)
    stack = Stack(data_dir)
    try:
        record = _bring_up(stack, links, disks)
        os.environ |= environment(data_dir, settings)
        own = resolve(load_settings())
        made = Ground(data_dir, stack, links, disks, own, _direct(own, record.ports))
        _make_tables(made)
        yield made
    finally:
        cluster.stop(data_dir)
        stack.down()
        links.close()
        disks.give_back()
        if not keep:
            shutil.rmtree(data_dir, ignore_errors=True)


def environment(data_dir: Path, settings: Settings) -> dict[str, str]:
    """What makes every command use this ground."""
    source = SourceSettings(name=SOURCE, table=SOURCE, chain_id=settings.sources[0].chain_id, shards=SHARDS)
    named: Mapping[str, object] = {
        "DATA_DIR": data_dir,
        "DEPLOYMENT": "chaos",
        "SOURCES": f"[{source.model_dump_json()}]",
        "KAFKA__REPLICATION_FACTOR": BROKERS,
        "KAFKA__SIGNED_PARTITIONS": SIGNED_PARTITIONS,
        "POOL__CONSUMERS": CONSUMERS,
        "POOL__SIGNERS": SIGNERS,
        "READER__BATCH_ROWS_MAX": BATCH_ROWS_MAX,
        "READER__LINGER_S": LINGER_S,
    }
    return {ENV_PREFIX + name: str(value) for name, value in named.items()}


def _bring_up(stack: Stack, links: Links, disks: Disks) -> StackRecord:
    sizes = {"etcd.quota_bytes": QUOTA_BYTES, "kafka.heap_mib": HEAP_MIB}
    wanted = StackRecord(members=MEMBERS, brokers=BROKERS, fronts=links.ports(), sizes=sizes)
    wanted.save(stack.data_dir)
    if disks.available:
        stack.up(servers=("postgres",))
        stack.down()
        disks.move("postgres")
    record = stack.up(servers=SERVERS)
    links.start({name: record.ports[name] for name in LINKED_PORTS})
    return record


def _direct(settings: Settings, ports: Mapping[str, int]) -> Settings:
    direct = settings.model_copy(deep=True)
    direct.etcd.endpoints = ",".join(f"http://{LOOPBACK}:{ports[name]}" for name in ETCD_PORTS)
    dsn = settings.postgres.dsn.get_secret_value()
    told = dsn.rsplit(":", 1)[1].split("/")[0]
    direct.postgres.dsn = SecretStr(dsn.replace(f":{told}/", f":{ports['postgres']}/"))
    return direct


def _make_tables(made: Ground) -> None:
    migrations.migrate(made.direct.postgres)
    with psycopg.connect(connection_string(made.direct.postgres)) as connection:
        connection.execute("SELECT oncesign_create_source_v1(%s, %s)", [made.source.table, made.source.shards])

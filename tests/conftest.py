"""Real servers for the tests that claim anything about them: started once per session, on free ports, ended by pid.

Each server starts when the first test asks for it. A test gets a database of its own, a deployment of its own in etcd,
and topics of its own in Kafka.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo, sql
from pydantic import SecretStr

from pipeline.adapters.migrations import migrate
from pipeline.adapters.postgres import connection_string
from pipeline.local.stack import Stack
from pipeline.settings import EtcdSettings, KafkaSettings, PostgresSettings
from tests.early import Early, begun

SCRUBBED = ("ONCESIGN_", "PG", "KAFKA_", "RAY_")
KEPT = ("ONCESIGN_CACHE_DIR",)
TEMPLATE = "migrated"


BEGUN = pytest.StashKey[Early]()


def pytest_collection_finish(session: pytest.Session) -> None:
    if not session.config.option.collectonly:
        session.config.stash[BEGUN] = begun(item.nodeid for item in session.items)


def pytest_unconfigure(config: pytest.Config) -> None:
    if BEGUN in config.stash:
        config.stash[BEGUN].end()


@pytest.fixture(scope="session")
def early(request: pytest.FixtureRequest) -> Early:
    return request.config.stash[BEGUN]


@pytest.fixture(autouse=True)
def _scrubbed_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(SCRUBBED) and name not in KEPT:
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def servers_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def etcd_server(servers_dir: Path) -> Iterator[EtcdSettings]:
    stack = Stack(servers_dir / "etcd")
    try:
        yield EtcdSettings(endpoints=stack.up(servers=("etcd",)).addresses["etcd.endpoints"])
    finally:
        stack.down()


@pytest.fixture(scope="session")
def kafka_server(servers_dir: Path) -> Iterator[KafkaSettings]:
    stack = Stack(servers_dir / "kafka")
    try:
        yield KafkaSettings(bootstrap_servers=stack.up(servers=("kafka",)).addresses["kafka.bootstrap_servers"])
    finally:
        stack.down()


@pytest.fixture(scope="session")
def postgres_server(servers_dir: Path) -> Iterator[PostgresSettings]:
    """With a migrated database to copy."""
    stack = Stack(servers_dir / "postgres")
    try:
        record = stack.up(servers=("postgres",))
        server = PostgresSettings(
            dsn=SecretStr(record.addresses["postgres.dsn"]),
            password_file=Path(record.addresses["postgres.password_file"]),
        )
        with psycopg.connect(connection_string(server), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
        migrate(_database(server, TEMPLATE))
        yield server
    finally:
        stack.down()


@pytest.fixture
def postgres(postgres_server: PostgresSettings) -> Iterator[PostgresSettings]:
    """A fresh migrated database."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(connection_string(postgres_server), autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(TEMPLATE))
        )
        yield _database(postgres_server, name)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def kafka(kafka_server: KafkaSettings) -> KafkaSettings:
    """Topics of its own."""
    return kafka_server.model_copy(update={"topic_prefix": f"t{uuid.uuid4().hex[:8]}", "signed_partitions": 2})


@pytest.fixture
def deployment() -> str:
    """A deployment of its own."""
    return f"t{uuid.uuid4().hex[:12]}"


def _database(server: PostgresSettings, name: str) -> PostgresSettings:
    parts = conninfo.conninfo_to_dict(server.dsn.get_secret_value())
    dsn = f"postgresql://{parts['user']}@{parts['host']}:{parts['port']}/{name}"
    return server.model_copy(update={"dsn": SecretStr(dsn)})

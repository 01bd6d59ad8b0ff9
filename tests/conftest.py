"""Real servers for the tests that claim anything about them: started once per session, on free ports, ended by pid.

Each server starts when the first test asks for it. A test gets a database of its own, a deployment of its own in etcd,
and topics of its own in Kafka.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from pipeline.local.stack import Stack
from pipeline.settings import EtcdSettings, KafkaSettings, PostgresSettings
from tests.databases import fresh, make_template
from tests.early import Early, begun

SCRUBBED = ("ONCESIGN_", "PG", "KAFKA_", "RAY_")
KEPT = ("ONCESIGN_CACHE_DIR",)


BEGUN = pytest.StashKey[Early]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--node", default="anvil", help="the Ethereum node of the broadcast: anvil, or geth (built once)")


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
        make_template(server)
        yield server
    finally:
        stack.down()


@pytest.fixture
def postgres(postgres_server: PostgresSettings) -> Iterator[PostgresSettings]:
    """A fresh migrated database."""
    with fresh(postgres_server) as database:
        yield database


@pytest.fixture
def kafka(kafka_server: KafkaSettings) -> KafkaSettings:
    """Topics of its own."""
    return kafka_server.model_copy(update={"topic_prefix": f"t{uuid.uuid4().hex[:8]}", "signed_partitions": 2})


@pytest.fixture
def deployment() -> str:
    """A deployment of its own."""
    return f"t{uuid.uuid4().hex[:12]}"

"""Real servers for the tests that claim anything about them: started once per session, on free ports, ended by pid.

Each server starts when the first test asks for it. A test gets a database of its own, a deployment of its own in etcd,
and topics of its own in Kafka.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from pipeline.local.etcd import etcd_binary
from pipeline.local.kafka import kafka_jars
from pipeline.local.record import StackRecord
from pipeline.local.stack import Stack
from pipeline.settings import EtcdSettings, KafkaSettings, PostgresSettings
from tests.databases import fresh, make_template

SCRUBBED = ("ONCESIGN_", "PG", "KAFKA_", "RAY_")
KEPT = ("ONCESIGN_CACHE_DIR",)


PROCESSOR = ("tests/manifests/", "tests/simulation/", "tests/unit/", "tests/vectors/")
"""Folders of tests that need nothing but a processor."""

LONGEST = ("tests/integration/test_placed.py", "tests/chaos/")
"""Tests that take both processors for minutes."""

WHOLE = (
    *LONGEST,
    "tests/integration/test_broadcast",
    "tests/integration/test_pipeline.py",
    "tests/integration/test_recovery.py",
)
"""Tests of whole pipelines, which take about as long as all others with servers."""

SIDES = 3
NICENESS = 10

COMPILE = "from pipeline.ethereum import kernel; kernel.warm()"
COMPILE_TIMEOUT_S = 600


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--node", default="anvil", help="the Ethereum node of the broadcast: anvil, or geth (built once)")
    parser.addoption("--transactions", type=int, default=2_000, help="of each type, compared with eth-account's")


def pytest_sessionstart(session: pytest.Session) -> None:
    """What is built and downloaded once must not count as a test's time. Raises RuntimeFault."""
    if session.config.getoption("numprocesses") and "PYTEST_XDIST_WORKER" not in os.environ:
        compiling = subprocess.Popen([sys.executable, "-c", COMPILE])
        with ThreadPoolExecutor() as pool:
            for done in [pool.submit(etcd_binary), pool.submit(kafka_jars)]:
                done.result()
        compiling.wait(COMPILE_TIMEOUT_S)


class ThreeSides(LoadScopeScheduling):  # type: ignore[misc] # xdist has no types
    """With `-n 3`: two processes that often wait for servers, and one that takes what they leave of two processors."""

    def _split_scope(self, nodeid: str) -> str:
        return side(nodeid)


def side(nodeid: str) -> str:
    """Which process runs it."""
    if nodeid.startswith(PROCESSOR):
        return "processor"
    return "whole" if nodeid.startswith(WHOLE) else "servers"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ThreeSides:
    return ThreeSides(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    """Notebooks begin one side, and what takes both processors for long ends the other."""
    if "groups" in getattr(item, "fixturenames", ()):  # its cluster stays until the session ends
        return 3
    if item.nodeid.startswith("notebooks/"):
        return 0
    return 2 if item.nodeid.startswith(LONGEST) else 1


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A process does not come back from there, so only one that has nothing else to run goes there."""
    alone = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) >= SIDES
    if alone and side(item.nodeid) == "processor":
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)


@pytest.fixture(autouse=True)
def _scrubbed_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(SCRUBBED) and name not in KEPT:
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def servers_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers")


@contextmanager
def serving(folder: Path, server: str) -> Iterator[StackRecord]:
    """One server, until the end of the block."""
    stack = Stack(folder / server)
    try:
        yield stack.up(servers=(server,))
    finally:
        stack.down()


@pytest.fixture(scope="session")
def etcd_server(servers_dir: Path) -> Iterator[EtcdSettings]:
    with serving(servers_dir, "etcd") as record:
        yield EtcdSettings(endpoints=record.addresses["etcd.endpoints"])


@pytest.fixture(scope="session")
def kafka_server(servers_dir: Path) -> Iterator[KafkaSettings]:
    with serving(servers_dir, "kafka") as record:
        yield KafkaSettings(bootstrap_servers=record.addresses["kafka.bootstrap_servers"])


@pytest.fixture(scope="session")
def postgres_server(servers_dir: Path) -> Iterator[PostgresSettings]:
    """With a migrated database to copy."""
    with serving(servers_dir, "postgres") as record:
        server = PostgresSettings(
            dsn=SecretStr(record.addresses["postgres.dsn"]),
            password_file=Path(record.addresses["postgres.password_file"]),
        )
        make_template(server)
        yield server


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

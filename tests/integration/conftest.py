"""What tests of a whole pipeline share; each module says by its own `settings` on which servers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pipeline.custody.sealing import Kek
from pipeline.local.server import LOOPBACK, free_port
from pipeline.settings import EtcdSettings, KafkaSettings, PostgresSettings, ServiceSettings, Settings
from tests.command_line import Ended, Oncesign, environment, in_process
from tests.databases import fresh
from tests.ray_groups import Groups
from tests.unit.service_world import TOKEN


@pytest.fixture(scope="session")
def groups() -> Iterator[Groups]:
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        made = Groups(Path(folder))
        try:
            made.start()
            yield made
        finally:
            made.stop()


@pytest.fixture
def deployed(
    etcd_server: EtcdSettings, postgres: PostgresSettings, kafka: KafkaSettings, deployment: str, tmp_path: Path
) -> Settings:
    """A deployment of this test on the session's servers; there is no key-encryption key yet."""
    return Settings(deployment=deployment, data_dir=tmp_path, etcd=etcd_server, postgres=postgres, kafka=kafka)


@pytest.fixture(scope="module")
def deployed_for_all(
    request: pytest.FixtureRequest,
    etcd_server: EtcdSettings,
    postgres_server: PostgresSettings,
    kafka_server: KafkaSettings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Settings]:
    """A deployment of all tests of a module, which gives it its name as DEPLOYMENT."""
    name: str = request.module.DEPLOYMENT
    kafka = kafka_server.model_copy(update={"topic_prefix": name, "signed_partitions": 2})
    with fresh(postgres_server) as postgres:
        yield Settings(
            deployment=name, data_dir=tmp_path_factory.mktemp(name), etcd=etcd_server, postgres=postgres, kafka=kafka
        )


@pytest.fixture
def service(tmp_path: Path) -> ServiceSettings:
    """The key manager's service on a port of its own; its clients' token is in `token_file`."""
    (tmp_path / "token").write_text(TOKEN)
    return ServiceSettings(host=LOOPBACK, port=free_port(), token_file=tmp_path / "token")


@pytest.fixture
def kek(settings: Settings) -> Kek:
    return Kek.load(settings.kek_path)


@pytest.fixture
def oncesign(settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Oncesign:
    run = in_process(monkeypatch, capfd, settings.data_dir)

    def with_settings(*arguments: str, env: Mapping[str, str] | None = None) -> Ended:
        return run(*arguments, env=environment(settings) | dict(env or {}))

    return with_settings

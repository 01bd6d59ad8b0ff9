"""The key manager actor's service: up before it leads, ready when it does, gone when it was drained."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from pipeline.adapters.etcd import EtcdStore
from pipeline.adapters.ledger import PostgresLedger
from pipeline.assignment.manager import KeyManager
from pipeline.clock import SystemClock
from pipeline.custody.sealing import Kek
from pipeline.local.server import LOOPBACK
from pipeline.settings import EtcdSettings, KafkaSettings, PostgresSettings, ServiceSettings, Settings
from tests.command_line import environment
from tests.ray_groups import Groups
from tests.unit.service_world import TOKEN

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

READY_S = 60.0


@pytest.fixture
def settings(
    etcd_server: EtcdSettings, postgres: PostgresSettings, deployment: str, tmp_path: Path, service: ServiceSettings
) -> Settings:
    Kek.create(tmp_path / "kek")
    return Settings(
        deployment=deployment,
        data_dir=tmp_path,
        etcd=etcd_server,
        postgres=postgres,
        kafka=KafkaSettings(bootstrap_servers=f"{LOOPBACK}:1"),  # nothing here needs it
        service=service,
    )


def ask(settings: Settings, path: str) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"http://{LOOPBACK}:{settings.service.port}{path}", headers={"Authorization": f"Bearer {TOKEN}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - as above
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def until_ready(settings: Settings) -> None:
    deadline_s = time.monotonic() + READY_S
    while ask(settings, "/readyz")[0] != 200:
        assert time.monotonic() < deadline_s
        time.sleep(0.5)


async def test_the_service_lives_with_its_key_manager(settings: Settings, groups: Groups) -> None:
    placed = {"ONCESIGN_POOL__PLACED": "true", "ONCESIGN_POOL__SIGNERS": "1"}
    service = {
        "ONCESIGN_SERVICE__HOST": LOOPBACK,
        "ONCESIGN_SERVICE__PORT": str(settings.service.port),
        "ONCESIGN_SERVICE__TOKEN_FILE": str(settings.service.token_file),
    }
    env = groups.environment() | environment(settings) | placed | service

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "jobs.app", *arguments]
        return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120, check=False)

    store, ledger = EtcdStore(settings.etcd), PostgresLedger(settings.postgres)
    other = KeyManager(store, ledger, SystemClock(), settings)
    await other.start()
    try:
        done = await asyncio.to_thread(run, "keys", "list")  # the other one keeps its lease alive meanwhile
        assert done.returncode == 5, done.stderr
        status, problem = ask(settings, "/readyz")
        assert (status, json.loads(problem)["code"]) == (503, "not_leader")
    finally:
        await other.stop()
        await store.close()
        await ledger.close()
    until_ready(settings)
    done = run("keys", "create", "--count", "2")
    assert done.returncode == 0, done.stderr
    status, keys = ask(settings, "/v1/keys")
    assert (status, json.loads(keys)["total"]) == (200, 2)
    assert run("down").returncode == 0
    with pytest.raises(urllib.error.URLError, match="refused"):
        ask(settings, "/readyz")

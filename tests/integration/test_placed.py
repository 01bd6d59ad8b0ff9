"""A pipeline on a cluster with node groups: who may reach what, what outlives a job, and what replaces what."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from pipeline.adapters.postgres import connection_string
from pipeline.custody.sealing import Kek
from pipeline.settings import EtcdSettings, KafkaSettings, PostgresSettings, Settings, SourceSettings
from tests.command_line import environment
from tests.pipeline_run import stock
from tests.ray_groups import Groups

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROWS = 2_000
KEYS = 8
TIMEOUT_S = 240.0
WITHOUT_S = 60.0
"""Within that time the other signer has signed all; a batch waits for twice as long for a signer that never answers."""

LEAVE = """
import asyncio, sys
import ray
from jobs.desk import connect
from jobs.leave import leave
from jobs.loading import load_settings
settings = load_settings()
connect(settings)
node = next(n["NodeID"] for n in ray.nodes() if n["Alive"] and sys.argv[1] in n["Resources"])
asyncio.run(leave(settings, node))
"""


@pytest.fixture
def settings(
    etcd_server: EtcdSettings, postgres: PostgresSettings, kafka: KafkaSettings, deployment: str, tmp_path: Path
) -> Settings:
    Kek.create(tmp_path / "kek")
    return Settings(
        deployment=deployment,
        data_dir=tmp_path,
        etcd=etcd_server,
        postgres=postgres,
        kafka=kafka,
        sources=[SourceSettings(shards=8)],
    )


class Cluster:
    """Commands as jobs run them: on the head, where etcd is not to be reached."""

    def __init__(self, groups: Groups, settings: Settings) -> None:
        self.settings = settings
        placed = {"ONCESIGN_POOL__PLACED": "true", "ONCESIGN_POOL__SIGNERS": "2"}
        self.env = groups.environment() | environment(settings) | placed

    def run(self, *arguments: str, module: str = "jobs.app", code: int = 0) -> str:
        argv = [sys.executable, "-m", module, *arguments]
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == code, done.stderr[-3000:]
        return done.stdout if code == 0 else done.stderr

    def sign(self) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "jobs.sign"]
        return subprocess.Popen(argv, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def leave(self, group: str) -> None:
        """As jobs.leave does in a pod of this group; here several nodes share one address."""
        argv = [sys.executable, "-c", LEAVE, group]
        subprocess.run(argv, env=self.env, check=True, capture_output=True, timeout=120)

    def actors(self) -> list[str]:
        found: list[str] = json.loads(self.run("status", "--json"))["actors"]
        return found

    def settled(self, rows: int, within_s: float = TIMEOUT_S) -> None:
        """Wait until so many rows have an outcome."""
        deadline_s = time.monotonic() + within_s
        while self.outcomes() < rows:
            assert time.monotonic() < deadline_s, f"{self.outcomes()} of {rows}"
            time.sleep(0.3)

    def outcomes(self) -> int:
        with psycopg.connect(connection_string(self.settings.postgres)) as connection:
            row = connection.execute("SELECT count(*) FROM outcomes").fetchone()
        assert row is not None
        return int(row[0])


@pytest.fixture
def cluster(groups: Groups, settings: Settings) -> Iterator[Cluster]:
    made = Cluster(groups, settings)
    yield made
    made.run("down")


def summary(output: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return found


def signer_pid(output: str) -> int:
    """Of the first signer, in the last report of a job."""
    reports = [line for line in output.splitlines() if line.startswith('{"progress"')]
    return int(json.loads(reports[-1])["progress"]["pids"]["signer-0"])


def test_a_pipeline_outlives_its_job(cluster: Cluster) -> None:
    stock(cluster.settings, ROWS, invalid=0.1)
    cluster.run("up")
    assert cluster.actors() == ["key-manager"]
    assert len(cluster.run("keys", "create", "--count", str(KEYS)).split()) == KEYS
    job = cluster.sign()
    try:
        cluster.settled(ROWS)
    finally:
        job.kill()
    before = signer_pid(job.communicate()[0])
    killed = json.loads(cluster.run("consumer-0", module="jobs.accident"))["killed"]
    assert not psutil.pid_exists(killed)
    stock(cluster.settings, ROWS, seed=2)
    cluster.settled(2 * ROWS)
    assert signer_pid(cluster.run("--until-drained", module="jobs.sign")) == before
    assert cluster.actors() == ["key-manager"]
    assert json.loads(cluster.run("verify", "--json"))["violations"] == 0
    assert all(json.loads(line)["verdict"] == "ok" for line in cluster.run("doctor", "--json").splitlines())


def test_nodes_are_lost_and_other_settings_replace_it(cluster: Cluster, groups: Groups) -> None:
    cluster.env["ONCESIGN_POOL__SIGNERS_MAX"] = "3"  # and no node for the third
    cluster.env["ONCESIGN_READER__BATCH_ROWS_MAX"] = "20"
    cluster.run("keys", "create", "--count", str(KEYS))
    job = cluster.sign()
    try:
        for number, node in enumerate(["key_manager", "signers", "io"]):
            stock(cluster.settings, ROWS, seed=number)
            cluster.settled(number * ROWS + 1)
            if node == "io":
                cluster.leave(node)
            groups.kill_node(node)
            if node == "signers":  # there is another
                cluster.settled((number + 1) * ROWS, WITHOUT_S)
            groups.start_node(node)
            cluster.settled((number + 1) * ROWS)
    finally:
        job.kill()
    job.communicate()
    cluster.env["ONCESIGN_SIGNING__CHECK_ALL"] = "true"
    stock(cluster.settings, ROWS, seed=9)
    assert summary(cluster.run("--until-drained", module="jobs.sign"))["outcomes"]["signed"] == 4 * ROWS
    keys = [json.loads(line) for line in cluster.run("keys", "list", "--json").splitlines()]
    assert sum(key["next_nonce"] for key in keys) == 4 * ROWS
    assert json.loads(cluster.run("verify", "--json"))["violations"] == 0

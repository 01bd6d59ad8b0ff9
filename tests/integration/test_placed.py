"""A pipeline on a cluster with node groups: who may reach what, what outlives a job, and what replaces what."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from pipeline.custody.sealing import Kek
from pipeline.settings import Settings
from tests.pipeline_run import stock
from tests.placed import Cluster
from tests.ray_groups import Groups

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROWS = 2_000
KEYS = 8
WITHOUT_S = 60.0
"""Within that time the other signer has signed all; a batch waits for twice as long for a signer that never answers."""


@pytest.fixture
def settings(deployed: Settings) -> Settings:
    Kek.create(deployed.kek_path)
    return deployed


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
    stock(cluster.settings, ROWS, seed=2)
    cluster.settled(2 * ROWS)
    assert not psutil.pid_exists(killed)
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

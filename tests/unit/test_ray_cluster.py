"""Starting and ending the local Ray cluster, without Ray."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from actors import cluster
from jobs import submission
from pipeline.errors import NotLeader, RayUnavailable, RuntimeFault


class _StartedError(Exception):
    """Instead of a head."""


def test_a_head_does_not_hand_the_settings_of_its_starter_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a job whose own environment leaves a variable out would run with the one of an earlier command."""
    given: dict[str, str] = {}

    def popen(*_args: Any, env: dict[str, str], **_more: Any) -> None:
        given.update(env)
        raise _StartedError

    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setenv("ONCESIGN_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("HOME", "/home/me")
    with pytest.raises(_StartedError):
        cluster.start(tmp_path, 1)
    assert given["HOME"] == "/home/me"
    assert not [name for name in given if name.startswith("ONCESIGN_")]
    assert (tmp_path / "logs").is_dir()  # with servers of the user's own, `up` has made none


class Heads:
    """In place of Ray's: each does what a line of shell says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *lives: str) -> None:
        self.ports: list[set[str]] = []
        self.started: list[subprocess.Popen[bytes]] = []
        self._lives = lives
        self._real = subprocess.Popen
        monkeypatch.setattr(subprocess, "Popen", self._popen)

    def _popen(self, argv: list[str], **more: Any) -> subprocess.Popen[bytes]:
        self.ports.append({part.split("=")[1] for part in argv if "-port=" in part})
        self.started.append(self._real(["sh", "-c", self._lives[len(self.started)]], **more))
        return self.started[-1]


def test_a_head_whose_port_was_taken_meanwhile_is_started_with_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = Heads(monkeypatch, "echo port taken; exit 1", "exec sleep 60")
    monkeypatch.setattr(cluster, "_serves", lambda _cluster: len(heads.started) == 2)
    started = cluster.start(tmp_path, 1)
    assert cluster.running(tmp_path) == started
    first, second = heads.ports
    assert len(first) == len(second) == len(cluster.PORT_FLAGS) + 1  # and 0, for workers
    assert cluster.stop(tmp_path)
    for head in heads.started:
        head.wait(10)
    assert cluster.running(tmp_path) is None


def test_a_head_that_never_starts_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = Heads(monkeypatch, *["echo no head; exit 1"] * cluster.START_TRIES)
    monkeypatch.setattr(cluster, "_serves", lambda _cluster: False)
    with pytest.raises(RuntimeFault, match="no head"):
        cluster.start(tmp_path, 1)
    assert len(heads.started) == cluster.START_TRIES


def test_a_head_that_was_stopped_is_not_started_again_by_a_job_that_lost_it(tmp_path: Path) -> None:
    with pytest.raises(RayUnavailable, match="it was stopped") as refused:
        cluster.start(tmp_path, 1, again=True)
    assert refused.value.exit_code == 3
    assert "Nothing is lost" in str(refused.value)


def jobs_of(*jobs: tuple[str, JobStatus]) -> Any:
    listed = [
        SimpleNamespace(submission_id=f"job-{number}", status=status, metadata={"deployment": deployment})
        for number, (deployment, status) in enumerate(jobs)
    ]
    return SimpleNamespace(list_jobs=lambda: listed)


@pytest.mark.parametrize("status", [JobStatus.PENDING, JobStatus.RUNNING])
def test_a_second_job_of_a_deployment_is_refused(status: JobStatus) -> None:
    with pytest.raises(NotLeader, match="deployment d is being signed already, by job job-0") as refused:
        submission._require_alone(jobs_of(("d", status)), "d")
    assert refused.value.exit_code == 5


def test_jobs_that_ended_and_other_deployments_are_no_obstacle() -> None:
    ended = [("d", status) for status in (JobStatus.STOPPED, JobStatus.FAILED, JobStatus.SUCCEEDED)]
    submission._require_alone(jobs_of(*ended, ("other", JobStatus.RUNNING)), "d")

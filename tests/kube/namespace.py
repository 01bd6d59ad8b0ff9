"""The demo's namespace, through kubectl: pods, servers, and jobs by way of the dashboard."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ray.job_submission import JobStatus, JobSubmissionClient

from pipeline.local.server import free_port

NAME: Final = "demo"
CLUSTER: Final = "oncesign"
CALL_TIMEOUT_S: Final = 60.0
LOOK_S: Final = 0.5
ENDED: Final = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED})
PSQL: Final = (
    'PGPASSWORD="$(cat /run/secrets/oncesign/postgres/password)" /opt/postgres/bin/psql -qtA -h 127.0.0.1 -U oncesign'
)


class KubeError(Exception):
    """A command failed, or what was waited for did not come."""


def kubectl(*arguments: str, timeout_s: float = CALL_TIMEOUT_S, given: str | None = None) -> str:
    """Its output. Raises KubeError."""
    done = subprocess.run(
        ["kubectl", *arguments], capture_output=True, text=True, timeout=timeout_s, check=False, input=given
    )
    if done.returncode != 0:
        raise KubeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()[-1000:]}")
    return done.stdout


def until(what: str, true: Callable[[], bool], timeout_s: float) -> float:
    """Wait; the seconds that it took. A command that fails meanwhile is tried again. Raises KubeError."""
    started_s = time.monotonic()
    last = ""
    while time.monotonic() - started_s < timeout_s:
        try:
            if true():
                return time.monotonic() - started_s
        except (KubeError, subprocess.TimeoutExpired) as error:
            last = str(error)
        time.sleep(LOOK_S)
    raise KubeError(f"{what}: not in {timeout_s:.0f} s. {last}")


def pods(selector: str) -> list[dict[str, Any]]:
    """Those with the labels, the ones that are being deleted left out."""
    found = json.loads(kubectl("-n", NAME, "get", "pods", "-l", selector, "-o", "json"))["items"]
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def restarts() -> dict[str, int]:
    """Container restarts by pod."""
    found = json.loads(kubectl("-n", NAME, "get", "pods", "-o", "json"))["items"]
    return {
        pod["metadata"]["name"]: sum(status["restartCount"] for status in pod["status"].get("containerStatuses", []))
        for pod in found
    }


def ready() -> bool:
    """Whether the RayCluster says that all of its pods are."""
    state = kubectl("-n", NAME, "get", "raycluster", CLUSTER, "-o", "jsonpath={.status.state}")
    return state.strip() == "ready"


def sql(statement: str) -> list[str]:
    """Rows of a query, in the demo's Postgres."""
    output = kubectl("-n", NAME, "exec", "-i", "pgsql-0", "--", "sh", "-c", PSQL, given=statement)
    return output.split()


@contextmanager
def dashboard() -> Iterator[Dashboard]:
    """The head's dashboard, by a forwarded port that is opened again when the head is another pod."""
    made = Dashboard()
    try:
        yield made
    finally:
        made.close()


class Dashboard:
    """Submits jobs, and tells how they ended."""

    def __init__(self) -> None:
        self._port = free_port()
        self._forward: subprocess.Popen[bytes] | None = None

    def submit(self, entry_point: str) -> str:
        """The job's id. Raises KubeError."""
        return str(self._client().submit_job(entrypoint=entry_point))

    def run(self, entry_point: str, timeout_s: float) -> str:
        """A job to its end; its log. Raises KubeError when it failed."""
        until("the dashboard answers", lambda: bool(self._client()), timeout_s)
        job = self.submit(entry_point)
        until(f"{entry_point} ends", lambda: self.status(job) in ENDED, timeout_s)
        logs = self.logs(job)
        if self.status(job) is not JobStatus.SUCCEEDED:
            raise KubeError(f"{entry_point} failed:\n{logs[-3000:]}")
        return logs

    def status(self, job: str) -> JobStatus:
        """Of a job. Raises KubeError while the head is away."""
        return JobStatus(self._ask(lambda client: client.get_job_status(job)))

    def logs(self, job: str) -> str:
        """Of a job."""
        return str(self._ask(lambda client: client.get_job_logs(job)))

    def stop(self, job: str) -> None:
        """SIGTERM to its driver, which drains."""
        self._ask(lambda client: client.stop_job(job))

    def close(self) -> None:
        """End the forwarding."""
        if self._forward is not None:
            self._forward.kill()
            self._forward.wait()
            self._forward = None

    def _ask(self, question: Callable[[JobSubmissionClient], Any]) -> Any:
        try:
            return question(self._client())
        except (RuntimeError, OSError) as error:
            self.close()
            raise KubeError(f"the dashboard: {str(error)[-500:]}") from error

    def _client(self) -> JobSubmissionClient:
        if self._forward is None or self._forward.poll() is not None:
            self._open()
        token = b64decode(kubectl("-n", NAME, "get", "secret", CLUSTER, "-o", "jsonpath={.data.auth_token}")).decode()
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        try:
            return JobSubmissionClient(f"http://127.0.0.1:{self._port}", headers={"Authorization": f"Bearer {token}"})
        except (RuntimeError, OSError) as error:
            self.close()
            raise KubeError(f"the dashboard: {str(error)[-500:]}") from error

    def _open(self) -> None:
        self._forward = subprocess.Popen(
            ["kubectl", "-n", NAME, "port-forward", f"svc/{CLUSTER}-head-svc", f"{self._port}:8265"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with contextlib.suppress(KubeError):
            until("the forwarded port", lambda: _listens(self._port), 10)


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True
    except OSError:
        return False


def say(text: str) -> None:
    """To whoever waits."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def checkout() -> Path:
    """Where the manifests are."""
    return Path(__file__).resolve().parents[2]

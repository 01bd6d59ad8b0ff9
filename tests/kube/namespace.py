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
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

from ray.job_submission import JobStatus, JobSubmissionClient

from pipeline.local.server import free_port

NAME: Final = "demo"
CLUSTER: Final = "oncesign"
CALL_TIMEOUT_S: Final = 60.0
LOOK_S: Final = 0.5
FORWARD_TIMEOUT_S: Final = 10.0
GONE_TIMEOUT_S: Final = 180.0
ACTORS_MAX: Final = 1000
COMPLAINTS: Final = frozenset({"BackOff", "Failed", "OOMKilling", "Evicted"})
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


def until(what: str, true: Callable[[], bool], timeout_s: float, every_s: float = LOOK_S) -> float:
    """Wait; the seconds that it took. A command that fails meanwhile is tried again. Raises KubeError."""
    started_s = time.monotonic()
    last = ""
    while time.monotonic() - started_s < timeout_s:
        try:
            if true():
                return time.monotonic() - started_s
        except (KubeError, subprocess.TimeoutExpired) as error:
            last = str(error)
        time.sleep(every_s)
    raise KubeError(f"{what}: not in {timeout_s:.0f} s. {last}")


def exists() -> bool:
    """Whether somebody has made the namespace before; one that is being deleted is waited for. Raises KubeError."""
    until(f"the end of the last namespace {NAME}", lambda: _phase() != "Terminating", GONE_TIMEOUT_S)
    return bool(_phase())


def _phase() -> str:
    return kubectl("get", "namespace", NAME, "--ignore-not-found", "-o", "jsonpath={.status.phase}").strip()


def pods(selector: str) -> list[dict[str, Any]]:
    """Those with the labels, the ones that are being deleted left out."""
    return [pod for pod in all_pods(selector) if "deletionTimestamp" not in pod["metadata"]]


def all_pods(selector: str) -> list[dict[str, Any]]:
    """Those with the labels, the ones that are being deleted, too."""
    found: list[dict[str, Any]] = json.loads(kubectl("-n", NAME, "get", "pods", "-l", selector, "-o", "json"))["items"]
    return found


def pod_ready(pod: dict[str, Any]) -> bool:
    """Whether Kubernetes says so of a pod."""
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))


def restarts() -> dict[str, int]:
    """Container restarts by pod."""
    found = json.loads(kubectl("-n", NAME, "get", "pods", "-o", "json"))["items"]
    return {
        pod["metadata"]["name"]: sum(status["restartCount"] for status in pod["status"].get("containerStatuses", []))
        for pod in found
    }


def complaints() -> dict[str, int]:
    """Kubernetes' warnings that a pod fails again and again, by reason and object, with their counts."""
    found = json.loads(kubectl("-n", NAME, "get", "events", "--field-selector=type=Warning", "-o", "json"))["items"]
    return {
        f"{event['reason']} {event['involvedObject']['name']}": event.get("count") or 1
        for event in found
        if event["reason"] in COMPLAINTS
    }


def ready() -> bool:
    """Whether the RayCluster says that all of its pods are."""
    state = kubectl("-n", NAME, "get", "raycluster", CLUSTER, "-o", "jsonpath={.status.state}")
    return state.strip() == "ready"


def sql(statement: str) -> list[str]:
    """Rows of a query, in the demo's Postgres."""
    output = kubectl("-n", NAME, "exec", "-i", "pgsql-0", "--", "sh", "-c", PSQL, given=statement)
    return output.split()


class Forward:
    """A port here that leads to one of a service, opened again when it broke."""

    def __init__(self, service: str, port: int) -> None:
        self.url = f"http://127.0.0.1:{(local := free_port())}"
        self._local = local
        self._argv = ["kubectl", "-n", NAME, "port-forward", f"svc/{service}", f"{local}:{port}"]
        self._process: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        """Returns when it listens, or after some seconds."""
        if self._process is not None and self._process.poll() is None:
            return
        self._process = subprocess.Popen(self._argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with contextlib.suppress(KubeError):
            until("the forwarded port", lambda: _listens(self._local), FORWARD_TIMEOUT_S)

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Dashboard:
    """Submits jobs, and tells how they ended; a context manager."""

    def __init__(self) -> None:
        self._forward = Forward(f"{CLUSTER}-head-svc", 8265)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._forward.close()

    def submit(self, entry_point: str) -> str:
        """The job's id. Raises KubeError."""
        return str(self._ask(lambda client: client.submit_job(entrypoint=entry_point)))

    def run(self, entry_point: str, timeout_s: float) -> str:
        """A job to its end; its log. Raises KubeError when it failed."""
        status, logs = self.end_of(entry_point, timeout_s)
        if status is not JobStatus.SUCCEEDED:
            raise KubeError(f"{entry_point} failed:\n{logs[-3000:]}")
        return logs

    def end_of(self, entry_point: str, timeout_s: float) -> tuple[JobStatus, str]:
        """How a job ended, and its log. Raises KubeError."""
        until("the dashboard answers", lambda: bool(self._ask(lambda client: client.get_version())), timeout_s)
        job = self.submit(entry_point)
        until(f"{entry_point} ends", lambda: self.status(job) in ENDED, timeout_s)
        return self.status(job), self.logs(job)

    def status(self, job: str) -> JobStatus:
        """Of a job. Raises KubeError while the head is away."""
        return JobStatus(self._ask(lambda client: client.get_job_status(job)))

    def logs(self, job: str) -> str:
        """Of a job."""
        return str(self._ask(lambda client: client.get_job_logs(job)))

    def actors(self, kind: str) -> list[str]:
        """Names of the living actors of a class. Raises KubeError while the head is away."""
        answer = self._ask(lambda client: client._do_request("GET", "/api/v0/actors", params={"limit": ACTORS_MAX}))
        if not answer.ok:
            raise KubeError(f"the dashboard: {answer.status_code} {answer.text[-500:]}")
        found = answer.json()["data"]["result"]["result"]
        return sorted(one["name"] for one in found if (one["class_name"], one["state"]) == (kind, "ALIVE"))

    def stop(self, job: str) -> None:
        """SIGTERM to its driver, which drains."""
        self._ask(lambda client: client.stop_job(job))

    def _ask(self, question: Callable[[JobSubmissionClient], Any]) -> Any:
        try:
            return question(self._client())
        except (RuntimeError, OSError) as error:
            self._forward.close()
            raise KubeError(f"the dashboard: {str(error)[-500:]}") from error

    def _client(self) -> JobSubmissionClient:
        token = secret(CLUSTER, "auth_token")
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        self._forward.open()
        try:
            return JobSubmissionClient(self._forward.url, headers={"Authorization": f"Bearer {token}"})
        except OSError:  # what listens here still leads to a head that is gone
            self._forward.close()
            self._forward.open()
            return JobSubmissionClient(self._forward.url, headers={"Authorization": f"Bearer {token}"})


def secret(name: str, key: str) -> str:
    """One value of a Secret."""
    escaped = key.replace(".", "\\.")
    return b64decode(kubectl("-n", NAME, "get", "secret", name, "-o", f"jsonpath={{.data.{escaped}}}")).decode()


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

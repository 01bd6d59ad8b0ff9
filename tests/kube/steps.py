"""Steps that each run on a cluster takes: apply an overlay, end a job, verify."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Final

from tests.kube.namespace import ENDED, NAME, Dashboard, kubectl, ready, say, until

READY_TIMEOUT_S: Final = 300.0
SERVERS_TIMEOUT_S: Final = 180.0
JOB_TIMEOUT_S: Final = 300.0
DRAIN_TIMEOUT_S: Final = 180.0
STATEFUL_SETS: Final = ("etcd", "pgsql", "kafka", "redis")


def apply(overlay: Callable[[], object]) -> float:
    """Apply an overlay; seconds until the RayCluster is ready."""
    started_s = time.monotonic()
    overlay()
    until("the RayCluster is ready", ready, READY_TIMEOUT_S)
    seconds = time.monotonic() - started_s
    say(f"ready {seconds:.0f} s after apply")
    for name in STATEFUL_SETS:
        kubectl(
            "-n", NAME, "rollout", "status", f"statefulset/{name}", f"--timeout={SERVERS_TIMEOUT_S:.0f}s",
            timeout_s=SERVERS_TIMEOUT_S + 10,
        )  # fmt: skip
    return round(seconds, 1)


def end(jobs: Dashboard, job: str) -> None:
    """Stop a job that may have ended with its head. Raises KubeError."""
    if jobs.status(job) not in ENDED:
        jobs.stop(job)
    until("the stopped job ends", lambda: jobs.status(job) in ENDED, DRAIN_TIMEOUT_S)


def verify(jobs: Dashboard) -> int:
    """The number of violations; a job that finds one fails."""
    found = last_json(jobs.run("oncesign verify --json", JOB_TIMEOUT_S))
    say(f"verified: {found['signed']:,} signed, {found['rejected']:,} rejected, {found['violations']} violations")
    return int(found["violations"])


def last_json(logs: str) -> dict[str, Any]:
    """The last line of a job's log that is JSON."""
    found: dict[str, Any] = json.loads(json_lines(logs)[-1])
    return found


def json_lines(logs: str) -> list[str]:
    """The lines of a log that are JSON."""
    return [line for line in logs.splitlines() if line.startswith("{")]

"""`python -m tests.kube`: build and load the image, apply the demo, sign, delete pods while signing, verify, tear down.

Needs kubectl and KUBECONFIG, and a cluster with the KubeRay operator. Prints a table and one JSON line; exit code 1
when anything is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any, Final

from tests.kube import faults
from tests.kube.namespace import NAME, Dashboard, KubeError, checkout, dashboard, kubectl, ready, restarts, say, until

OVERLAY: Final = "kuberay/overlays/demo"
READY_TIMEOUT_S: Final = 300.0
SERVERS_TIMEOUT_S: Final = 180.0
JOB_TIMEOUT_S: Final = 300.0
SIGN_TIMEOUT_S: Final = 600.0
DRAIN_TIMEOUT_S: Final = 180.0
DELETE_TIMEOUT_S: Final = 300.0
IMAGE_TIMEOUT_S: Final = 3600.0
KEYS: Final = 16
STATEFUL_SETS: Final = ("etcd", "pgsql", "kafka", "redis")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.kube", description=__doc__)
    parser.add_argument("--image", default="", help="a shell command that builds oncesign:demo and loads it")
    parser.add_argument("--rows", type=int, default=50_000, help="to sign before pods are deleted")
    parser.add_argument("--rounds", type=int, default=1, help="how often each kind of pod is deleted")
    parser.add_argument("--settle", type=float, default=10.0, help="seconds of signing between two deletions")
    parser.add_argument("--keep", action="store_true", help="leave the namespace as it is at the end")
    arguments = parser.parse_args()
    try:
        if arguments.image:
            say("building and loading the image")
            subprocess.run(arguments.image, shell=True, check=True, cwd=checkout(), timeout=IMAGE_TIMEOUT_S)  # noqa: S602 - the caller's own command
        report = run(arguments.rows, arguments.rounds, arguments.settle)
    except (KubeError, subprocess.SubprocessError) as error:
        say(f"error: {error}")
        sys.exit(1)
    finally:
        if not arguments.keep:
            tear_down()
    sys.stdout.write(json.dumps(report) + "\n")
    sys.exit(0 if report["ok"] else 1)


def run(rows: int, rounds: int, settle_s: float) -> dict[str, Any]:
    """All of it; what was measured. Raises KubeError."""
    report: dict[str, Any] = {"ready_s": apply()}
    with dashboard() as jobs:
        report |= sign(jobs, rows)
        report |= sign_while_pods_are_deleted(jobs, rounds, settle_s)
    report["ok"] = not report["violations"] and not report["too_late"] and not report["restarted"]
    return report


def apply() -> float:
    """Apply the overlay; seconds until the RayCluster is ready."""
    started_s = time.monotonic()
    kubectl("apply", "-k", str(checkout() / OVERLAY), timeout_s=READY_TIMEOUT_S)
    until("the RayCluster is ready", ready, READY_TIMEOUT_S)
    seconds = time.monotonic() - started_s
    say(f"ready {seconds:.0f} s after apply")
    for name in STATEFUL_SETS:
        kubectl(
            "-n", NAME, "rollout", "status", f"statefulset/{name}", f"--timeout={SERVERS_TIMEOUT_S:.0f}s",
            timeout_s=SERVERS_TIMEOUT_S + 10,
        )  # fmt: skip
    return round(seconds, 1)


def sign(jobs: Dashboard, rows: int) -> dict[str, Any]:
    """The jobs of docs/kubernetes.md, one after the other."""
    for entry_point in ("oncesign migrate", "oncesign up", f"oncesign keys create --count {KEYS}"):
        say(entry_point)
        jobs.run(entry_point, JOB_TIMEOUT_S)
    say(f"oncesign stock --count {rows}")
    jobs.run(f"oncesign stock --count {rows} --invalid 0.01", JOB_TIMEOUT_S)
    say("python -m jobs.sign --until-drained")
    summary = last_json(jobs.run("python -m jobs.sign --until-drained", SIGN_TIMEOUT_S))
    say(f"signed {summary['signed']:,}, rejected {summary['rejected']:,} in {summary['seconds']} s")
    verify(jobs)
    return {"rows": rows, "signed": summary["signed"], "rejected": summary["rejected"], "seconds": summary["seconds"]}


def sign_while_pods_are_deleted(jobs: Dashboard, rounds: int, settle_s: float) -> dict[str, Any]:
    """Rows come all the time, pods go; at the end everything is verified."""
    before = restarts()
    job = jobs.submit("python -m jobs.sign")
    feeder = faults.Feeder()
    feeder.start()
    try:
        until("signing begins", lambda: faults.outcomes() > 0, JOB_TIMEOUT_S)
        found = faults.delete_each(kinds, rounds, settle_s)
    finally:
        feeder.stop()
    until("every row has its outcome", lambda: faults.outcomes() == faults.rows(), JOB_TIMEOUT_S)
    say("draining, and verifying")
    summary = last_json(jobs.run("python -m jobs.sign --until-drained", SIGN_TIMEOUT_S + DRAIN_TIMEOUT_S))
    violations = verify(jobs)
    for line in faults.table(found):
        say(line)
    after = restarts()
    restarted = {name: count for name, count in after.items() if name in before and count > before[name]}
    return {
        "resumed_s": {kind: [round(seconds, 1) for seconds in times] for kind, times in found.items()},
        "too_late": faults.too_late(found),
        "restarted": restarted,
        "outcomes": summary["outcomes"],
        "first_job": str(jobs.status(job)),
        "violations": violations,
    }


def verify(jobs: Dashboard) -> int:
    """The number of violations; a job that finds one fails."""
    found = last_json(jobs.run("oncesign verify --json", JOB_TIMEOUT_S))
    say(f"verified: {found['signed']:,} signed, {found['rejected']:,} rejected, {found['violations']} violations")
    return int(found["violations"])


def last_json(logs: str) -> dict[str, Any]:
    """The last line of a job's log that is JSON."""
    lines = [line for line in logs.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def tear_down() -> None:
    """The RayCluster first: the operator empties its Redis, which must still be there."""
    for arguments in (
        ["-n", NAME, "delete", "raycluster", "--all", "--ignore-not-found"],
        ["delete", "-k", str(checkout() / OVERLAY), "--ignore-not-found"],
    ):
        try:
            kubectl(*arguments, timeout_s=DELETE_TIMEOUT_S)
        except (KubeError, subprocess.TimeoutExpired) as error:
            say(f"tearing down: {error}")


if __name__ == "__main__":
    main()

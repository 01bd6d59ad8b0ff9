"""`python -m tests.kube`: build and load the image, apply the demo, sign, delete pods while signing, verify, tear down.

With --scaled, instead: the demo with Ray's autoscaler, and how the number of signers follows what waits.
Needs kubectl and KUBECONFIG, and a cluster with the KubeRay operator. Prints a table and one JSON line; exit code 1
when anything is not as it should be. A namespace `demo` that was there before is used, and left as it is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.kube import faults, idle, page, refusals, scaling, ways
from tests.kube.namespace import (
    NAME,
    Dashboard,
    KubeError,
    checkout,
    complaints,
    exists,
    kubectl,
    restarts,
    say,
    until,
)
from tests.kube.steps import DRAIN_TIMEOUT_S, JOB_TIMEOUT_S, READY_TIMEOUT_S, apply, end, json_lines, last_json, verify

SIGN_TIMEOUT_S: Final = 600.0
DELETE_TIMEOUT_S: Final = 300.0
IMAGE_TIMEOUT_S: Final = 3600.0
IDLE_AFTER_S: Final = 15.0


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.kube", description=__doc__)
    parser.add_argument("--image", default="", help="a shell command that builds oncesign:demo and loads it")
    parser.add_argument("--scaled", action="store_true", help="delete no pod; see the number of signers follow the lag")
    parser.add_argument("--rounds", type=int, default=1, help="how often each kind of pod is deleted")
    parser.add_argument("--only", action="append", metavar="KIND", help="delete pods of this kind only, e.g. signer")
    parser.add_argument("--settle", type=float, default=10.0, help="seconds of signing between two deletions")
    parser.add_argument("--keep", action="store_true", help="leave the namespace as it is at the end")
    arguments = parser.parse_args()
    kinds = [kind for kind in faults.KINDS if not arguments.only or kind.name in arguments.only]
    report: dict[str, Any] = {"ok": False}
    keep = True
    try:
        keep = arguments.keep or exists()
        if arguments.image:
            say("building and loading the image")
            subprocess.run(arguments.image, shell=True, check=True, cwd=checkout(), timeout=IMAGE_TIMEOUT_S)  # noqa: S602 - the caller's own command
        if arguments.scaled:
            scaling.run(report)
        else:
            run(report, Deletions(kinds, arguments.rounds, arguments.settle))
    except (KubeError, subprocess.SubprocessError) as error:
        report["error"] = str(error)
        say(f"error: {error}")
    finally:
        if not keep:
            tear_down()
    sys.stdout.write(json.dumps(report) + "\n")
    sys.exit(0 if report["ok"] else 1)


@dataclass(frozen=True, slots=True)
class Deletions:
    """Which pods, how often, and how long signing goes on between two."""

    kinds: Sequence[faults.Kind]
    rounds: int
    settle_s: float


def run(report: dict[str, Any], deletions: Deletions) -> None:
    """All of it, into the report. Raises KubeError."""
    report["ready_s"] = apply(lambda: page.follow(page.APPLY, timeout_s=READY_TIMEOUT_S))
    with Dashboard() as jobs:
        report |= sign()
        report |= rest(jobs)
        report |= try_ways()
        report |= sign_while_pods_are_deleted(jobs, deletions)
        report["not_refused"] = refusals.missed(jobs)
        recover(jobs)
        report["violations"] += verify(jobs)
    wrong = ("violations", "too_late", "restarted", "complaints", "not_refused", "blocked", "open", "too_busy")
    report["ok"] = not any(report[name] for name in wrong)


def sign() -> dict[str, Any]:
    """As the page says."""
    printed = page.follow(page.REACH, page.FILL, page.SIGN, timeout_s=SIGN_TIMEOUT_S)
    [summary] = [found for line in json_lines(printed) if (found := json.loads(line)).get("drained")]
    say(f"signed {summary['signed']:,}, rejected {summary['rejected']:,} in {summary['seconds']} s")
    return {name: summary[name] for name in ("signed", "rejected", "seconds")}


def rest(jobs: Dashboard) -> dict[str, Any]:
    """What the pipeline uses while it runs and nothing comes; then the job is stopped, which drains it."""
    job = jobs.submit("python -m jobs.sign")
    until("the pipeline runs", lambda: '"progress"' in jobs.logs(job), JOB_TIMEOUT_S)
    time.sleep(IDLE_AFTER_S)
    share, bare, actors = idle.share(jobs)
    say(f"idle: {share:.1%} of a core")
    end(jobs, job)
    summary = last_json(jobs.logs(job))
    say(f"stopped: {summary['outcomes']}")
    return {"idle_share": share, "idle_bare_cpu_s": bare, "idle_cpu_s": actors, "too_busy": share > idle.BOUND}


def try_ways() -> dict[str, Any]:
    """Ways that must be open and are not; others, if the cluster's network enforces policies at all."""
    allowed, found = ways.allowed(), ways.open_ways()
    everything = {(caller, called) for caller in ways.CALLERS for called in ways.CALLED}
    enforced = found != everything
    say(f"{len(found)} ways between pods are open" + ("" if enforced else ": this network enforces no policy"))
    return {
        "policies_enforced": enforced,
        "blocked": sorted(map(" → ".join, allowed - found)),
        "open": sorted(map(" → ".join, found - allowed)) if enforced else [],
    }


def sign_while_pods_are_deleted(jobs: Dashboard, deletions: Deletions) -> dict[str, Any]:
    """Rows come all the time, pods go; at the end everything is verified."""
    before = restarts()
    job = jobs.submit("python -m jobs.sign")
    known = faults.outcomes()
    feeder = faults.Feeder()
    feeder.start()
    try:
        until("signing begins", lambda: faults.outcomes() > known, JOB_TIMEOUT_S)
        found = faults.delete_each(deletions.kinds, deletions.rounds, deletions.settle_s)
    finally:
        feeder.stop()
    until("every row has its outcome", lambda: faults.outcomes() == faults.rows(), JOB_TIMEOUT_S)
    say("draining, and verifying")
    end(jobs, job)
    summary = last_json(jobs.run("python -m jobs.sign --until-drained", SIGN_TIMEOUT_S + DRAIN_TIMEOUT_S))
    violations = verify(jobs)
    for line in faults.table(found):
        say(line)
    return {
        "stood_still_s": {kind: [round(seconds, 1) for seconds in times] for kind, times in found.items()},
        "too_late": faults.too_late(found),
        "restarted": {name: count for name, count in restarts().items() if count > before.get(name, 0)},
        "complaints": complaints(),
        "outcomes": summary["outcomes"],
        "violations": violations,
    }


def recover(jobs: Dashboard) -> None:
    """With everything ended, as an operator does it. Raises KubeError."""
    jobs.run("oncesign down", JOB_TIMEOUT_S)
    folder = str(checkout() / "kuberay" / "recovery")
    kubectl("apply", "-k", folder)
    try:
        kubectl(
            "-n", NAME, "wait", "job/recover", "--for=condition=complete", f"--timeout={JOB_TIMEOUT_S:.0f}s",
            timeout_s=JOB_TIMEOUT_S + 10,
        )  # fmt: skip
    except KubeError as error:
        logs = kubectl("-n", NAME, "logs", "job/recover", "--tail=20")
        raise KubeError(f"{error}\n{logs}") from error
    finally:
        kubectl("delete", "-k", folder, "--ignore-not-found")
    say("recovered")
    jobs.run("oncesign up", JOB_TIMEOUT_S)


def tear_down() -> None:
    """As the page says."""
    try:
        page.follow(page.REMOVE, timeout_s=DELETE_TIMEOUT_S)
    except (KubeError, subprocess.TimeoutExpired) as error:
        say(f"tearing down: {error}")


if __name__ == "__main__":
    main()

"""`python -m tests.kube --scaled`: signers follow the batches that wait, and Ray's autoscaler brings pods for them.

The overlay `scaled` beside this file is the demo with the autoscaler of kuberay/overlays/production. Many rows come at
once: the supervisor asks for signers, the autoscaler for pods. Then none comes, and both go back to what they were.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from tests.kube import faults, steps
from tests.kube.namespace import (
    Dashboard,
    KubeError,
    all_pods,
    checkout,
    complaints,
    kubectl,
    pod_ready,
    pods,
    restarts,
    say,
    until,
)

OVERLAY: Final = "tests/kube/scaled"
LEAST_PODS: Final = 1
MOST_PODS: Final = 3
SIGNERS_PER_POD: Final = 2
KEYS: Final = 16
ROWS: Final = 400_000
ROWS_AFTER: Final = 2_000
"""Signed by those that are left."""

APPLY_TIMEOUT_S: Final = 120.0
STOCK_TIMEOUT_S: Final = 300.0
SIGN_TIMEOUT_S: Final = 600.0
DOWN_TIMEOUT_S: Final = 360.0
LOOK_S: Final = 2.0
UP_BOUND_S: Final = 60.0
"""From the first published batch until a signer of a new pod lives: a look each of the supervisor, the autoscaler and
the operator, then the start of a pod."""

DOWN_BOUND_S: Final = 180.0
"""From the last published row until only the least pods are left: a minute without need (actors.scaling), half a minute
in which a pod is idle (idleTimeoutSeconds), and the end of a pod, which takes up to 45 s (jobs.leave)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What there is at a moment."""

    at_s: float  #: since the first batch was published
    pods: int  #: of signers, those on their way in or out, too
    ready: int  #: of these
    signers: int  #: actors that live
    rows: int  #: that have an outcome


@dataclass(slots=True)
class Watch:
    """Looks again and again, and keeps what it saw."""

    jobs: Dashboard
    began_s: float = field(default_factory=time.monotonic)
    samples: list[Sample] = field(default_factory=list)

    def look(self) -> Sample:
        """What there is now. Raises KubeError."""
        found = all_pods("ray.io/group=signers")
        signers, rows = self.jobs.actors("SignerActor"), faults.outcomes()
        ready = sum(pod_ready(pod) for pod in found)
        sample = Sample(round(time.monotonic() - self.began_s, 1), len(found), ready, len(signers), rows)
        if not self.samples or _shape(self.samples[-1]) != _shape(sample):
            say(f"  {sample.at_s:6.1f} s: {len(found)} pods, {ready} ready, {len(signers)} signers, {rows:,} outcomes")
        self.samples.append(sample)
        return sample

    def first(self, true: Callable[[Sample], bool], since_s: float = 0.0) -> float | None:
        """Seconds until something was seen."""
        return next((round(one.at_s - since_s, 1) for one in self.samples if one.at_s >= since_s and true(one)), None)


def run(report: dict[str, Any]) -> None:
    """All of it, into the report. Raises KubeError."""
    report["ready_s"] = steps.apply(
        lambda: kubectl("apply", "-k", str(checkout() / OVERLAY), timeout_s=APPLY_TIMEOUT_S)
    )
    until("the autoscaler runs", autoscaler_runs, steps.READY_TIMEOUT_S)
    with Dashboard() as jobs:
        fill(jobs)
        before = restarts()
        report |= sign(jobs)
        report["violations"] = steps.verify(jobs)
    report["restarted"] = {name: count for name, count in restarts().items() if count > before.get(name, 0)}
    report["complaints"] = complaints()
    report["autoscaler_ended"] = not autoscaler_runs()
    wrong = ("violations", "too_late", "restarted", "complaints", "autoscaler_ended")
    report["ok"] = not any(report[name] for name in wrong)


def autoscaler_runs() -> bool:
    """Whether the container beside the head does. Raises KubeError when there is none."""
    [head] = pods("ray.io/node-type=head")
    if not any(one["name"] == "autoscaler" for one in head["spec"]["containers"]):
        raise KubeError("the head has no autoscaler: the namespace was made by another overlay, take it away first")
    found = [one for one in head["status"].get("containerStatuses", []) if one["name"] == "autoscaler"]
    return any("running" in one["state"] for one in found)


def fill(jobs: Dashboard) -> None:
    """Tables, keys, rows. Raises KubeError."""
    for entry_point in ("oncesign migrate", "oncesign up", f"oncesign keys create --count {KEYS}", stock(ROWS)):
        say(f"$ {entry_point}")
        jobs.run(entry_point, STOCK_TIMEOUT_S)


def stock(count: int) -> str:
    """The command that inserts so many rows."""
    return f"oncesign stock --count {count} --invalid 0.01"


def sign(jobs: Dashboard) -> dict[str, Any]:
    """All rows, with the number of signers watched until it is back at its least; then some more. Raises KubeError."""
    known, rows = faults.outcomes(), faults.rows()
    job = jobs.submit("python -m jobs.sign")
    until("signing begins", lambda: faults.outcomes() > known, steps.JOB_TIMEOUT_S)
    watch = Watch(jobs)
    until("every row has its outcome", lambda: watch.look().rows == rows, SIGN_TIMEOUT_S, LOOK_S)
    signed_s = watch.samples[-1].at_s
    say(f"signed {rows - known:,} rows in {signed_s:.0f} s; now nothing comes")
    until("the pods are as few as before", lambda: is_least(watch.look()), DOWN_TIMEOUT_S, LOOK_S)
    jobs.run(stock(ROWS_AFTER), STOCK_TIMEOUT_S)
    until("those that are left sign", lambda: faults.outcomes() == faults.rows(), steps.JOB_TIMEOUT_S)
    steps.end(jobs, job)
    found = summary(watch, signed_s)
    for line in table(found):
        say(line)
    return {"rows": rows - known, "signed_s": signed_s, "scaled": found, "too_late": too_late(found)}


def is_least(sample: Sample) -> bool:
    """Whether no pod and no signer is there beyond the least."""
    return sample.pods == sample.ready == LEAST_PODS and sample.signers == LEAST_PODS * SIGNERS_PER_POD


def summary(watch: Watch, signed_s: float) -> dict[str, dict[str, Any]]:
    """Of pods and signers: how many there were at the most, and the seconds up and down."""
    least = LEAST_PODS * SIGNERS_PER_POD
    return {
        "pods": {
            "least": LEAST_PODS,
            "most": max(one.ready for one in watch.samples),
            "up_s": watch.first(lambda one: one.ready > LEAST_PODS),
            "all_up_s": watch.first(lambda one: one.ready == MOST_PODS),
            "down_s": watch.first(lambda one: one.pods == LEAST_PODS, signed_s),
        },
        "signers": {
            "least": least,
            "most": max(one.signers for one in watch.samples),
            "up_s": watch.first(lambda one: one.signers > least),
            "all_up_s": watch.first(lambda one: one.signers == MOST_PODS * SIGNERS_PER_POD),
            "down_s": watch.first(lambda one: one.signers == least, signed_s),
        },
    }


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    """Lines for people: how many, and when, against the bounds."""
    lines = [f"{'':<10}{'least':>7}{'most':>7}{'up s':>8}{'all up s':>10}{'bound s':>9}{'down s':>8}{'bound s':>9}"]
    for name, one in found.items():
        up, all_up, down = (one[key] if one[key] is not None else "never" for key in ("up_s", "all_up_s", "down_s"))
        bounds = f"{UP_BOUND_S:>9.0f}{down:>8}{DOWN_BOUND_S:>9.0f}"
        lines.append(f"{name:<10}{one['least']:>7}{one['most']:>7}{up:>8}{all_up:>10}{bounds}")
    return lines


def too_late(found: dict[str, dict[str, Any]]) -> list[str]:
    """What rose or fell after its bound, or never."""
    bounds = {"up_s": UP_BOUND_S, "down_s": DOWN_BOUND_S}
    return [
        f"{name} {key}"
        for name, one in found.items()
        for key, bound_s in bounds.items()
        if one[key] is None or one[key] > bound_s
    ]


def _shape(sample: Sample) -> tuple[int, int, int]:
    return sample.pods, sample.ready, sample.signers

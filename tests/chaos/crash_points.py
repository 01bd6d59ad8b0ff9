"""`python -m tests.chaos.crash_points`: SIGKILL at every boundary of an external effect, on real servers.

For each boundary a whole pipeline runs until it reaches it and is killed there; then another one runs until everything
is settled, and what the servers hold is checked against the invariants. Which boundaries there are is not written down
here: a first life that nobody kills tells, and the lives that recover tell of those that only a recovery meets. An
effect that the adapters name and that no life meets is a failure, unless UNMET says why.
"""

from __future__ import annotations

import argparse
import ast
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Final

from pipeline import adapters
from pipeline.effects import Moment
from pipeline.testing.simulation.crashes import Boundary
from tests.chaos.crash_points_case import READS, Case
from tests.chaos.crash_points_ground import Ground, embedded
from tests.chaos.crash_points_life import Point
from tests.chaos.crash_points_repair import Repairs
from tests.chaos.crash_points_zygote import Zygote

LANES: Final = 6
"""Cases at once: most of a recovery is waiting for the dead consumer's session."""

SIGNALLED: Final = 128
"""Plus the number of the signal, as shells have it."""

VIOLATION: Final = 4
"""Exit code, as of `oncesign verify`."""

DEEP: Final = {
    Boundary("key-manager", "etcd", "Txn"): tuple(range(1, 17)),
    Boundary("signer", "postgres", "record"): (1, 2, 3, 5, 8),
    Boundary("consumer", "kafka", "Produce"): (1, 2, 3, 5, 8),
    Boundary("consumer", "kafka", "TxnOffsetCommit"): (1, 2, 3),
    Boundary("consumer", "kafka", "EndTxn"): (1, 2, 3),
    Boundary("consumer", "key-manager", "release"): (1, 2, 3),
    Boundary("reader", "kafka", "EndTxn"): (1, 2, 3),
    Boundary("verifier", "postgres", "save"): (1, 2, 3),
    Boundary("start", "postgres", "migrate"): tuple(range(1, 10)),
}
"""Boundaries with which something begins to be true are looked at more often: at which occurrences."""

USUAL: Final = (1, 3)
WAYS_MAX: Final = 4
"""How often a point is tried."""


UNMET: Final = {
    "etcd Authenticate": "the embedded etcd has no users",
    "postgres any_after": "asked by `oncesign sign` and the supervisor, for a status",
    "postgres count": "as above",
    "postgres counts": "as above",
    "postgres entries": "read by commands of an operator",
    "postgres find": "as above",
    "postgres held_back_by": "as above",
    "postgres signed": "as above",
    "postgres decided": "as above",
    "postgres first_nonces": "as above",
    "postgres policy_history": "as above",
    "postgres record_fill": "by `oncesign keys fill`: the same fill again, see tests/contract/test_fills.py",
    "postgres batches_at": "the broadcaster's, which lends nothing and signs nothing: it sends the same bytes again",
    "postgres claim": "as above",
    "postgres find_broadcast": "as above",
    "postgres next_batches": "as above",
    "postgres save_broadcasts": "as above",
    "postgres undecided": "as above",
    "postgres reconcile": "reads, by `oncesign verify` and at the end of each case",
    "postgres rows_between": "only when a topic was made anew after its batches were assigned",
}
"""Effects that no life here meets, and why."""

EXCUSED: Final = {
    (Boundary("reader", "kafka", "Fetch"), Moment.AFTER): "without a position, what is on the topic was aborted",
}
"""Boundaries that only the other side of is met, and why."""


class Runner:
    """Runs cases in lanes, each in a place of its own."""

    def __init__(self, ground: Ground, zygote: Zygote, lanes: int = LANES) -> None:
        self._ground = ground
        self._zygote = zygote
        self._lanes = lanes

    def run(self, cases: Iterable[Sequence[tuple[Point, ...]]]) -> Iterator[Case]:
        """In order; each has ways to come to its last point, which are tried until it is met."""
        with ThreadPoolExecutor(self._lanes) as lanes:
            yield from lanes.map(self.case, cases)

    def case(self, ways: Sequence[tuple[Point, ...]]) -> Case:
        """What a life meets can depend on who of its tasks was quicker, so one way may be tried several times."""
        for points in ways:
            case = self.once(points)
            if case.verdict != "never met":
                break
        return case

    def once(self, points: tuple[Point, ...]) -> Case:
        """One, whatever is met."""
        case = Case(points)
        bare = any(point.boundary.request == "migrate" for point in points)
        place = self._ground.place(migrated=not bare)
        for number, point in enumerate(points):
            record = self._zygote.live(place, point, f"life-{number}")
            case.met.append(record.met)
            if not record.met:
                case.judge(record)
        record = self._zygote.live(place, None, "last-life")
        case.judge(record)
        case.settled_s, case.seen = record.settled_s, record.seen
        if not case.breaches:
            self._ground.clear(place)
            shutil.rmtree(place.directory)
        return case

    def calm(self) -> Case:
        """What a life that nobody kills meets, on an empty database. Raises AssertionError when it is not well."""
        place = self._ground.place(migrated=False)
        case = Case(())
        record = self._zygote.live(place, None, "calm")
        case.judge(record)
        case.settled_s, case.seen = record.settled_s, record.seen
        assert not case.breaches, f"a life that nobody kills: {case.breaches}; see {place.directory}"
        self._ground.clear(place)
        return case


def singles(seen: Mapping[tuple[Boundary, Moment], int]) -> Iterator[Point]:
    """A death at each boundary that was seen, at its first and at later occurrences."""
    for (boundary, moment), times in sorted(seen.items()):
        often = (1,) if boundary.request in READS else DEEP.get(boundary, USUAL)
        yield from (Point(boundary, moment, nth) for nth in often if nth <= times)


def of_recovery(cases: Sequence[Case], known: Collection[Boundary]) -> Iterator[list[tuple[Point, ...]]]:
    """A death at each boundary that only recoveries met, after some of the deaths with which they began."""
    fresh: dict[Boundary, list[tuple[Point, ...]]] = {}
    for case in cases:
        for boundary in {boundary for boundary, _ in case.seen} - set(known):
            fresh.setdefault(boundary, []).append(case.points)
    for boundary, ways in sorted(fresh.items()):
        ways.sort(key=lambda points: points[-1].boundary.client != boundary.client)  # its own death first
        for moment in Moment:
            yield [(*before, Point(boundary, moment)) for before in ways[:WAYS_MAX]]


def named() -> set[str]:
    """Every effect that the adapters name."""
    found = set()
    for path in Path(adapters.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "effect":
                found.add(" ".join(ast.literal_eval(argument) for argument in node.args))
    return found


def never_met(cases: Iterable[Case]) -> set[str]:
    """Effects at which no life was killed, and that UNMET does not excuse."""
    return unexcused(
        point.boundary for case in cases for point, was_met in zip(case.points, case.met, strict=True) if was_met
    )


def unexcused(met: Iterable[Boundary]) -> set[str]:
    """Effects that are named, are none of these, and that UNMET does not excuse."""
    return named() - {f"{boundary.server} {boundary.request}" for boundary in met} - UNMET.keys()


def main() -> int:
    """Exit code 4 when an invariant broke or a boundary was never met."""
    parser = argparse.ArgumentParser(description="SIGKILL at every boundary of an external effect, on real servers.")
    parser.add_argument("--only", default="", help="only points whose name contains this text")
    parser.add_argument("--json", action="store_true", help="one object per line")
    parser.add_argument("--lanes", type=int, default=LANES, help="cases at once")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _stopped)
    signal.signal(signal.SIGINT, _stopped)  # also where a shell has set it to be ignored
    directory = Path(tempfile.mkdtemp(prefix="oncesign-crash-points-"))
    started_s = time.monotonic()
    with embedded(directory) as ground:
        zygote = Zygote()
        try:
            found = _all(ground, zygote, arguments.lanes, arguments.only)
            cases = [_shown(case, as_json=arguments.json) for case in found]
        finally:
            zygote.close()
    missing = set() if arguments.only else never_met(cases)
    failed = [case for case in cases if case.breaches or not (all(case.met) or _excuse(case))]
    _say(_summary(cases, failed, missing, time.monotonic() - started_s))
    if failed:
        _say(f"logs of the failed ones: {directory}")
    else:
        shutil.rmtree(directory)
    return VIOLATION if failed or missing else 0


def _stopped(number: int, _frame: FrameType | None) -> None:
    """The servers are stopped on the way out."""
    raise SystemExit(SIGNALLED + number)


def _all(ground: Ground, zygote: Zygote, lanes: int, only: str) -> Iterator[Case]:
    runner = Runner(ground, zygote, lanes)
    seen = runner.calm().seen
    cases = []
    firsts = [point for point in singles(seen) if only in str(point)]
    for case in runner.run([[(point,)] * WAYS_MAX for point in firsts]):
        cases.append(case)
        yield case
    yield from runner.run(list(of_recovery(cases, {boundary for boundary, _ in seen})))
    yield from Repairs(ground, zygote, lanes).run(only)


def _excuse(case: Case) -> str:
    """Why its last point need not be met; empty when it must be."""
    return EXCUSED.get(case.points[-1][:2], "") if case.points and all(case.met[:-1]) else ""


def _shown(case: Case, *, as_json: bool) -> Case:
    excuse = "" if case.breaches or all(case.met) else _excuse(case)
    line = f"{case}{f': {excuse}' if excuse else ''}"
    sys.stdout.write((json.dumps(case.to_json() | {"excuse": excuse}) if as_json else line) + "\n")
    sys.stdout.flush()
    return case


def _summary(cases: Sequence[Case], failed: Sequence[Case], missing: set[str], took_s: float) -> str:
    recovered = sorted(case.settled_s for case in cases if not case.breaches) or [0.0]
    boundaries = len({case.points[-1].boundary for case in cases if case.points})
    deaths = sum(len(case.points) for case in cases)
    text = f"{deaths} deaths in {len(cases)} cases at {boundaries} boundaries in {took_s:.0f} s: {len(failed)} failed;"
    text += f" recovered in {recovered[len(recovered) // 2]:.1f} s (median), {recovered[-1]:.1f} s (worst)"
    return text + (f"; never met: {', '.join(sorted(missing))}" if missing else "")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())

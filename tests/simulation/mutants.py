"""`python -m tests.simulation.mutants`: the simulation against the real code without one guard at a time.

A mutant must come through a calm course, and then break an invariant at a crash point or at a seed. Exit 4 when one
survives. A child is forked for each from a process that has everything loaded, 1 s of imports and compiled kernels.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import zip_longest
from multiprocessing.connection import Connection, wait
from typing import Any, Final

import orjson

from pipeline.ethereum import kernel
from pipeline.testing.simulation import crashes, harsher, memory
from pipeline.testing.simulation.course import Verdict
from pipeline.testing.simulation.crashes import Plan
from tests.simulation.guards import MUTANTS, REDISCOVERED
from tests.simulation.mutation import Mutant, Stale, apply

SEEDS: Final = 1_000
STORY_LINES: Final = 40
SURVIVED: Final = 4
"""Exit code, as of a verification that found a violation."""

CRIPPLED: Final = re.compile(r"\b(NameError|AttributeError|TypeError|UnboundLocalError|IndentationError|SyntaxError)\b")
"""What a mutant that is no program shows; it proves nothing about any invariant."""

Course = tuple[str, Callable[..., Verdict]]


@dataclass(slots=True)
class Fate:
    """What became of a mutant."""

    name: str
    killed: bool = False
    by: str = ""  #: the course that broke, or "calm"
    breach: str = ""
    courses: int = 0
    seconds: float = 0.0
    story: list[str] = field(default_factory=list)  #: the end of that course, for a person
    wrong: str = ""  #: why it is no mutant at all: stale, no program, or dead without any fault

    @property
    def invariant(self) -> str:
        """The first that broke."""
        return self.breach.split(":")[0]


def examine(mutant: Mutant, seeds: Sequence[int], points: Sequence[Plan]) -> Fate:
    """In this process, which is of no use for anything else afterwards."""
    fate = Fate(mutant.name)
    started_s = time.monotonic()
    try:
        apply(mutant)
        memory.remember()
        with harsher.late():
            _hunt(mutant, fate, _courses(mutant, seeds, points))
    except Stale as error:
        fate.wrong = str(error)
    fate.seconds = time.monotonic() - started_s
    return fate


def _hunt(mutant: Mutant, fate: Fate, courses: Iterator[Course]) -> None:
    if calm := _breaches(lambda: harsher.run_points(Plan())):
        first = next(filter(CRIPPLED.search, calm), calm[0])
        fate.breach, fate.by, fate.killed = first, "calm", mutant.calm
        if not mutant.calm:
            fate.wrong = f"it breaks a calm course: {calm[0]}"
    for name, course in courses if not fate.by else ():
        fate.courses += 1
        breaches = _breaches(course)
        if telling := [b for b in breaches if b.startswith(mutant.breaks or "I") or CRIPPLED.search(b)]:
            fate.breach, fate.by, fate.killed = telling[0], name, True
            fate.story = [str(event) for event in course(told=True).events[-STORY_LINES:]]
            break
    if CRIPPLED.search(fate.breach):
        fate.killed, fate.wrong = False, f"it is no program: {fate.breach}"


def _breaches(course: Callable[..., Verdict]) -> list[str]:
    try:
        return course().breaches
    except RuntimeError as error:  # the loop's: it spins, or nothing is left to do
        return [f"I9: {error}"]


def _courses(mutant: Mutant, seeds: Sequence[int], points: Sequence[Plan]) -> Iterator[Course]:
    """Seeds and crash points in turn; where it takes a deed, seeds alone."""
    plans = mutant.plans or points
    for seed, plan in zip_longest(seeds, () if mutant.deed else plans):
        if plan is not None:
            yield str(plan), partial(harsher.run_points, plan, alone=bool(mutant.plans))
        if seed is not None:
            yield f"seed {seed}", partial(harsher.run, seed, mutant.deed)


# ── a process for each ───────────────────────────────────────────────────────────────────────────────────────────────


def fates(
    mutants: Sequence[Mutant], seeds: Sequence[int], workers: int = 1, points_max: int | None = None
) -> Iterator[Fate]:
    """As they are decided, with the first `points_max` crash points at the most."""
    kernel.warm()
    [points] = _forked([crash_points], workers=1)
    yield from _forked([partial(examine, mutant, seeds, points[:points_max]) for mutant in mutants], workers)


def crash_points() -> list[Plan]:
    """Every single one that the unchanged code has."""
    memory.remember()
    with harsher.late():
        return list(crashes.singles(crashes.boundaries()))


def _forked(jobs: Sequence[Callable[[], Any]], workers: int) -> Iterator[Any]:
    """Each result, from a child of its own."""
    context = multiprocessing.get_context("fork")
    waiting, running = list(jobs)[::-1], dict[Any, Any]()
    while waiting or running:
        while waiting and len(running) < workers:
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(target=_in_child, args=(waiting.pop(), sender), daemon=True)
            child.start()
            sender.close()
            running[receiver] = child
        ready: Any
        for ready in wait(list(running)):
            yield ready.recv()
            running.pop(ready).join()


def _in_child(job: Callable[[], Any], sender: Connection) -> None:
    logging.getLogger("pipeline").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sender.send(job())


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="for each mutant, at the most")
    parser.add_argument("--only", action="append", metavar="NAME", help="these mutants; may be given again")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--story", action="store_true", help="how the course that broke came to its end")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    asked = parser.parse_args()
    known = (*MUTANTS, *REDISCOVERED) if asked.only else MUTANTS
    chosen = [mutant for mutant in known if not asked.only or mutant.name in asked.only]
    survivors = 0
    for fate in fates(chosen, range(asked.seeds), asked.workers):
        survivors += not fate.killed
        line = orjson.dumps(asdict(fate)).decode() if asked.json else _line(fate)
        sys.stdout.write("\n".join([*(fate.story if asked.story else ()), line, ""]))
        sys.stdout.flush()
    sys.stderr.write(f"{len(chosen)} mutants, {survivors} survived\n")
    sys.exit(SURVIVED if survivors or not chosen else 0)


def _line(fate: Fate) -> str:
    if fate.killed:
        return f"{fate.name:<34} {fate.by}: {fate.breach[:160]}   ({fate.courses} courses, {fate.seconds:.1f} s)"
    return f"{fate.name:<34} {'NO MUTANT: ' + fate.wrong if fate.wrong else 'SURVIVES'} ({fate.courses} courses)"


if __name__ == "__main__":
    main()

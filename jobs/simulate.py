"""`oncesign simulate`: the real stages in a simulated cluster, where everything that can go wrong does."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Final

import typer

from jobs.output import Json, emit, emit_fields, say
from pipeline.errors import ViolationFound

SHOWN_MAX: Final = 20
"""Courses with a breach that are printed; all of them are counted."""

CHUNK: Final = 20
STRETCH: Final = 500
"""Seeds between two looks at the clock."""

PROGRESS_EVERY_S: Final = 10.0


class CrashPoints(StrEnum):
    """Which crash points are run."""

    EACH = "each"
    PAIRS = "pairs"


@dataclass(slots=True)
class Tally:
    """What many courses of events came to."""

    courses: int = 0
    rows: int = 0
    broken: int = 0
    unmet: int = 0
    slowest_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Result:
    """One course, as it comes back from a worker."""

    name: str
    breaches: list[str]
    rows: int
    resumed_s: float
    faults: Counter[str]
    unmet: bool = False  #: a crash point did not occur: there was no such request


def simulate(
    seed: Annotated[int | None, typer.Option(min=0, help="Tell the story of this seed, event by event.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 1_000,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, max=10_000, help="As many seeds as fit this time, instead of --seeds.")
    ] = None,
    first: Annotated[int, typer.Option(min=0, help="The first of them.")] = 0,
    crash_points: Annotated[
        CrashPoints | None, typer.Option(help="Instead of seeds, each crash point once, or every ordered pair.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes.")] = 1,
    json: Json = False,
) -> None:
    """Run the real reader, consumers, key manager, signers, sweeper and verifier with simulated faults and time.

    Needs no server. Each seed is one course of events and is the same every time. Exit code 4 when an invariant broke.
    """
    logging.getLogger("pipeline").setLevel(logging.CRITICAL)
    if seed is not None:
        _tell(seed, as_json=json)
        return
    started_s = time.monotonic()
    if crash_points is not None:
        results = _spread(_run_points, _plans(crash_points), workers)
    elif minutes is None:
        results = _spread(_run_seed, range(first, first + seeds), workers)
    else:
        results = _until(started_s + minutes * 60, first, workers)
    tally = _tallied(results)
    seconds = time.monotonic() - started_s
    fields: dict[str, Any] = {
        "courses": tally.courses,
        "seconds": round(seconds, 1),
        "per_second": round(tally.courses / seconds, 1),
        "rows": tally.rows,
        "faults": dict(sorted(tally.faults.items())),
        "slowest_recovery_virtual_s": round(tally.slowest_s, 1),
        "broken": tally.broken,
    }
    if crash_points is not None:
        fields["without_their_crash_point"] = tally.unmet
    emit_fields(fields, as_json=json)
    if tally.broken:
        raise ViolationFound(f"{tally.broken} of {tally.courses} courses of events broke an invariant.")


def _tell(seed: int, *, as_json: bool) -> None:
    from pipeline.testing.simulation.harsher import run

    verdict = run(seed, told=True)
    for event in verdict.events:
        if as_json:
            emit(event._asdict())
        else:
            typer.echo(str(event))
    if verdict.breaches:
        raise ViolationFound("; ".join(verdict.breaches[:SHOWN_MAX]))
    say(f"{verdict.rows} rows, settled {verdict.resumed_s:.1f} virtual seconds after the last fault; nothing broke")


def _tallied(results: Iterator[Result]) -> Tally:
    tally = Tally()
    told_s = time.monotonic()
    for result in results:
        tally.courses += 1
        tally.rows += result.rows
        tally.faults.update(result.faults)
        tally.slowest_s = max(tally.slowest_s, result.resumed_s)
        tally.broken += bool(result.breaches)
        tally.unmet += result.unmet
        if result.breaches and tally.broken <= SHOWN_MAX:
            say(f"{result.name}: " + "; ".join(result.breaches[:3]))
        if time.monotonic() - told_s > PROGRESS_EVERY_S:
            told_s = time.monotonic()
            say(f"  {tally.courses:,} courses, {tally.broken} broken")
    return tally


def _plans(wanted: CrashPoints) -> list[Any]:
    from pipeline.testing.simulation import crashes

    found = crashes.boundaries()
    return list(crashes.pairs(found) if wanted is CrashPoints.PAIRS else crashes.singles(found))


def _until(end_s: float, first: int, workers: int) -> Iterator[Result]:
    """One stretch of seeds after the other until the time is over."""
    while time.monotonic() < end_s:
        yield from _spread(_run_seed, range(first, first + STRETCH), workers)
        first += STRETCH


def _spread(work: Any, jobs: Sequence[Any], workers: int) -> Iterator[Result]:
    if workers == 1:
        _prepare()
        yield from map(work, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers, _prepare) as pool:
        yield from pool.imap_unordered(work, jobs, CHUNK)


def _prepare() -> None:
    """Once per process."""
    from pipeline.testing.simulation.memory import remember

    logging.getLogger("pipeline").setLevel(logging.CRITICAL)
    remember()


def _run_seed(seed: int) -> Result:
    from pipeline.testing.simulation.harsher import run

    verdict = run(seed)
    return Result(f"--seed {seed}", verdict.breaches, verdict.rows, verdict.resumed_s, verdict.faults)


def _run_points(plan: Any) -> Result:
    from pipeline.testing.simulation.crashes import run_points

    verdict, crashes = run_points(plan)
    unmet = crashes.met_points < len(plan.points)
    return Result(str(plan), verdict.breaches, verdict.rows, verdict.resumed_s, verdict.faults, unmet=unmet)

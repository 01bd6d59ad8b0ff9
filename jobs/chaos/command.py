"""`oncesign chaos`: break real parts under load, then prove that every row was signed once."""

from __future__ import annotations

import signal
from typing import Annotated, Final

import typer

from jobs.loading import load_settings
from jobs.output import Json, emit, emit_list, say
from pipeline.errors import RuntimeFault, UsageError, ViolationFound
from pipeline.testing.chaos.fault import EVERYDAY, RARE, Kind
from pipeline.testing.chaos.report import TITLES, shortened

MINUTES_MAX: Final = 600.0
FAULTS_PER_MINUTE: Final = 7
FAULTS_MAX: Final = 10_000
RATE_MAX: Final = 5_000
SHOWN_MAX: Final = 20


def chaos(
    minutes: Annotated[float, typer.Option(min=0.5, max=MINUTES_MAX, help="How long faults go on.")] = 30.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same faults.")] = 1,
    faults: Annotated[int, typer.Option(min=0, max=FAULTS_MAX, help="How many; 0 = seven in each minute.")] = 0,
    rate: Annotated[int, typer.Option(min=16, max=RATE_MAX, help="Rows inserted per second.")] = 100,
    only: Annotated[
        list[str] | None, typer.Option(help="Only faults whose name contains this; may be repeated.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave data and logs in DATA_DIR/chaos.")] = False,
    json: Json = False,
) -> None:
    """Kill, freeze, cut and fill real servers and actors under load, then check every row; exit 4 on any violation."""
    from jobs.chaos import disks

    kinds = chosen(only or [])
    for number in (signal.SIGINT, signal.SIGTERM):  # either ends the servers too; and a shell's background job, whose
        signal.signal(number, signal.default_int_handler)  # children would ignore Ctrl-C, can end `oncesign sign`
    disks.enter_namespace()  # before anything starts a thread
    from jobs.chaos.run import Wish, run, tell

    wish = Wish(minutes, seed, faults or max(1, round(minutes * FAULTS_PER_MINUTE)), rate, kinds, keep)
    report = run(load_settings(), wish)
    if json:
        emit(report.to_json())
    else:
        emit_list(report.rows(), TITLES, as_json=False)
    tell(report)
    for violation in report.violations[:SHOWN_MAX]:
        say(shortened(violation))
    if not report.ok:
        raise ViolationFound(f"{len(report.violations)} violation(s) after {len(report.faults)} faults.", hint="")
    if not report.faults:
        raise RuntimeFault("no fault could be carried out.", hint="The lines above say why.")


def chosen(names: list[str]) -> list[Kind]:
    """Kinds whose name contains one of these; all when there is none. Raises UsageError when that leaves none."""
    kinds = [kind for kind in (*EVERYDAY, *RARE) if not names or any(name in str(kind) for name in names)]
    if not kinds:
        raise UsageError(
            f"no fault is called {', '.join(names)}.", hint=f"There are: {', '.join(map(str, (*EVERYDAY, *RARE)))}."
        )
    return kinds

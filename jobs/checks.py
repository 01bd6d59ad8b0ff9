"""`oncesign verify | tx | assignments`: prove it, and look things up."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from jobs.loading import load_settings
from jobs.output import Json, emit, emit_fields, emit_list, say
from pipeline.errors import ViolationFound
from pipeline.local.cache import progress
from pipeline.local.resolve import resolve
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.stages.violation import Violation

SHOWN_MAX: Final = 20
SIGN_FIRST: Final = "Rows that were never signed: run `oncesign sign --until-drained`, then verify again."


@dataclass(frozen=True, slots=True)
class Report:
    """What a full verification found."""

    counts: dict[str, int]
    violations: list[Violation]
    waiting: int  #: rows that a running pipeline has still to settle; 0 when none runs


def verify(json: Json = False) -> None:
    """Check every signed and rejected row against source and ledger; exit 4 on any violation."""
    from pipeline.stages.violation import ViolationKind

    settings = resolve(load_settings())
    with progress("verifying what was published since the last look"):
        report = asyncio.run(examine(settings))
    fields: dict[str, Any] = {
        "signed": report.counts["signed"],
        "rejected": report.counts["rejected"],
        "violations": len(report.violations),
        "waiting": report.waiting,
    }
    if json:
        emit(fields | {"found": [str(violation) for violation in report.violations]})
    else:
        emit_fields(fields, as_json=False)
    for violation in report.violations[:SHOWN_MAX]:
        say(str(violation))
    if report.waiting:
        say(f"A pipeline runs: {report.waiting:,} rows wait for it and were not judged.")
    if report.violations:
        unsigned = all(found.kind is ViolationKind.ROW_WITHOUT_OUTCOME for found in report.violations)
        hint = SIGN_FIRST if unsigned else "See docs/operations.md and the table `violations`."
        raise ViolationFound(f"{len(report.violations)} violation(s).", hint=hint)


async def examine(settings: Settings) -> Report:
    """Look at all that is published, then for what is missing, and compare assignments with the ledger.

    Raises ViolationFound, DependencyDown.
    """
    from actors.composition import tables, verifying
    from jobs.desk import signs
    from jobs.overview import read_assignments

    running = await signs(settings)
    published = await _has_topics(settings)
    async with verifying.verifier(settings) as verifier:
        if running and published:
            violations = await verifier.reconcile_running()
        else:
            if published:
                await verifier.catch_up()
            violations = await verifier.reconcile()
        violations += await verifier.compare(await read_assignments(settings))
    counts = await outcome_counts(settings)
    waiting = max(0, await tables.total(settings) - counts["signed"] - counts["rejected"]) if running else 0
    return Report(counts, violations, waiting)


async def _has_topics(settings: Settings) -> bool:
    """Whether there is anything to look at; before the first `sign` there is not.

    Raises ViolationFound when topics are gone that records were published to, DependencyDown.
    """
    from actors.composition import bus
    from pipeline.adapters.ledger import PostgresLedger

    outlets = bus.outlets(settings)
    async with bus.topics(settings) as topics:
        gone = {outlets.signed, outlets.rejected} - set(await topics.names())
    ledger = PostgresLedger(settings.postgres)
    try:
        if gone and await ledger.heads():
            raise ViolationFound(
                f"topic {min(gone)} is gone, but the ledger has batches that were published.",
                hint="See docs/operations.md, 'A deleted topic'.",
            )
    finally:
        await ledger.close()
    return not gone


async def outcome_counts(settings: Settings) -> dict[str, int]:
    """Rows by outcome, and violations. Raises DatabaseUnavailable."""
    from pipeline.adapters.outcomes import PostgresOutcomes

    outcomes = PostgresOutcomes(settings.postgres)
    try:
        return dict(await outcomes.counts())
    finally:
        await outcomes.close()


def tx(
    tx_id: Annotated[int, typer.Argument(metavar="ID", min=-(2**63), max=2**63 - 1, help="The id of a source row.")],
    source: Annotated[str, typer.Option(help="Which source; default: the first one.")] = "",
    json: Json = False,
) -> None:
    """Show the life of one row: row, batch, key, nonce, hash, bytes, ledger, Kafka position, outcome."""
    from jobs.overview import life_of

    settings = resolve(load_settings())
    life = asyncio.run(life_of(settings, source or settings.sources[0].name, tx_id))
    if json:
        emit(life)
        return
    for part, fields in life.items():
        typer.echo(part)
        for name, value in fields.items() if isinstance(fields, dict) else [("", fields)]:
            typer.echo(f"  {name:<24} {value}")


def assignments(json: Json = False) -> None:
    """List batches that have a key and are not released yet: which worker holds which key, and since when."""
    from jobs.overview import assignments as read

    rows = asyncio.run(read(resolve(load_settings())))
    titles = ("stream", "seq", "address", "first_nonce", "count", "worker", "node", "since")
    emit_list(rows, titles, as_json=json)
    if not rows:
        say("Nothing is under way.")

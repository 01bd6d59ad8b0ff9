"""`oncesign migrate | stock`: the tables, and rows to sign."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.loading import load_settings
from jobs.output import Json, emit, say
from pipeline.errors import UsageError
from pipeline.local.cache import progress
from pipeline.local.resolve import resolve
from pipeline.settings import Settings, SourceSettings


def migrate(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be applied, and apply nothing.")] = False,
    json: Json = False,
) -> None:
    """Make or bring up to date the tables in Postgres."""
    from pipeline.adapters import migrations

    applied = migrations.migrate(resolve(load_settings(), ["postgres"]).postgres, dry_run=dry_run)
    if json:
        emit({"dry_run": dry_run, "migrations": applied})
        return
    for name in applied:
        typer.echo(name)
    say(f"{len(applied)} migration(s) {'missing' if dry_run else 'applied'}. Next: oncesign keys create --count 16")


def stock(
    count: Annotated[int, typer.Option(min=1, help="How many mocked rows.")] = 100_000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same rows.")] = 1,
    invalid: Annotated[float, typer.Option(min=0, max=1, help="Share of rows that must be rejected.")] = 0.0,
    from_parquet: Annotated[Path | None, typer.Option(help="Your own rows instead (docs/formats.md).")] = None,
    from_csv: Annotated[Path | None, typer.Option(help="Your own rows instead (docs/formats.md).")] = None,
    source: Annotated[str, typer.Option(help="Which source; default: the first one.")] = "",
    json: Json = False,
) -> None:
    """Insert rows to sign: mocked ones that look like real traffic, or your own from a file, all of them or none."""
    from pipeline.stock import files
    from pipeline.stock.row import insert

    settings = resolve(load_settings(), ["postgres"])
    target = settings.source(source or settings.sources[0].name)
    if from_parquet and from_csv:
        raise UsageError("--from-parquet and --from-csv exclude each other.")
    if from_parquet or from_csv:
        rows = files.from_parquet(from_parquet) if from_parquet else files.from_csv(Path(str(from_csv)))
        inserted = insert(settings.postgres, target.table, rows, at_once=True)
    else:
        inserted = stock_mocked(settings, target, count, seed, invalid)
    if json:
        emit({"source": target.name, "inserted": inserted})
    else:
        say(f"{inserted:,} rows inserted into {target.table}. Next: oncesign sign --until-drained")


def stock_mocked(settings: Settings, target: SourceSettings, count: int, seed: int, invalid: float) -> int:
    """Insert mocked rows; how many."""
    from pipeline.stock.mix import Mix
    from pipeline.stock.row import insert

    with progress(f"inserting {count:,} mocked transactions"):
        return insert(settings.postgres, target.table, Mix(seed, target.chain_id).rows(count, invalid))

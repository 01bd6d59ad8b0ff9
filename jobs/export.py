"""`oncesign export`: outcomes with their signed bytes, as a file for other programs."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Final

import typer

from jobs.loading import load_settings
from jobs.output import Status, emit, piped, say
from pipeline.errors import UsageError
from pipeline.local.cache import progress
from pipeline.local.resolve import resolve
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.export.rows import RowCount

STDOUT: Final = Path("-")
PROGRESS_EVERY_S: Final = 10.0
SETTLE: Final = "`oncesign sign` signs them and `oncesign verify` decides; then export again."


class Format(StrEnum):
    """How the file is written."""

    PARQUET = "parquet"
    CSV = "csv"
    JSONL = "jsonl"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is exported; an empty name is no condition."""

    form: str
    source: str
    status: str


@dataclass(frozen=True, slots=True)
class Summary:
    """What was exported, and what was not."""

    rows: RowCount
    waiting: int  #: rows of the source without an outcome
    fillers: int  #: transfers that only fill a nonce

    def fields(self) -> dict[str, Any]:
        """For --json."""
        rows = self.rows
        counts = {"signed": rows.signed, "rejected": rows.rejected, "without_raw": rows.gone}
        return {"rows": rows.signed + rows.rejected} | counts | {"waiting": self.waiting, "fillers": self.fillers}


def export(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", allow_dash=True, help="The file to write; - is stdout, for csv and jsonl.")
    ],
    form: Annotated[Format | None, typer.Option("--format", help="Default: by the file's suffix.")] = None,
    source: Annotated[str, typer.Option(help="Which source; default: all.")] = "",
    status: Annotated[Status, typer.Option(help="Which rows.")] = Status.ALL,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the counts as JSON on stdout; on stderr when the rows go to stdout.")
    ] = False,
) -> None:
    """Write every decided row with its outcome and its signed bytes into a file.

    Rows are in the order of their Kafka records. The file takes its name when it is complete; docs/formats.md has its
    columns. Rows that the verifier has no outcome for are left out and counted.
    """
    from pipeline.export.draft import draft
    from pipeline.export.formats import format_of

    settings = resolve(load_settings(), ["postgres", "kafka"])
    if source:
        settings = settings.model_copy(update={"sources": [settings.source(source)]})
    wanted = Wanted(format_of(path, form), source, "" if status is Status.ALL else status.value)
    if path == STDOUT:
        if form is Format.PARQUET:
            raise UsageError("Parquet is not for stdout.", hint="Name a file, or give --format csv or jsonl.")
        with piped():
            summary = asyncio.run(write(settings, wanted, sys.stdout.buffer))
    else:
        with draft(path, replace=force) as sink, progress(f"writing {path}"):
            summary = asyncio.run(write(settings, wanted, sink))
    _tell(path, summary)
    if json:
        fields = {"path": str(path), "format": wanted.form} | summary.fields()
        emit(fields, to=sys.stderr if path == STDOUT else sys.stdout)


async def write(settings: Settings, wanted: Wanted, sink: IO[bytes]) -> Summary:
    """Write all of it. Raises ViolationFound, MalformedBatch, DependencyDown, SettingError."""
    from actors.composition import bus, tables
    from pipeline.adapters.decided import PostgresDecided
    from pipeline.export.formats import WRITERS
    from pipeline.export.records import SignedRecords
    from pipeline.export.rows import RowCount, exported

    count = RowCount()
    async with AsyncExitStack() as stack:
        topics = await stack.enter_async_context(bus.topics(settings))
        log = await stack.enter_async_context(bus.batch_log(settings))
        records = SignedRecords(log, topics.names)
        stack.push_async_callback(records.close)
        decided = PostgresDecided(settings.postgres, wanted.source, wanted.status)
        stack.push_async_callback(decided.close)
        writer = WRITERS[wanted.form](sink)
        stack.callback(writer.close)
        told_s = time.monotonic()
        async with aclosing(exported(decided, records, count)) as parts:
            async for part in parts:
                writer.write(part)
                if time.monotonic() > told_s + PROGRESS_EVERY_S:
                    say(f"  {count.signed + count.rejected:,} rows so far")
                    told_s = time.monotonic()
        names = [source.name for source in settings.sources]
        waiting = max(0, await tables.total(settings) - await decided.count(names))
        return Summary(count, waiting, await decided.fillers(names))


def _tell(path: Path, summary: Summary) -> None:
    rows = summary.rows
    where = "stdout" if path == STDOUT else path
    say(f"{rows.signed:,} signed and {rows.rejected:,} rejected rows written to {where}.")
    if rows.gone:
        say(f"{rows.gone:,} of the signed are without their bytes: Kafka has deleted the records.")
    if summary.fillers:
        say(f"{summary.fillers:,} transfers that fill a nonce are no rows of a source and are not among them.")
    if summary.waiting:
        say(f"{summary.waiting:,} rows have no outcome yet. {SETTLE}")

"""The formats of an export; all of them written as rows come, none ever held as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Final, Protocol

import orjson
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as arrow_parquet

from pipeline.errors import UsageError
from pipeline.export.columns import AS_TEXT, COLUMNS, as_text

ROW_GROUP_ROWS: Final = 65_536
ROW_GROUP_BYTES: Final = 32 * 1024 * 1024
"""A row group of Parquet is held until it has so many rows or bytes."""


class Writer(Protocol):
    """Writes rows into a file that somebody else opens and closes."""

    def write(self, rows: pa.Table) -> None:
        """Rows with the columns of COLUMNS."""
        ...

    def close(self) -> None:
        """Write what must stand at the end."""
        ...


class ParquetRows:
    """Binary columns as they are."""

    def __init__(self, sink: IO[bytes]) -> None:
        self._writer = arrow_parquet.ParquetWriter(sink, COLUMNS)
        self._waiting: list[pa.Table] = []
        self._rows = self._bytes = 0

    def write(self, rows: pa.Table) -> None:
        """See Writer."""
        self._waiting.append(rows)
        self._rows += rows.num_rows
        self._bytes += rows.nbytes
        if self._rows >= ROW_GROUP_ROWS or self._bytes >= ROW_GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """See Writer."""
        try:
            self._flush()
        finally:
            self._writer.close()

    def _flush(self) -> None:
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self._rows = self._bytes = 0
            self._writer.write_table(pa.concat_tables(waiting))


class CsvRows:
    """A header, then a line per row; a null is nothing, an empty text is ""."""

    def __init__(self, sink: IO[bytes]) -> None:
        self._writer = arrow_csv.CSVWriter(sink, AS_TEXT)

    def write(self, rows: pa.Table) -> None:
        """See Writer."""
        self._writer.write_table(as_text(rows))

    def close(self) -> None:
        """See Writer."""
        self._writer.close()


class JsonLines:
    """One object per line; Arrow reads this format and has no writer for it."""

    def __init__(self, sink: IO[bytes]) -> None:
        self._sink = sink

    def write(self, rows: pa.Table) -> None:
        """See Writer."""
        for row in as_text(rows).to_pylist():
            self._sink.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))

    def close(self) -> None:
        """See Writer."""


WRITERS: Final[Mapping[str, Callable[[IO[bytes]], Writer]]] = {
    "parquet": ParquetRows,
    "csv": CsvRows,
    "jsonl": JsonLines,
}


def format_of(path: Path, named: str | None) -> str:
    """The format named, or that of the file's suffix. Raises UsageError."""
    found = named or path.suffix.removeprefix(".").lower()
    if found not in WRITERS:
        raise UsageError(f"{path}: no format has this suffix.", hint=f"Give --format: {', '.join(WRITERS)}.")
    return found

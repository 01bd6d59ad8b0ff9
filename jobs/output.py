"""How commands speak: data on stdout, everything else on stderr; JSON when asked."""

from __future__ import annotations

import datetime as dt
import os
import select
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any, TextIO

import orjson
import typer
from rich.console import Console
from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line for lists.")]


class Status(StrEnum):
    """Which rows, by what became of them."""

    SIGNED = "signed"
    REJECTED = "rejected"
    ALL = "all"


def emit(value: dict[str, Any] | list[Any], to: TextIO | None = None) -> None:
    """One JSON value on a line, on stdout unless told."""
    (to or sys.stdout).write(orjson.dumps(value, default=_text).decode() + "\n")


def emit_list(rows: Sequence[dict[str, Any]], titles: Sequence[str], *, as_json: bool) -> None:
    """A table for people, or one JSON object per line."""
    if as_json:
        for row in rows:
            emit(row)
        return
    table = Table(*titles, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(_cell(row.get(title, "")) for title in titles))
    Console(soft_wrap=not sys.stdout.isatty()).print(table)


def emit_fields(fields: dict[str, Any], *, as_json: bool) -> None:
    """Names and values for people, or one JSON object."""
    if as_json:
        emit(fields)
        return
    width = max((len(name) for name in fields), default=0)
    for name, value in fields.items():
        sys.stdout.write(f"{name:<{width}}  {_cell(value)}\n")


def say(text: str) -> None:
    """For the person at the terminal, not for a pipe."""
    sys.stderr.write(text + "\n")


def moment(unix_ms: int) -> str:
    """In UTC, by ISO 8601, to the millisecond."""
    return dt.datetime.fromtimestamp(unix_ms / 1000, dt.UTC).isoformat(timespec="milliseconds")


@contextmanager
def piped() -> Iterator[None]:
    """End quietly when nobody reads stdout any more (`| head`)."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # What Python still holds for stdout would be written at exit, and fail again.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        raise typer.Exit(0) from None


def require_reader() -> None:
    """Raises BrokenPipeError when nobody reads stdout any more; who only waits would not notice."""
    stdout = select.poll()
    stdout.register(sys.stdout, 0)  # for errors only, which are always told
    if any(event & select.POLLERR for _, event in stdout.poll(0)):
        raise BrokenPipeError


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(inner)}" for name, inner in value.items()) or "-"
    return str(value)


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return "0x" + value.hex()
    return str(value)

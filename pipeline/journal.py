"""Logs: one JSON line for each event, and each ends as exactly one of succeeded, denied and failed.

    succeeded   it was done
    denied      it was refused on purpose, and stays so until an operator acts
    failed      it could not be done; what is tried again says so

The words are those of metrics and docs. Commands, which log to a terminal, show the same as a sentence.
"""

from __future__ import annotations

import datetime as dt
import logging
import sys
from enum import StrEnum
from typing import Any, Final, TextIO

import orjson

EVENT: Final = "event"
"""The attribute of a log record that holds its fields."""


class Result(StrEnum):
    """How it ended."""

    SUCCEEDED = "succeeded"
    DENIED = "denied"
    FAILED = "failed"


class Journal:
    """What one part of the pipeline tells. Fields are what an operator searches for: stream, seq, worker, topic …"""

    def __init__(self, name: str, part: str) -> None:
        """`name` is the module's."""
        self._logger = logging.getLogger(name)
        self._part = part

    def succeeded(self, what: str, **fields: Any) -> None:
        """Information."""
        self._tell(logging.INFO, Result.SUCCEEDED, what, fields)

    def denied(self, what: str, **fields: Any) -> None:
        """An error: somebody has to look."""
        self._tell(logging.ERROR, Result.DENIED, what, fields)

    def failed(self, what: str, **fields: Any) -> None:
        """A warning: it is tried again."""
        self._tell(logging.WARNING, Result.FAILED, what, fields)

    def ended(self, what: str, *, frames: BaseException | None = None, **fields: Any) -> None:
        """An error: it failed, and whoever said so does not go on. `frames` are an error's, without their locals."""
        self._tell(logging.ERROR, Result.FAILED, what, fields, frames)

    def _tell(
        self, level: int, result: Result, what: str, fields: dict[str, Any], frames: BaseException | None = None
    ) -> None:
        if not self._logger.isEnabledFor(level):
            return
        event = {"part": self._part, "result": result.value, "what": what}
        event |= {name: _plain(value) for name, value in fields.items()}
        self._logger.log(level, "%s", _sentence(event), extra={EVENT: event}, exc_info=frames)


class JsonLines(logging.Formatter):
    """A record of ours with its fields, anybody else's with its message."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        moment = dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": moment.replace("+00:00", "Z"), "level": record.levelname.lower()}
        line |= getattr(record, EVENT, None) or {"part": record.name, "what": record.getMessage()}
        line["pid"] = record.process
        if record.exc_info:
            line["frames"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def start(stream: TextIO = sys.stderr, level: int = logging.INFO) -> None:
    """Everything that this process logs, as JSON lines."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | None) else str(value)


def _sentence(event: dict[str, Any]) -> str:
    """For people: `consumer: failed: signed again; stream payouts/3, seq 7: the reason`."""
    rest = {name: value for name, value in event.items() if name not in ("part", "result", "what", "error", "reason")}
    said = f"{event['part']}: {event['result']}: {event['what']}"
    if rest:
        said += "; " + ", ".join(f"{name} {value}" for name, value in rest.items())
    why = event.get("error") or event.get("reason")
    return f"{said}: {why}" if why else said

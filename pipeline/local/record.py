"""What is known of an embedded stack on disk: DATA_DIR/stack.json, replaced as a whole at each change."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
import psutil

from pipeline.errors import RuntimeFault


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """A process of ours: its pid alone could belong to somebody else by now, so its start time goes with it."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> ProcessRecord:
        """Of a process that runs now."""
        return cls(pid, psutil.Process(pid).create_time())

    def process(self) -> psutil.Process | None:
        """The process, unless it has ended."""
        try:
            process = psutil.Process(self.pid)
            same = process.create_time() == self.started and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return None
        return process if same else None


@dataclass(slots=True)
class StackRecord:
    """State of a stack."""

    members: int = 1
    servers: tuple[str, ...] = ()
    ports: dict[str, int] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
    daemon: ProcessRecord | None = None
    processes: dict[str, ProcessRecord] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    ready: bool = False
    failure: str = ""

    def running(self) -> dict[str, psutil.Process]:
        """Servers that run now, by name."""
        found = {name: record.process() for name, record in self.processes.items()}
        return {name: process for name, process in found.items() if process is not None}

    def daemon_process(self) -> psutil.Process | None:
        """The daemon, if it runs."""
        return self.daemon.process() if self.daemon else None

    def save(self, data_dir: Path) -> None:
        """Write it so that a reader sees the old or the new one, whole."""
        path = record_file(data_dir)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_bytes(orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2))
        draft.replace(path)


def record_file(data_dir: Path) -> Path:
    """Where the record is."""
    return data_dir / "stack.json"


def load(data_dir: Path) -> StackRecord:
    """The record, or an empty one. Raises RuntimeFault when it cannot be read."""
    try:
        fields: dict[str, Any] = orjson.loads(record_file(data_dir).read_bytes())
        fields["daemon"] = ProcessRecord(**fields["daemon"]) if fields["daemon"] else None
        fields["processes"] = {name: ProcessRecord(**record) for name, record in fields["processes"].items()}
        fields["servers"] = tuple(fields["servers"])
        return StackRecord(**fields)
    except FileNotFoundError:
        return StackRecord()
    except (ValueError, TypeError, KeyError) as error:
        raise RuntimeFault(
            f"{record_file(data_dir)} cannot be read: {error}.", hint="End its servers by hand, then delete it."
        ) from error

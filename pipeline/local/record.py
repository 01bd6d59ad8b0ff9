"""What is known of an embedded stack on disk: DATA_DIR/stack.json, replaced as a whole at each change."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import psutil

from pipeline.errors import RuntimeFault

PROC: Final = Path("/proc")
BOOT_ID: Final = PROC / "sys" / "kernel" / "random" / "boot_id"
STARTTIME_AFTER_NAME: Final = 19


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """A process of ours: its pid alone could belong to somebody else by now, so its start goes with it."""

    pid: int
    started: float
    """Seconds since `boot`; where the system names no boot, since 1970."""
    boot: str = ""

    @classmethod
    def of(cls, pid: int) -> ProcessRecord:
        """Of a process that runs now."""
        boot = _boot()
        return cls(pid, _started_after_boot_s(pid) if boot else psutil.Process(pid).create_time(), boot)

    def process(self) -> psutil.Process | None:
        """The process, unless it has ended."""
        try:
            process = psutil.Process(self.pid)
            started = _started_after_boot_s(self.pid) if self.boot else process.create_time()
            same = started == self.started and self.boot in ("", _boot())
            ended = process.status() == psutil.STATUS_ZOMBIE
        except (psutil.Error, OSError):
            return None
        return process if same and not ended else None


def _boot() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _started_after_boot_s(pid: int) -> float:
    """Unlike the time of day that psutil makes of it, this does not move when the clock is set (proc(5): starttime)."""
    after_name = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return int(after_name[STARTTIME_AFTER_NAME]) / os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class StackRecord:
    """State of a stack."""

    members: int = 1
    brokers: int = 1
    servers: tuple[str, ...] = ()
    ports: dict[str, int] = field(default_factory=dict)
    fronts: dict[str, int] = field(default_factory=dict)
    """Ports of what stands in front of a server, by the name of the server's own: clients are told these instead."""
    sizes: dict[str, int] = field(default_factory=dict)
    """`etcd.quota_bytes`, `kafka.heap_mib`, where they are not the servers' usual ones."""
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

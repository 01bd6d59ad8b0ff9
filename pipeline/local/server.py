"""What every embedded server is to the daemon: prepared once, launched, asked whether it is ready, stopped."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM
from typing import Final, Protocol

LOOPBACK: Final = "127.0.0.1"
LOG_TAIL_BYTES: Final = 4_096
LOG_TAIL_LINES: Final = 6
LOG_SEARCH_BYTES_MAX: Final = 1024**2


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a server's process."""

    argv: list[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    before_exec: Callable[[], None] | None = None
    stop_signal: int = SIGTERM


class Server(Protocol):
    """An embedded server."""

    name: str

    def prepare(self) -> None:
        """Whatever has to be there before the first launch; idempotent, may take a minute. Raises RuntimeFault."""
        ...

    def launch(self) -> Launch:
        """How to start it."""
        ...

    def ready(self) -> bool:
        """Whether it serves. Never raises, answers within a second or two."""
        ...

    def addresses(self) -> dict[str, str]:
        """What clients need to reach it, as settings."""
        ...


@contextmanager
def made_whole(folder: Path) -> Iterator[Path]:
    """A draft folder that becomes `folder` when all went well, so that a killed command leaves none half made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f"{folder.name}.draft-*"):
        shutil.rmtree(left, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=f"{folder.name}.draft-", dir=folder.parent))
    try:
        yield draft
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def free_port() -> int:
    """A port that nobody listens on now."""
    [port] = free_ports(1)
    return port


def free_ports(count: int) -> list[int]:
    """So many different ports that nobody listens on now: asked for one by one, the same may come twice."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def port_is_free(port: int) -> bool:
    """Whether a server could listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def log_tail(log: Path) -> str:
    """The last lines of a server's log, for an error message."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return "(no log)"
    return "\n    ".join(lines[-LOG_TAIL_LINES:])


def says(log: Path, phrase: bytes, since_byte: int) -> bool:
    """Whether the log has this lower-case phrase after that many bytes; looks at a bounded part of it."""
    try:
        with log.open("rb") as file:
            file.seek(since_byte)
            return phrase in file.read(LOG_SEARCH_BYTES_MAX).lower()
    except OSError:
        return False

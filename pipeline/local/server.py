"""What every embedded server is to the daemon: prepared once, launched, asked whether it is ready, stopped."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM
from typing import Final, Protocol

LOOPBACK: Final = "127.0.0.1"
LOG_TAIL_BYTES: Final = 4_096
LOG_TAIL_LINES: Final = 6


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


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


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

"""`oncesign sign` beside the faults: run again when it ends, as its user would, and stopped while an operator works."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import IO, Any, Final

import orjson

from jobs.output import say
from pipeline.errors import RuntimeFault

ENDS_KEPT: Final = 100
AGAIN_AFTER_S: Final = 1.0
STOP_TIMEOUT_S: Final = 200.0
COMMAND_TIMEOUT_S: Final = 240.0
PROGRESS: Final = '{"progress"'
ERROR: Final = "error: "


def command(*arguments: str) -> list[str]:
    """`oncesign ARGUMENTS`, by this interpreter."""
    return [sys.executable, "-m", "jobs.app", *arguments]


def oncesign(*arguments: str, timeout_s: float = COMMAND_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as a user does. Raises RuntimeFault when it takes too long."""
    try:
        return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeFault(f"`oncesign {' '.join(arguments)}` did not end in {timeout_s:.0f} s.") from error


class Signing:
    """One command at a time; a thread follows it."""

    def __init__(self, log: Path, address: str = "") -> None:
        """`address` is the dashboard of another cluster than that of the data directory."""
        self._log = log
        self._address = ("--address", address) if address else ()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._wanted = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="signing", daemon=True)
        self.progress: dict[str, Any] = {}
        self.progress_s = 0.0
        self.ends: deque[str] = deque(maxlen=ENDS_KEPT)  #: how the command ended without being asked to
        self.halts: dict[str, str] = {}  #: stream → reason, as seen since the last `start`

    def start(self) -> None:
        """Sign from now on."""
        self.halts = {}
        self._wanted.set()
        if not self._thread.is_alive():
            self._thread.start()

    def stop(self) -> None:
        """Ctrl-C, and wait for the end. Raises RuntimeFault when it does not come."""
        with self._lock:
            self._wanted.clear()
            process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGINT)
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        while not self.ended():
            if time.monotonic() > deadline_s:
                raise RuntimeFault(f"`oncesign sign` does not end {STOP_TIMEOUT_S:.0f} s after Ctrl-C.")
            time.sleep(0.1)

    def ended(self) -> bool:
        """Whether no command runs."""
        with self._lock:
            return self._process is None

    def pid(self, name: str) -> int | None:
        """Of an actor or the driver, as last reported."""
        found = self.progress.get("pids", {}).get(name)
        return int(found) if found else None

    def names(self, prefix: str) -> list[str]:
        """Of the actors whose name starts so."""
        return sorted(name for name in self.progress.get("pids", {}) if name.startswith(prefix))

    def close(self) -> None:
        """For good."""
        self._over.set()
        self.stop()

    def _keep(self) -> None:
        while not self._over.is_set():
            if not self._wanted.wait(AGAIN_AFTER_S):
                continue
            with self._lock:
                if not self._wanted.is_set():
                    continue
                self._process = subprocess.Popen(
                    command("sign", "--json", *self._address),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                    start_new_session=True,  # our own Ctrl-C is not for it: we end it ourselves
                )
            error = self._follow(self._process)
            code = self._process.wait()
            with self._lock:
                self._process = None
            self.progress = {}
            if self._wanted.is_set():
                self.ends.append(f"{code}: {error}")
                say(f"  sign ended with {code}: {error}")
                self._over.wait(AGAIN_AFTER_S)

    def _follow(self, process: subprocess.Popen[str]) -> str:
        """Until it ends; its last error."""
        error = ""
        assert process.stderr is not None  # noqa: S101 - it was asked for
        with self._log.open("a", encoding="utf-8") as log, process.stderr as lines:
            for line in lines:
                if line.startswith(PROGRESS):
                    self._take(line)
                else:
                    _keep_line(log, line)
                    error = line.removeprefix(ERROR).strip() if line.startswith(ERROR) else error
        return error

    def _take(self, line: str) -> None:
        self.progress = orjson.loads(line)["progress"]
        self.progress_s = time.monotonic()
        self.halts |= self.progress["halted"]


def _keep_line(log: IO[str], line: str) -> None:
    log.write(f"{time.strftime('%H:%M:%S')} {line}")
    log.flush()

"""The daemon of an embedded stack: `python -m pipeline.local.daemon DATA_DIR`.

It starts every server of the record, says when all of them serve, starts a dead one again after a pause that grows, and
on SIGTERM stops them in the reverse order. Servers that it finds running it takes over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import psutil

from pipeline.errors import OncesignError
from pipeline.local import record
from pipeline.local.record import ProcessRecord, StackRecord
from pipeline.local.server import Server, log_tail, says
from pipeline.local.stack import servers_of

READY_TIMEOUT_S: Final = 60.0
LOOK_S: Final = 0.2
STOP_TIMEOUT_S: Final = 15.0
RESTART_FIRST_S: Final = 0.5
RESTART_LONGEST_S: Final = 10.0
STARTS_BEFORE_READY_MAX: Final = 3

NO_SPACE: Final = b"no space left on device"
"""As etcd, Postgres and Kafka log it, in whatever case."""

GATE: Final = ("/bin/sh", "-c", 'read -r go && exec "$@" </dev/null', "sh")
"""Becomes the server once it is told to; ends when whoever started it dies before. So no server runs unrecorded."""


class Daemon:
    """Keeps the servers of one data directory up."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._record: StackRecord = record.load(data_dir)
        self._servers = servers_of(data_dir, self._record)
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._tried = set(self._record.running())
        self._pause_s = {server.name: RESTART_FIRST_S for server in self._servers}
        self._not_before_s = dict.fromkeys(self._pause_s, 0.0)
        self._logged_bytes = {server.name: _size(server.launch().log) for server in self._servers}
        self._stopping = False

    def run(self) -> None:
        """Until SIGTERM or SIGINT."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        self._record.daemon = ProcessRecord.of(os.getpid())
        self._record.ready, self._record.failure = False, ""
        self._record.restarts = {}
        self._save()
        try:
            if self._bring_up():
                self._watch()
        finally:
            self._end_all()

    def _stop(self, _signal: int, _frame: object) -> None:
        self._stopping = True

    def _bring_up(self) -> bool:
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        waiting = {server.name: server for server in self._servers}
        while waiting and not self._stopping:
            self._revive(list(waiting.values()))
            for name in [name for name, server in waiting.items() if server.ready()]:
                del waiting[name]
            failed = [name for name in waiting if self._record.restarts.get(name, 0) >= STARTS_BEFORE_READY_MAX]
            if failed or time.monotonic() > deadline_s:
                return self._give_up((failed or sorted(waiting))[0])
            time.sleep(LOOK_S)
        self._record.ready = not self._stopping
        self._record.restarts = {}
        self._save()
        return self._record.ready

    def _give_up(self, name: str) -> bool:
        server = next(server for server in self._servers if server.name == name)
        log = server.launch().log
        full = f"{os.strerror(errno.ENOSPC)}: " if says(log, NO_SPACE, self._logged_bytes[name]) else ""
        self._record.failure = f"{full}{name} does not start. Its log {log} ends with:\n    {log_tail(log)}"
        self._save()
        return False

    def _watch(self) -> None:
        while not self._stopping:
            self._revive(self._servers)
            time.sleep(LOOK_S)

    def _revive(self, servers: list[Server]) -> None:
        """Start each server that does not run and whose pause is over."""
        self._reap()
        running = self._record.running()
        now_s = time.monotonic()
        for server in servers:
            name = server.name
            if name in running or now_s < self._not_before_s[name]:
                continue
            if name in self._tried:
                self._record.restarts[name] = self._record.restarts.get(name, 0) + 1
                _note(f"{name} ended; started again")
            self._tried.add(name)
            try:
                self._start(server)
            except (OSError, subprocess.SubprocessError, psutil.Error) as error:
                _note(f"{name} cannot be started: {error}")
            self._not_before_s[name] = now_s + self._pause_s[name]
            self._pause_s[name] = min(self._pause_s[name] * 2, RESTART_LONGEST_S)

    def _start(self, server: Server) -> None:
        launch = server.launch()
        with launch.log.open("ab") as output:
            child = subprocess.Popen(
                [*GATE, *launch.argv],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=os.environ | dict(launch.env),
                start_new_session=True,
                preexec_fn=launch.before_exec,  # noqa: PLW1509 - this daemon has one thread
            )
        if child.stdin is None:  # it was asked for
            raise OSError(errno.EPIPE, "no pipe")
        with child.stdin as gate:
            self._children[server.name] = child
            self._record.processes[server.name] = ProcessRecord.of(child.pid)
            self._save()
            gate.write(b"go\n")

    def _reap(self) -> None:
        for child in self._children.values():
            child.poll()

    def _end_all(self) -> None:
        """Those too that an earlier `up` asked for and this one did not."""
        running = self._record.running()
        signals = {server.name: server.launch().stop_signal for server in self._servers if server.name in running}
        for name in reversed(running):
            _send(running[name], signals.get(name, signal.SIGINT))
        _, alive = psutil.wait_procs(running.values(), timeout=STOP_TIMEOUT_S)
        for process in alive:
            _send(process, signal.SIGKILL)
        self._reap()
        self._record.daemon, self._record.processes, self._record.ready = None, {}, False
        self._save()

    def _save(self) -> None:
        self._record.save(self._data_dir)


def _note(text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk must not end the one that starts servers again when it has room
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def _size(log: Path) -> int:
    try:
        return log.stat().st_size
    except FileNotFoundError:
        return 0


def _send(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def main() -> None:
    """One daemon per data directory: `up` hands over the locked `daemon.lock`; started by hand, it locks it itself."""
    data_dir = Path(sys.argv[1])
    handed_over = len(sys.argv) > 2
    with os.fdopen(int(sys.argv[2]), "w") if handed_over else (data_dir / "daemon.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        try:
            Daemon(data_dir).run()
        except OncesignError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()

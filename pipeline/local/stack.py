"""The embedded stack of a data directory: bring it up, look at it, take it down.

A daemon of its own starts the servers and starts a dead one again. The servers do not depend on it: when it is killed
they serve on, and the next `up` gives them a new daemon. Everything is found again by pid and start time, never by
name.
"""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

from pipeline.errors import DiskFull, RuntimeFault
from pipeline.local import record
from pipeline.local.cache import progress
from pipeline.local.etcd import EtcdMember
from pipeline.local.kafka import KafkaBroker
from pipeline.local.postgres import PostgresServer
from pipeline.local.record import StackRecord
from pipeline.local.server import Server, free_port, log_tail, port_is_free

SERVERS: Final = ("etcd", "postgres", "kafka")
UP_TIMEOUT_S: Final = 90.0
STOP_TIMEOUT_S: Final = 20.0
LOOK_S: Final = 0.1


class Stack:
    """One data directory's servers."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.resolve()
        self._daemon: subprocess.Popen[bytes] | None = None  # our child, if this object started it

    def up(self, members: int = 1, servers: Sequence[str] = SERVERS) -> StackRecord:
        """Start what does not run and wait until all of it serves; the record.

        Raises RuntimeFault naming the server and the end of its log, DiskFull.
        """
        with self._full_disk_named(), self._alone():
            known = record.load(self.data_dir)
            if known.daemon_process() is None:
                self._prepare(known, members, servers)
                self._spawn_daemon()
            return self._await_ready()

    def down(self) -> list[str]:
        """Stop the daemon, then every server it left; the names of what was stopped."""
        if not self.data_dir.exists():
            return []
        with self._alone():
            known = record.load(self.data_dir)
            stopped = sorted(known.running())
            daemon = known.daemon_process()
            if daemon is not None:
                daemon.terminate()
                _gone([daemon], STOP_TIMEOUT_S * 2)
            if self._daemon is not None:
                self._daemon.wait(STOP_TIMEOUT_S)
            _end(list(record.load(self.data_dir).running().values()))
            known = record.load(self.data_dir)
            known.daemon, known.processes, known.ready = None, {}, False
            if record.record_file(self.data_dir).exists():
                known.save(self.data_dir)
            return stopped

    def status(self) -> StackRecord:
        """What is known, without changing anything."""
        return record.load(self.data_dir)

    # ── starting ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _prepare(self, known: StackRecord, members: int, servers: Sequence[str]) -> None:
        if known.members != members and (self.data_dir / "etcd").exists():
            raise RuntimeFault(
                f"{self.data_dir} holds an etcd of {known.members} member(s), not {members}.",
                hint="Name another data directory for another number of members.",
            )
        known.members, known.servers = members, tuple(servers)
        known.ready, known.failure = False, ""
        choose_ports(known)
        for server in servers_of(self.data_dir, known):
            server.prepare()
        known.save(self.data_dir)

    def _spawn_daemon(self) -> None:
        if self._daemon is not None:
            self._daemon.wait(STOP_TIMEOUT_S)  # it has ended, or we would not be here
        log = self.data_dir / "logs" / "daemon.log"
        with log.open("ab") as output:
            self._daemon = subprocess.Popen(
                [sys.executable, "-m", "pipeline.local.daemon", str(self.data_dir)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C in the terminal of `up` is not for the servers
            )

    def _await_ready(self) -> StackRecord:
        deadline_s = time.monotonic() + UP_TIMEOUT_S
        with progress("starting " + ", ".join(record.load(self.data_dir).servers)):
            while time.monotonic() < deadline_s:
                known = record.load(self.data_dir)
                if known.failure:
                    raise RuntimeFault(known.failure)
                if known.ready and known.daemon_process() is not None:
                    return known
                time.sleep(LOOK_S)
        raise RuntimeFault(
            f"the servers did not come up in {UP_TIMEOUT_S:.0f} s: {log_tail(self.data_dir / 'logs' / 'daemon.log')}",
            hint=f"Their logs are in {self.data_dir / 'logs'}.",
        )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two commands on one data directory take turns."""
        (self.data_dir / "logs").mkdir(parents=True, exist_ok=True)
        self.data_dir.chmod(0o700)
        with (self.data_dir / "up.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _full_disk_named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull("no space left", address=str(self.data_dir)) from error
            raise


def choose_ports(known: StackRecord) -> None:
    """Keep the ports of last time, so that clients find the servers again, unless somebody else listens there now."""
    wanted = ["postgres", "kafka", "kafka.controller"]
    wanted += [f"etcd-{index}.{side}" for index in range(known.members) for side in ("client", "peer")]
    ours_run = bool(known.running())
    for name in wanted:
        port = known.ports.get(name)
        if port is None or not (ours_run or port_is_free(port)):
            known.ports[name] = free_port()


def servers_of(data_dir: Path, known: StackRecord) -> list[Server]:
    """The servers of a stack, as its record names them; fills in their addresses."""
    ports = known.ports
    servers: list[Server] = []
    if "etcd" in known.servers:
        pairs = [(ports[f"etcd-{i}.client"], ports[f"etcd-{i}.peer"]) for i in range(known.members)]
        servers += [EtcdMember(data_dir, index, pairs) for index in range(known.members)]
    if "postgres" in known.servers:
        servers.append(PostgresServer(data_dir, ports["postgres"]))
    if "kafka" in known.servers:
        servers.append(KafkaBroker(data_dir, ports["kafka"], ports["kafka.controller"]))
    known.addresses = {name: value for server in servers for name, value in server.addresses().items()}
    return servers


def _end(processes: list[psutil.Process]) -> None:
    """Ask to end, then insist."""
    for process in processes:
        _signal(process, "terminate")
    for process in _gone(processes, STOP_TIMEOUT_S):
        _signal(process, "kill")
    _gone(processes, STOP_TIMEOUT_S)


def _signal(process: psutil.Process, how: str) -> None:
    try:
        getattr(process, how)()
    except psutil.NoSuchProcess:
        return


def _gone(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those that still run after the timeout."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    return list(alive)

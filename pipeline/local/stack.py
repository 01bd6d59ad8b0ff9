"""The embedded stack of a data directory: bring it up, look at it, take it down.

A daemon of its own starts the servers and starts a dead one again. The servers do not depend on it: when it is killed
they serve on, and the next `up` gives them a new daemon. Everything is found again by pid and start time, never by
name.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import psutil

from pipeline.errors import DiskFull, RuntimeFault
from pipeline.local import record
from pipeline.local.cache import progress
from pipeline.local.etcd import QUOTA_BYTES, EtcdMember, member_name
from pipeline.local.kafka import BrokerPorts, KafkaBroker, broker_name
from pipeline.local.postgres import PostgresServer
from pipeline.local.record import StackRecord
from pipeline.local.server import Server, free_port, log_tail, port_is_free

SERVERS: Final = ("etcd", "postgres", "kafka")
UP_TIMEOUT_S: Final = 90.0
STOP_TIMEOUT_S: Final = 20.0
INTRODUCTION_TIMEOUT_S: Final = 20.0
LOOK_S: Final = 0.1
FULL_BYTES: Final = 4 * 1024**2
"""A file system with less room than this is full to a server."""


class Stack:
    """One data directory's servers."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.resolve()
        self._daemon: subprocess.Popen[bytes] | None = None  # our child, if this object started it

    def up(self, members: int | None = None, servers: Sequence[str] = SERVERS) -> StackRecord:
        """Start what does not run and wait until all of it serves; the record.

        `members` of etcd are as many as there are already, else 1.

        Raises RuntimeFault naming the server and the end of its log, DiskFull.
        """
        with self._full_disk_named(), self._alone():
            daemon = self._daemon_process()
            known = record.load(self.data_dir)
            members = known.members if members is None else members
            self._require_members(known, members)
            if daemon is not None and not set(servers) <= set(known.servers):
                _end([daemon], signal.SIGKILL)  # its servers serve on; the next daemon has more to look after
                daemon = None
            if daemon is None:
                with self._daemon_lock() as lock:
                    self._prepare(known, members, servers)
                    self._spawn_daemon(lock)
            return self._await_ready()

    def down(self) -> list[str]:
        """Stop the daemon, then every server it left; the names of what was stopped.

        Raises RuntimeFault when a process does not end even when killed.
        """
        if not record.record_file(self.data_dir).exists():
            return []
        with self._full_disk_named(), self._alone():
            daemon = self._daemon_process()
            stopped = sorted(record.load(self.data_dir).running())
            if daemon is not None:
                _end([daemon], signal.SIGTERM, STOP_TIMEOUT_S * 2)
            if self._daemon is not None:
                self._daemon.wait(STOP_TIMEOUT_S)
            known = record.load(self.data_dir)
            # SIGINT is Postgres' fast shutdown: on SIGTERM it would wait for its clients. The others take either.
            _end(list(known.running().values()), signal.SIGINT)
            known.daemon, known.processes, known.ready = None, {}, False
            known.save(self.data_dir)
            return stopped

    def status(self) -> StackRecord:
        """What is known, without changing anything."""
        return record.load(self.data_dir)

    # ── starting ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _require_members(self, known: StackRecord, members: int) -> None:
        if known.members != members and (self.data_dir / "etcd").exists():
            raise RuntimeFault(
                f"{self.data_dir} holds an etcd of {known.members} member(s), not {members}.",
                hint="Name another data directory for another number of members.",
            )

    def _prepare(self, known: StackRecord, members: int, servers: Sequence[str]) -> None:
        known.members, known.servers = members, tuple(servers)
        known.ready, known.failure = False, ""
        choose_ports(known)
        for server in servers_of(self.data_dir, known):
            server.prepare()
        known.save(self.data_dir)

    def _spawn_daemon(self, lock: IO[str]) -> None:
        if self._daemon is not None:
            self._daemon.wait(STOP_TIMEOUT_S)  # it has ended, or we would not hold its lock
        log = self.data_dir / "logs" / "daemon.log"
        with log.open("ab") as output:
            self._daemon = subprocess.Popen(
                [sys.executable, "-m", "pipeline.local.daemon", str(self.data_dir), str(lock.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[lock.fileno()],
                start_new_session=True,  # Ctrl-C in the terminal of `up` is not for the servers
            )

    def _await_ready(self) -> StackRecord:
        deadline_s = time.monotonic() + UP_TIMEOUT_S
        log = self.data_dir / "logs" / "daemon.log"
        with progress("starting " + ", ".join(record.load(self.data_dir).servers)):
            while time.monotonic() < deadline_s:
                alive = self._daemon_lives()
                known = record.load(self.data_dir)
                if known.failure:
                    raise self._fault(known.failure)
                if known.ready and known.daemon_process() is not None:
                    return known
                if not alive:
                    raise self._fault(f"the servers' daemon ended. Its log {log} ends with:\n    {log_tail(log)}")
                time.sleep(LOOK_S)
        raise self._fault(f"the servers did not come up in {UP_TIMEOUT_S:.0f} s. {log} ends with: {log_tail(log)}")

    def _fault(self, message: str) -> RuntimeFault | DiskFull:
        full = os.strerror(errno.ENOSPC).lower() in message.lower()
        if full or shutil.disk_usage(self.data_dir).free < FULL_BYTES:
            return DiskFull(message, address=str(self.data_dir))
        return RuntimeFault(message, hint=f"All logs are in {self.data_dir / 'logs'}.")

    # ── who runs ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _daemon_process(self) -> psutil.Process | None:
        """The daemon, waiting for one that has started to record itself; None when there is none."""
        deadline_s = time.monotonic() + INTRODUCTION_TIMEOUT_S
        while self._daemon_lives():
            process = record.load(self.data_dir).daemon_process()
            if process is not None:
                return process
            if time.monotonic() > deadline_s:
                raise RuntimeFault(f"a process holds {self.data_dir / 'daemon.lock'} and does not say which it is.")
            time.sleep(LOOK_S)
        return None

    def _daemon_lives(self) -> bool:
        try:
            with self._daemon_lock():
                return False
        except BlockingIOError:
            return True

    @contextmanager
    def _daemon_lock(self) -> Iterator[IO[str]]:
        """The lock that a daemon holds from before its first instruction to its end; BlockingIOError while one does."""
        with (self.data_dir / "daemon.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield lock

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two commands on one data directory take turns."""
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.data_dir / "logs").mkdir(mode=0o700, exist_ok=True)
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
    wanted = {"postgres": "postgres"}
    for index in range(known.brokers):
        broker = broker_name(index, known.brokers)
        wanted |= dict.fromkeys([broker, f"{broker}.controller"], broker)
        if known.brokers > 1:
            wanted[f"{broker}.internal"] = broker
    for index in range(known.members):
        member = member_name(index, known.members)
        wanted |= {f"etcd-{index}.client": member, f"etcd-{index}.peer": member}
    running = known.running()
    for name, server in wanted.items():
        port = known.ports.get(name)
        if port is None or not (server in running or port_is_free(port)):
            known.ports[name] = _unused_port(known)


def _unused_port(known: StackRecord) -> int:
    while (port := free_port()) in (*known.ports.values(), *known.fronts.values()):
        continue
    return port


def servers_of(data_dir: Path, known: StackRecord) -> list[Server]:
    """The servers of a stack, as its record names them; fills in their addresses."""
    servers: list[Server] = []
    if "etcd" in known.servers:
        servers += _etcd_members(data_dir, known)
    if "postgres" in known.servers:
        servers.append(PostgresServer(data_dir, known.ports["postgres"], known.fronts.get("postgres")))
    if "kafka" in known.servers:
        servers += _kafka_brokers(data_dir, known)
    known.addresses = {name: value for server in servers for name, value in server.addresses().items()}
    return servers


def _etcd_members(data_dir: Path, known: StackRecord) -> list[Server]:
    names = [f"etcd-{index}.client" for index in range(known.members)]
    pairs = [(known.ports[name], known.ports[name.replace(".client", ".peer")]) for name in names]
    fronts = [known.fronts.get(name, known.ports[name]) for name in names]
    quota_bytes = known.sizes.get("etcd.quota_bytes", QUOTA_BYTES)
    return [
        EtcdMember(data_dir, index, pairs, fronts=fronts, quota_bytes=quota_bytes) for index in range(known.members)
    ]


def _kafka_brokers(data_dir: Path, known: StackRecord) -> list[Server]:
    names = [broker_name(index, known.brokers) for index in range(known.brokers)]
    ports = [
        BrokerPorts(
            known.ports[name],
            known.ports[f"{name}.controller"],
            known.ports.get(f"{name}.internal", 0),
            known.fronts.get(name),
        )
        for name in names
    ]
    heap_mib = known.sizes.get("kafka.heap_mib")
    return [KafkaBroker(data_dir, index, ports, heap_mib) for index in range(known.brokers)]


def _end(processes: list[psutil.Process], number: signal.Signals, timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Ask to end, then insist. Raises RuntimeFault."""
    alive = processes
    for next_number in (number, signal.SIGKILL):
        for process in alive:
            _send(process, next_number)
        alive = _still_running(alive, timeout_s)
        if not alive:
            return
    raise RuntimeFault(f"processes {', '.join(str(process.pid) for process in alive)} do not end.")


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _still_running(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    deadline_s = time.monotonic() + timeout_s
    while (alive := [process for process in processes if not _ended(process)]) and time.monotonic() < deadline_s:
        time.sleep(LOOK_S / 2)
    return alive


def _ended(process: psutil.Process) -> bool:
    """A zombie has ended: in a container whose first process reaps nobody, it stays one."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True

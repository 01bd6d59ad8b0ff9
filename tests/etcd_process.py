"""One etcd that a test may kill, freeze and start again; ended by its pid."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from pipeline.local.etcd import EtcdMember
from pipeline.local.server import free_ports
from pipeline.settings import EtcdSettings

READY_TIMEOUT_S = 30.0


class EtcdProcess:
    """The embedded etcd's own command line, without the daemon that would restart it."""

    def __init__(self, data_dir: Path, *flags: str, tls: bool = False) -> None:
        data_dir.mkdir(exist_ok=True)
        client, peer = free_ports(2)
        self._member = EtcdMember(data_dir, 0, [(client, peer)])
        self._log = data_dir / "etcd.log"
        self._flags = flags
        self._scheme = "https" if tls else "http"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> EtcdSettings:
        endpoints = self._member.addresses()["etcd.endpoints"].replace("http:", f"{self._scheme}:")
        return EtcdSettings(endpoints=endpoints, timeout_s=1.0)

    def start(self) -> None:
        self._member.prepare()
        with self._log.open("ab") as log:
            argv = [self._for_scheme(flag) for flag in self._member.launch().argv]
            self._process = subprocess.Popen([*argv, *self._flags], stdout=log, stderr=log)
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise

    def _wait(self) -> None:
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while not self._ready():
            assert self._process is not None
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline_s, self._log.read_text()
            time.sleep(0.05)

    def _for_scheme(self, flag: str) -> str:
        return flag.replace("http:", f"{self._scheme}:") if "client-urls" in flag else flag

    def _ready(self) -> bool:
        if self._scheme == "http":
            return self._member.ready()
        anyone = ssl.create_default_context()
        anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
        address = urlsplit(self.settings.endpoints)
        try:
            with socket.create_connection((address.hostname, address.port), timeout=1) as plain:
                anyone.wrap_socket(plain).close()
        except OSError:
            return False
        return True

    def freeze(self) -> None:
        """Returns when it stands still: a thread on another processor may answer meanwhile."""
        self._signal(signal.SIGSTOP)
        assert self._process is not None
        threads = psutil.Process(self._process.pid).threads
        while any(psutil.Process(thread.id).status() != psutil.STATUS_STOPPED for thread in threads()):
            time.sleep(0.01)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """As by `kill -9`."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(timeout=10)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

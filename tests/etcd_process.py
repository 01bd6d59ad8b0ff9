"""One etcd that a test may kill, freeze and start again; ended by its pid."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from pipeline.local.etcd import EtcdMember
from pipeline.settings import EtcdSettings

READY_TIMEOUT_S = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class EtcdProcess:
    """The embedded etcd's own command line, without the daemon that would restart it."""

    def __init__(self, data_dir: Path, *flags: str) -> None:
        self._member = EtcdMember(data_dir, 0, [(free_port(), free_port())])
        self._log = data_dir / "etcd.log"
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> EtcdSettings:
        return EtcdSettings(endpoints=self._member.addresses()["etcd.endpoints"], timeout_s=1.0)

    def start(self) -> None:
        self._member.prepare()
        with self._log.open("ab") as log:
            argv = [*self._member.launch().argv, *self._flags]
            self._process = subprocess.Popen(argv, stdout=log, stderr=log)
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while not self._member.ready():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline_s, self._log.read_text()
            time.sleep(0.05)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

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

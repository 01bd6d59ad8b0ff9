"""A Ray cluster with the node groups of a production deployment, as processes of this machine: each node is one."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import orjson
import psutil

from actors import cluster
from pipeline.local.server import LOOPBACK, free_port, free_ports, log_tail

HEAD_FLAGS: Final = ("--port", "--dashboard-port", "--ray-client-server-port")
START_TIMEOUT_S: Final = 90.0
METRICS_EVERY_MS: Final = 2_500
"""A quarter of the default: a test waits for figures."""

NODE_STORE_BYTES: Final = 100 * 1024**2
NODES: Final = {"key_manager": ("key_manager", 1), "signers": ("signers", 1), "other": ("signers", 1), "io": ("io", 4)}
"""Node → its group, and its CPUs."""


class Groups:
    """A head without CPUs, and a node for each group; `folder` must have a short path, for Ray's sockets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._token = folder / "token"
        self._token.touch(mode=0o600)
        self._token.write_text(secrets.token_hex(32))
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.address = f"{LOOPBACK}:{free_port()}"
        self.dashboard = ""

    def environment(self) -> dict[str, str]:
        """Of every process and every client."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("ONCESIGN_")}
        own = {"RAY_ADDRESS": self.address, "RAY_metrics_report_interval_ms": str(METRICS_EVERY_MS)}
        return ours | cluster.environment(str(self._token)) | own

    def start(self) -> None:
        """All of it, and wait until every group is there."""
        dashboard = free_port()
        self.dashboard = f"http://{LOOPBACK}:{dashboard}"
        port = self.address.rsplit(":", 1)[1]
        own = [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-host={LOOPBACK}", "--num-cpus=0"]
        own += [f"--ray-client-server-port={free_port()}"]
        self._start("head", ["--head", *cluster.HEAD_WITHOUT, f"--temp-dir={self.folder}", *own])
        for nodes, node in enumerate(NODES, start=2):  # one after the other: at once, some of them do not start
            self.start_node(node)
            self._await(nodes)

    def start_node(self, node: str) -> None:
        """As a pod of its group does."""
        group, cpus = NODES[node]
        resources = orjson.dumps({group: 1000}).decode()
        self._start(node, [f"--address={self.address}", f"--num-cpus={cpus}", f"--resources={resources}"])

    def kill_node(self, node: str) -> None:
        """As when its machine is gone: every process of it at once."""
        child = self._nodes.pop(node)
        raylet = psutil.Process(child.pid)
        for process in [*raylet.children(recursive=True), raylet]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        child.wait()

    def stop(self) -> None:
        """End every process."""
        for node in [*self._nodes]:
            self.kill_node(node)

    def _start(self, name: str, arguments: list[str]) -> None:
        flags = [flag for flag in cluster.PORT_FLAGS if flag not in HEAD_FLAGS]
        ports = [f"{flag}={port}" for flag, port in zip(flags, free_ports(len(flags)), strict=True)]
        argv = [str(Path(sys.executable).with_name("ray")), "start", "--block", f"--node-ip-address={LOOPBACK}"]
        argv += [f"--object-store-memory={NODE_STORE_BYTES}", "--min-worker-port=0", "--max-worker-port=0"]
        argv += ["--disable-usage-stats", *ports, *arguments]
        with (self.folder / f"{name}.log").open("ab") as log:
            self._nodes[name] = subprocess.Popen(
                argv, env=self.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        if name == "head":
            self._await(1)

    def _await(self, nodes: int) -> None:
        """Until so many nodes are alive."""
        ask = "import ray; ray.init(log_to_driver=False); print('alive:', sum(n['Alive'] for n in ray.nodes()))"
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            argv = [sys.executable, "-c", ask]
            done = subprocess.run(
                argv, env=self.environment(), capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False
            )
            alive = re.search(r"alive: (\d+)", done.stdout)
            if alive and int(alive[1]) >= nodes:
                return
            logs = {name: log_tail(self.folder / f"{name}.log") for name in self._nodes}
            assert time.monotonic() < deadline_s, (done.stderr[-500:], logs)
            time.sleep(0.5)

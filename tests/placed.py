"""A deployment on a cluster with node groups, as its user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Final

import psycopg

from pipeline.adapters.postgres import connection_string
from pipeline.settings import Settings
from tests.command_line import environment
from tests.ray_groups import Groups

TIMEOUT_S: Final = 240.0
LEAVE: Final = """
import asyncio, sys
import ray
from jobs.desk import connect
from jobs.leave import leave
from jobs.loading import load_settings
settings = load_settings()
connect(settings)
node = next(n["NodeID"] for n in ray.nodes() if n["Alive"] and sys.argv[1] in n["Resources"])
asyncio.run(leave(settings, node))
"""


class Cluster:
    """Commands as jobs run them: on the head, where etcd is not to be reached."""

    def __init__(self, groups: Groups, settings: Settings) -> None:
        self.settings = settings
        placed = {"ONCESIGN_POOL__PLACED": "true", "ONCESIGN_POOL__SIGNERS": "2"}
        self.env = groups.environment() | environment(settings) | placed

    def run(self, *arguments: str, module: str = "jobs.app", code: int = 0) -> str:
        argv = [sys.executable, "-m", module, *arguments]
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == code, done.stderr[-3000:]
        return done.stdout if code == 0 else done.stderr

    def sign(self) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "jobs.sign"]
        return subprocess.Popen(argv, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def leave(self, group: str) -> None:
        """As jobs.leave does in a pod of this group; here several nodes share one address."""
        argv = [sys.executable, "-c", LEAVE, group]
        subprocess.run(argv, env=self.env, check=True, capture_output=True, timeout=120)

    def actors(self) -> list[str]:
        found: list[str] = json.loads(self.run("status", "--json"))["actors"]
        return found

    def settled(self, rows: int, within_s: float = TIMEOUT_S) -> None:
        """Wait until so many rows have an outcome."""
        deadline_s = time.monotonic() + within_s
        while self.outcomes() < rows:
            assert time.monotonic() < deadline_s, f"{self.outcomes()} of {rows}"
            time.sleep(0.3)

    def outcomes(self) -> int:
        with psycopg.connect(connection_string(self.settings.postgres)) as connection:
            row = connection.execute("SELECT count(*) FROM outcomes").fetchone()
        assert row is not None
        return int(row[0])

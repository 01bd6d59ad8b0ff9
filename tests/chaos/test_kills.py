"""The demo's path while every actor, etcd, the Kafka broker and the driver are killed once in turn; then everything is
verified.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pipeline.adapters.postgres import connection_string
from pipeline.local import record
from pipeline.local.resolve import resolve
from pipeline.local.stack import Stack
from pipeline.settings import Settings

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(1000)]

KEYS = 24
ROWS_FIRST = 6_000
ROWS_PER_KILL = 1_500
START_TIMEOUT_S = 120
RESUME_TIMEOUT_S = 90
SEEN_WITHIN_S = 60
VICTIMS = [
    "signer-0",
    "reader-payouts-0",
    "consumer-0",
    "tx-verifier",
    "key-manager",
    "supervisor",
    "etcd",
    "kafka",
    "driver",
]


class Session:
    """`oncesign` commands on one data directory."""

    def __init__(self, data_dir: Path) -> None:
        self.env = os.environ | {"ONCESIGN_DATA_DIR": str(data_dir), "ONCESIGN_READER__BATCH_ROWS_MAX": "100"}
        self.data_dir = data_dir

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.argv(*arguments), env=self.env, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "jobs.app", *arguments]


class Signing:
    """`oncesign sign --json` in the background, and its latest progress report."""

    def __init__(self, session: Session) -> None:
        self.process = subprocess.Popen(
            session.argv("sign", "--json"), env=session.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.progress: dict[str, Any] = {}
        self.said: list[str] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith('{"progress"'):
                self.progress = json.loads(line)["progress"]
            else:
                self.said.append(line)

    def stop(self) -> dict[str, Any]:
        """Ctrl-C; the summary."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        with self.process.stdout, self.process.stderr:
            output = self.process.stdout.read()
            code = self.process.wait(120)
            self._thread.join(10)
        assert code == 0, "".join(self.said[-40:])
        summary: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
        return summary


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    made = Session(tmp_path / "data")
    yield made
    made.run("down")


def settled(settings: Settings) -> int:
    """Rows with an outcome."""
    with psycopg.connect(connection_string(settings.postgres)) as connection:
        row = connection.execute("SELECT count(*) FROM outcomes").fetchone()
    assert row is not None
    return int(row[0])


def wait_until(settled_rows: int, settings: Settings, signing: Signing, timeout_s: float) -> float:
    started = time.monotonic()
    while settled(settings) < settled_rows:
        assert signing.process.poll() is None, "".join(signing.said[-40:])
        assert time.monotonic() - started < timeout_s, f"{signing.progress}\n{''.join(signing.said[-20:])}"
        time.sleep(0.3)
    return time.monotonic() - started


def pid_of(victim: str, settings: Settings, signing: Signing) -> int:
    server = record.load(settings.data_dir.resolve()).processes.get(victim)
    return server.pid if server else int(signing.progress["pids"][victim])


def watch(session: Session) -> None:
    """`oncesign top` sees what the job says, which asks each actor every other second."""
    deadline_s = time.monotonic() + SEEN_WITHIN_S
    seen = json.loads(session.run("top", "--once", "--json").stdout)
    while not seen["stages"]["read"]:
        assert time.monotonic() < deadline_s, seen
        seen = json.loads(session.run("top", "--once", "--json").stdout)
    assert seen["per_second"].keys() == seen["stages"].keys()
    assert "signer-0" in seen["pids"]
    page = session.run("top", "--once").stdout
    assert re.search(r"^read +reader +\d", page, re.MULTILINE), page


def test_every_process_is_killed_once(session: Session) -> None:
    session.run("up")
    session.run("migrate")
    session.run("keys", "create", "--count", str(KEYS))
    session.run("stock", "--count", str(ROWS_FIRST), "--invalid", "0.05")
    settings = resolve(Settings(data_dir=session.data_dir))
    signing = Signing(session)
    wait_until(1, settings, signing, START_TIMEOUT_S)
    watch(session)
    rows = ROWS_FIRST
    resumed_s: dict[str, float] = {}
    for number, victim in enumerate(VICTIMS):
        os.kill(pid_of(victim, settings, signing), signal.SIGKILL)
        session.run("stock", "--count", str(ROWS_PER_KILL), "--seed", str(number + 2))
        rows += ROWS_PER_KILL
        resumed_s[victim] = wait_until(rows, settings, signing, RESUME_TIMEOUT_S)
        sys.stderr.write(f"{victim} killed: all rows settled {resumed_s[victim]:.1f} s after the last was committed\n")
    signing.stop()
    found = json.loads(session.run("verify", "--json").stdout)
    assert found["violations"] == 0
    assert found["signed"] + found["rejected"] == rows
    assert found["rejected"] > 0
    assert session.run("assignments", "--json").stdout == ""
    keys = [json.loads(line) for line in session.run("keys", "list", "--json").stdout.splitlines()]
    assert sum(key["next_nonce"] for key in keys) == found["signed"]
    life = json.loads(session.run("tx", "1", "--json").stdout)
    assert life["outcome"]["status"] in ("signed", "rejected")
    assert Stack(session.data_dir).status().ready

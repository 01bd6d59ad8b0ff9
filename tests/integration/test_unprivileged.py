"""Postgres for root, where user namespaces may be made and where, as in most containers, they may not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.local.unprivileged import ordinary_user_id

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0, reason="about root"),
]

WAIT_S = 20.0
NAMESPACE_IDS = 65_536

# Root of a container: whole range of ids, and no namespaces below it.
CONTAINER = """
read -r go && exec sh -c 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"' sh "$@"
"""

UP_WRITE_AND_DOWN = """
import os, sys
from pathlib import Path
import psycopg
from pydantic import SecretStr
from pipeline.adapters.postgres import connection_string
from pipeline.local.stack import Stack
from pipeline.settings import PostgresSettings
assert os.geteuid() == 0
stack = Stack(Path(sys.argv[1]))
for number in range(2):
    known = stack.up(servers=["postgres"])
    try:
        dsn, password = known.addresses["postgres.dsn"], known.addresses["postgres.password_file"]
        settings = PostgresSettings(dsn=SecretStr(dsn), password_file=Path(password))
        with psycopg.connect(connection_string(settings)) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS kept (number int)")
            connection.execute("INSERT INTO kept VALUES (%s)", [number])
            rows = connection.execute("SELECT number FROM kept ORDER BY number").fetchall()
        uid = known.running()["postgres"].uids().effective
    finally:
        stopped = stack.down()
print(rows, stopped, uid)
"""


def argv(data_dir: Path) -> list[str]:
    return [sys.executable, "-c", UP_WRITE_AND_DOWN, str(data_dir)]


def test_root_runs_postgres_in_a_namespace(tmp_path: Path) -> None:
    done = subprocess.run(argv(tmp_path / "data"), capture_output=True, text=True, timeout=90, check=False)
    assert done.stdout == "[(0,), (1,)] ['postgres'] 0\n", done.stderr
    assert (tmp_path / "data" / "postgres").stat().st_uid == 0


def test_root_runs_postgres_where_namespaces_are_refused(tmp_path: Path) -> None:
    container = subprocess.Popen(
        ["unshare", "--user", "sh", "-c", CONTAINER, "sh", *argv(tmp_path / "data")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _map_all_ids(container.pid)
        output, said = container.communicate("go\n", timeout=90)
    finally:
        container.kill()
    assert output == f"[(0,), (1,)] ['postgres'] {ordinary_user_id()}\n", said
    assert (tmp_path / "data" / "postgres").stat().st_uid == ordinary_user_id()


def _map_all_ids(pid: int) -> None:
    process = Path("/proc") / str(pid)
    ours = (Path("/proc/self/ns/user")).readlink()
    deadline = time.monotonic() + WAIT_S
    while (process / "ns" / "user").readlink() == ours:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    try:
        (process / "uid_map").write_text(f"0 0 {NAMESPACE_IDS}")
        (process / "gid_map").write_text(f"0 0 {NAMESPACE_IDS}")
    except PermissionError:
        os.kill(pid, signal.SIGKILL)
        pytest.skip("ids cannot be mapped here")

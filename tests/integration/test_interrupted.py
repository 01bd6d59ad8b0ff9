"""Ctrl-C at any moment, then the same command again; a data directory without room."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pipeline.adapters.postgres import connection_string
from pipeline.local.resolve import resolve
from pipeline.local.stack import Stack
from pipeline.settings import Settings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

ETCD_ELSEWHERE = {"ONCESIGN_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"}  # no Kafka: these tests are about Ctrl-C


class Shell:
    """Commands on one data directory, each a process of its own."""

    def __init__(self, data_dir: Path) -> None:
        self.env = os.environ | ETCD_ELSEWHERE | {"ONCESIGN_DATA_DIR": str(data_dir)}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "jobs.app", *arguments]
        return subprocess.Popen(argv, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *arguments: str) -> None:
        with self.start(*arguments) as process:
            _, err = process.communicate(timeout=90)
        assert process.returncode == 0, err

    def interrupt(self, once_it_says: str, *arguments: str) -> None:
        """Ctrl-C as soon as it has said that."""
        with self.start(*arguments) as process:
            assert process.stderr is not None
            said = ""
            while once_it_says not in said:
                line = process.stderr.readline()
                assert line, said
                said += line
            process.send_signal(signal.SIGINT)
            _, rest = process.communicate(timeout=30)
        assert "Traceback" not in rest
        if process.returncode not in (0, -signal.SIGINT):  # it was quicker, or on its way out
            assert process.returncode == 130, rest
            assert rest.endswith("interrupted; nothing that was committed is lost\n")


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    yield Shell(tmp_path / "d")
    Stack(tmp_path / "d").down()


def test_commands_that_were_interrupted_can_be_given_again(shell: Shell, tmp_path: Path) -> None:
    for _ in range(2):
        shell.interrupt("starting etcd", "up")
    shell.run("up")
    shell.run("migrate")
    shell.interrupt("made a key-encryption key", "keys", "create", "--count", "200")
    shell.run("keys", "create")
    shell.interrupt("inserting", "stock", "--count", "50000")
    shell.run("stock", "--count", "100")
    settings = resolve(Settings(data_dir=tmp_path / "d"), ["postgres"])
    with psycopg.connect(connection_string(settings.postgres)) as connection:
        [[rows, ids]] = connection.execute("SELECT count(*), count(DISTINCT id) FROM transactions").fetchall()
    assert rows == ids >= 100


def inside_a_small_disk(size: str, directory: Path, script: str, env: dict[str, str]) -> str:
    """What a shell script says in a mount namespace of its own, with a file system of `size` at `directory`."""
    spaces = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*spaces, "true"], check=False).returncode != 0:
        pytest.skip("no user namespaces here")
    directory.mkdir()
    mounted = f'mount -t tmpfs -o size={size} tmpfs "$1" && cd "$1" && {script}'
    argv = [*spaces, mounted, "sh", str(directory), sys.executable]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False, env=env, cwd=Path.cwd())
    return done.stdout + done.stderr


def test_up_refuses_a_disk_without_room(tmp_path: Path) -> None:
    env = os.environ | {"ONCESIGN_DATA_DIR": str(tmp_path / "disk" / "d"), "PYTHONPATH": str(Path.cwd())}
    said = inside_a_small_disk("64m", tmp_path / "disk", '"$2" -m jobs.app up; echo "code $?"; ls d', env)
    assert "the disk at " in said
    assert "at least 1024 are needed. Free room, then run the same command again" in said
    assert "code 3\n" in said
    assert "stack.json" not in said


SURVIVES = """\
import os, signal, sys, time
from pathlib import Path
from pipeline.local.stack import Stack

stack = Stack(Path("d"))
first = stack.up(servers=("etcd",))
daemon = first.daemon
fill = Path("fill").open("wb", buffering=0)
try:
    while True:
        fill.write(bytes(65536))
except OSError:
    pass
os.kill(first.processes["etcd"].pid, signal.SIGKILL)
time.sleep(3)
print("daemon", stack.status().daemon_process() is not None)
Path("fill").unlink()
fill.close()
deadline = time.monotonic() + 40
while time.monotonic() < deadline and not stack.status().running():
    time.sleep(0.2)
print("etcd", sorted(stack.status().running()))
print("stopped", stack.down())
"""


def test_servers_come_back_by_themselves_once_a_full_disk_has_room(tmp_path: Path) -> None:
    (tmp_path / "survives.py").write_text(SURVIVES)
    env = os.environ | {"PYTHONPATH": str(Path.cwd())}
    said = inside_a_small_disk("256m", tmp_path / "disk", f'"$2" {tmp_path}/survives.py', env)
    assert "daemon True" in said, said
    assert "etcd ['etcd']" in said, said
    assert "stopped ['etcd']" in said, said

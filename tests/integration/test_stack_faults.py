"""The embedded servers when commands, daemons and servers die at the worst moment, when ports or disks are taken."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from pydantic import SecretStr

from pipeline.adapters.postgres import connection_string
from pipeline.errors import RuntimeFault, SettingError
from pipeline.local import stack as stack_module
from pipeline.local.kafka import BrokerPorts, KafkaBroker
from pipeline.local.record import StackRecord
from pipeline.local.stack import Stack
from pipeline.settings import PostgresSettings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

WAIT_S = 40.0
QUICK_S = 10.0

KILLED_BEFORE_IT_RECORDS_A_SERVER = """
import os, signal, sys
from pipeline.local import daemon
def save(self):
    if self._record.processes:
        os.kill(os.getpid(), signal.SIGKILL)
daemon.Daemon._save = save
daemon.main()
"""

KILLED_ONCE_THE_DAEMON_IS_STARTED = """
import os, signal, sys
from pathlib import Path
from pipeline.local.stack import Stack
Stack._await_ready = lambda self: os.kill(os.getpid(), signal.SIGKILL)
Stack(Path(sys.argv[1])).up(servers=("etcd",))
"""

UP = """
import sys
from pathlib import Path
from pipeline.local.stack import Stack
Stack(Path(sys.argv[1])).up(servers=sys.argv[2:])
"""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    made = Stack(tmp_path / "a data directory")
    yield made
    made.down()
    assert processes_of(made) == []


def processes_of(stack: Stack) -> list[psutil.Process]:
    """Found by the one thing that only its processes have on their command line: its path."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        said = " ".join(process.info["cmdline"] or [])
        if str(stack.data_dir) in said and process.pid != os.getpid():
            found.append(process)
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def run_to_its_death(code: str, stack: Stack) -> None:
    died = subprocess.run([sys.executable, "-c", code, str(stack.data_dir)], timeout=60, check=False)
    assert died.returncode == -signal.SIGKILL


def kill_daemon(known: StackRecord) -> None:
    daemon = known.daemon_process()
    assert daemon is not None
    daemon.kill()
    wait_for(lambda: known.daemon_process() is None)


def postgres_at(known: StackRecord) -> str:
    return connection_string(
        PostgresSettings(
            dsn=SecretStr(known.addresses["postgres.dsn"]),
            password_file=Path(known.addresses["postgres.password_file"]),
        )
    )


# ── the daemon ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_server_runs_that_a_killed_daemon_did_not_record(stack: Stack) -> None:
    stack.up(servers=("etcd",))
    stack.down()
    run_to_its_death(KILLED_BEFORE_IT_RECORDS_A_SERVER, stack)
    wait_for(lambda: processes_of(stack) == [])
    assert stack.up(servers=("etcd",)).running().keys() == {"etcd"}


def test_down_ends_a_daemon_that_has_only_just_been_started(stack: Stack) -> None:
    run_to_its_death(KILLED_ONCE_THE_DAEMON_IS_STARTED, stack)
    stack.down()
    assert processes_of(stack) == []


def test_up_waits_for_a_daemon_that_has_only_just_been_started(stack: Stack) -> None:
    run_to_its_death(KILLED_ONCE_THE_DAEMON_IS_STARTED, stack)
    ports = stack.status().ports
    known = stack.up(servers=("etcd",))
    assert known.ports == ports
    assert len([process for process in processes_of(stack) if "pipeline.local.daemon" in process.cmdline()]) == 1


def test_a_frozen_daemon_does_not_keep_down_from_ending_everything(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack_module, "STOP_TIMEOUT_S", 0.5)
    known = stack.up(servers=("etcd",))
    assert known.daemon is not None
    os.kill(known.daemon.pid, signal.SIGSTOP)
    assert stack.down() == ["etcd"]
    assert processes_of(stack) == []


def test_a_daemon_that_cannot_run_is_named_at_once(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    started_s = time.monotonic()
    with pytest.raises(RuntimeFault, match=r"daemon ended.*daemon\.log"):
        stack.up(servers=("etcd",))
    assert time.monotonic() - started_s < QUICK_S


# ── which servers ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_up_adds_what_is_asked_for_besides_and_down_ends_what_is_no_longer(stack: Stack) -> None:
    first = stack.up(servers=("etcd",))
    more = stack.up(servers=("etcd", "postgres"))
    assert more.processes["etcd"] == first.processes["etcd"]
    assert more.running().keys() == {"etcd", "postgres"}
    kill_daemon(more)
    fewer = stack.up(servers=("etcd",))
    assert fewer.processes == more.processes
    assert stack.down() == ["etcd", "postgres"]
    assert processes_of(stack) == []


def test_two_commands_at_once_start_one_stack(stack: Stack) -> None:
    commands = [stack, Stack(stack.data_dir)]
    found: list[StackRecord] = []
    threads = [
        threading.Thread(target=lambda each: found.append(each.up(servers=("etcd",))), args=[command])
        for command in commands
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0].processes == found[1].processes
    for command in commands:
        command.down()


# ── half-made, taken, full ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_database_half_made_by_a_killed_command_is_made_anew(stack: Stack) -> None:
    command = subprocess.Popen([sys.executable, "-c", UP, str(stack.data_dir), "postgres"], stderr=subprocess.DEVNULL)
    wait_for(lambda: any(stack.data_dir.glob("postgres*/PG_VERSION")))
    command.kill()
    command.wait()
    with psycopg.connect(postgres_at(stack.up(servers=("postgres",)))) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    stack.down()


def test_ports_are_kept_and_one_that_is_taken_is_replaced(stack: Stack) -> None:
    first = stack.up(servers=("postgres",))
    stack.down()
    assert stack.up(servers=("postgres",)).ports == first.ports
    stack.down()
    with socket.socket() as taker:
        taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taker.bind(("127.0.0.1", first.ports["postgres"]))
        taker.listen()
        moved = stack.up(servers=("postgres",))
        assert moved.ports["postgres"] != first.ports["postgres"]
        assert moved.ports["kafka"] == first.ports["kafka"]
        psycopg.connect(postgres_at(moved)).close()


def test_a_server_that_does_not_start_is_named_with_its_log(stack: Stack) -> None:
    member = stack.data_dir / "etcd" / "0" / "member"
    member.parent.mkdir(parents=True)
    member.write_text("not a folder")
    with pytest.raises(RuntimeFault, match=r"etcd does not start\. Its log .*etcd\.log ends with:\n.*member"):
        stack.up(servers=("etcd",))
    wait_for(lambda: processes_of(stack) == [])
    member.unlink()
    assert stack.up(servers=("etcd",)).ready


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*inside, "true"], check=False).returncode != 0:
        pytest.skip("no user namespaces here")
    disk = tmp_path / "disk"
    disk.mkdir()
    script = 'mount -t tmpfs -o size=8m tmpfs "$1" && shift && exec "$@"'
    argv = [*inside, script, "sh", str(disk), sys.executable, "-c", UP, str(disk / "data"), "etcd"]
    failed = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert "DiskFull" in failed.stderr
    assert processes_of(Stack(disk / "data")) == []


def test_a_folder_that_is_no_data_directory_is_left_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert Stack(tmp_path).down() == []
    assert list(tmp_path.iterdir()) == []
    assert tmp_path.stat().st_mode & 0o777 == 0o755


# ── servers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_down_does_not_wait_for_clients_of_postgres(stack: Stack) -> None:
    known = stack.up(servers=("postgres",))
    kill_daemon(known)
    started_s = time.monotonic()
    with psycopg.connect(postgres_at(known)):
        assert stack.down() == ["postgres"]
    assert time.monotonic() - started_s < QUICK_S


def test_a_killed_postgres_comes_back_with_what_was_committed(stack: Stack) -> None:
    known = stack.up(servers=("postgres",))
    with psycopg.connect(postgres_at(known)) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
    known.running()["postgres"].kill()

    def kept() -> bool:
        try:
            with psycopg.connect(postgres_at(known)) as connection:
                return connection.execute("SELECT number FROM kept").fetchone() == (7,)
        except psycopg.OperationalError:
            return False

    wait_for(kept)
    assert stack.status().processes["postgres"] != known.processes["postgres"]
    assert stack.status().restarts["postgres"] >= 1


def test_a_killed_kafka_comes_back_with_what_was_committed(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "données 数")
    try:
        known = stack.up(servers=("kafka",))
        bootstrap = known.addresses["kafka.bootstrap_servers"]
        admin = AdminClient({"bootstrap.servers": bootstrap})
        admin.create_topics([NewTopic("kept", 1, 1)])["kept"].result(30)
        producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": "one", "log_level": 0})
        producer.init_transactions(30)
        producer.begin_transaction()
        producer.produce("kept", b"seven", partition=0)
        producer.commit_transaction(30)
        known.running()["kafka"].kill()
        wait_for(lambda: stack.status().processes["kafka"] != known.processes["kafka"])
        assert stack.status().addresses == known.addresses
        assert read_committed(bootstrap) == [b"seven"]
    finally:
        stack.down()
    assert (stack.data_dir / "kafka" / "data" / "kept-0").is_dir()
    assert processes_of(stack) == []


def read_committed(bootstrap: str) -> list[bytes | None]:
    from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition  # noqa: PLC0415 - with its one user

    settings = {"bootstrap.servers": bootstrap, "group.id": "g", "isolation.level": "read_committed", "log_level": 0}
    consumer = Consumer(settings)
    consumer.assign([TopicPartition("kept", 0, OFFSET_BEGINNING)])
    found: list[bytes | None] = []
    deadline = time.monotonic() + WAIT_S
    while not found and time.monotonic() < deadline:
        message = consumer.poll(0.5)
        if message is not None and message.error() is None:
            found.append(message.value())
    consumer.close()
    return found


def test_a_path_that_kafka_takes_for_two_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="comma"):
        KafkaBroker(tmp_path / "a,b", 0, [BrokerPorts(1, 2)]).prepare()

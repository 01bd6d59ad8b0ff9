"""The embedded servers: up, adopted, started again, down, and never anybody else's process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from pipeline.local import record
from pipeline.local.record import ProcessRecord, StackRecord
from pipeline.local.stack import Stack, servers_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(150)]

SERVERS = ("etcd", "postgres")
WAIT_S = 30.0


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    made = Stack(tmp_path / "a data directory")
    yield made
    made.down()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def ended(process: psutil.Process) -> bool:
    """A zombie has ended; its parent, here the machine's first process, may take its time to notice."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_up_twice_changes_nothing_and_down_leaves_nothing(stack: Stack) -> None:
    first = stack.up(servers=SERVERS)
    again = stack.up(servers=SERVERS)
    assert again.processes == first.processes
    assert again.addresses == first.addresses
    running = list(first.running().values())
    assert len(running) == len(SERVERS)
    assert stack.down() == sorted(SERVERS)
    assert stack.down() == []
    assert all(ended(process) for process in running)


def test_a_killed_server_is_started_again_at_its_old_address(stack: Stack) -> None:
    first = stack.up(servers=("etcd",))
    os.kill(first.processes["etcd"].pid, signal.SIGKILL)
    wait_for(lambda: stack.status().processes["etcd"] != first.processes["etcd"] and "etcd" in stack.status().running())
    assert stack.status().addresses == first.addresses
    assert stack.status().restarts == {"etcd": 1}


def test_servers_outlive_their_daemon_and_get_a_new_one(stack: Stack) -> None:
    first = stack.up(servers=("etcd",))
    assert first.daemon is not None
    os.kill(first.daemon.pid, signal.SIGKILL)
    wait_for(lambda: stack.status().daemon_process() is None)
    assert stack.status().running().keys() == {"etcd"}
    again = stack.up(servers=("etcd",))
    assert again.processes == first.processes
    assert again.daemon != first.daemon


def test_down_ends_servers_whose_daemon_was_killed(stack: Stack) -> None:
    first = stack.up(servers=("etcd",))
    assert first.daemon is not None
    os.kill(first.daemon.pid, signal.SIGKILL)
    server = first.running()["etcd"]
    assert stack.down() == ["etcd"]
    assert ended(server)


def test_a_killed_up_leaves_nothing_in_the_way(stack: Stack) -> None:
    code = "import sys; from pathlib import Path; from pipeline.local.stack import Stack; "
    code += "Stack(Path(sys.argv[1])).up(servers=('etcd', 'postgres'))"
    command = subprocess.Popen([sys.executable, "-c", code, str(stack.data_dir)], stderr=subprocess.DEVNULL)
    wait_for(lambda: record.record_file(stack.data_dir).exists())
    command.kill()
    command.wait()
    assert stack.up(servers=SERVERS).ready
    assert stack.down() == sorted(SERVERS)


def test_a_pid_that_belongs_to_somebody_else_is_left_alone(stack: Stack) -> None:
    stack.up(servers=("etcd",))
    stack.down()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stranger:
        known = stack.status()
        known.processes = {"etcd": ProcessRecord(stranger.pid, 1.0)}
        known.daemon = ProcessRecord(stranger.pid, 1.0)
        known.save(stack.data_dir)
        assert stack.down() == []
        assert psutil.pid_exists(stranger.pid)
        stranger.kill()


def test_three_etcd_members_make_one_cluster(stack: Stack) -> None:
    known = stack.up(members=3, servers=("etcd",))
    assert sorted(known.running()) == ["etcd-0", "etcd-1", "etcd-2"]
    assert len(known.addresses["etcd.endpoints"].split(",")) == 3


def test_three_brokers_keep_three_copies_behind_the_ports_that_clients_are_told(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "data")
    stack.data_dir.mkdir()
    StackRecord(brokers=3).save(stack.data_dir)
    try:
        known = stack.up(servers=("kafka",))
        assert sorted(known.running()) == ["kafka-0", "kafka-1", "kafka-2"]
        admin = AdminClient({"bootstrap.servers": known.addresses["kafka.bootstrap_servers"]})
        wait_for(lambda: len(admin.list_topics(timeout=30).brokers) == 3)  # serving comes before being registered
        wait_for(lambda: is_created(admin, NewTopic("kept", 2, 3)))
        wait_for(lambda: replicas(admin, "kept") == [[1, 2, 3]] * 2)
    finally:
        stack.down()


def is_created(admin: AdminClient, topic: NewTopic) -> bool:
    """False when the client let go of the connection that it asked by, having learned which broker is behind it."""
    try:
        admin.create_topics([topic])[topic.topic].result(30)
    except KafkaException as error:
        if error.args[0].code() == KafkaError._DESTROY_BROKER:
            return False
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise
    return True


def replicas(admin: AdminClient, topic: str) -> list[list[int]]:
    found = admin.list_topics(topic, timeout=30).topics[topic].partitions.values()
    return [sorted(partition.replicas) for partition in found]


def test_clients_are_told_what_stands_in_front_of_a_server(tmp_path: Path) -> None:
    ports = {"etcd-0.client": 1, "etcd-0.peer": 2, "postgres": 3, "kafka": 4, "kafka.controller": 5}
    fronts = {"etcd-0.client": 11, "postgres": 13, "kafka": 14}
    known = StackRecord(servers=("etcd", "postgres", "kafka"), ports=ports, fronts=fronts)
    servers_of(tmp_path, known)
    assert known.addresses["etcd.endpoints"] == "http://127.0.0.1:11"
    assert ":13/" in known.addresses["postgres.dsn"]
    assert known.addresses["kafka.bootstrap_servers"] == "127.0.0.1:14"

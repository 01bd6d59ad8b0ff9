"""A process is known again by its pid and its start, and nobody else's process is taken for it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pipeline.errors import RuntimeFault
from pipeline.local import record
from pipeline.local.record import ProcessRecord, StackRecord


def test_a_process_that_runs_is_found() -> None:
    found = ProcessRecord.of(os.getpid()).process()
    assert found is not None
    assert found.pid == os.getpid()


def test_setting_the_clock_hides_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    if not record.BOOT_ID.exists():
        pytest.skip("only Linux counts from its boot")
    ours = ProcessRecord.of(os.getpid())
    before = psutil.Process().create_time()
    booted = psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: booted + 3600)
    assert psutil.Process().create_time() != before
    assert ours.process() is not None


def test_a_pid_used_again_is_not_ours() -> None:
    ours = ProcessRecord.of(os.getpid())
    assert replace(ours, started=ours.started - 0.01).process() is None
    assert ProcessRecord(os.getpid(), psutil.Process().create_time() - 0.01).process() is None


def test_the_same_pid_and_start_after_another_boot_is_not_ours() -> None:
    assert replace(ProcessRecord.of(os.getpid()), boot="another").process() is None


def test_a_process_that_ended_is_not_found_though_nobody_has_waited_for_it() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        ours = ProcessRecord.of(child.pid)
        assert ours.process() is not None
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert ours.process() is None
    assert ours.process() is None


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    written = StackRecord(
        members=3,
        servers=("etcd",),
        ports={"kafka": 1},
        daemon=ProcessRecord.of(os.getpid()),
        processes={"etcd-0": ProcessRecord.of(os.getppid())},
        restarts={"etcd-0": 2},
    )
    written.save(tmp_path)
    assert record.load(tmp_path) == written
    assert [path.name for path in tmp_path.iterdir()] == ["stack.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"daemon": null}', '{"daemon": {"pid": 1}}'])
def test_a_record_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    record.record_file(tmp_path).write_text(text)
    with pytest.raises(RuntimeFault, match=r"stack\.json cannot be read"):
        record.load(tmp_path)

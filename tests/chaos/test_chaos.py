"""A minute of `oncesign chaos` on real parts: three etcd members, three brokers, Postgres and Ray, behind links."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(1_100)]

FAULTS = [
    "kill key-manager",
    "kill etcd leader",
    "kill kafka",
    "freeze consumer",
    "hold answers of etcd",
    "cut postgres",
]
COMMAND_TIMEOUT_S = 500
"""With etcd built first, beside other builds."""


def test_a_minute_of_chaos_leaves_every_row_signed_once(tmp_path: Path) -> None:
    only = [argument for fault in FAULTS for argument in ("--only", fault)]
    sizes = ["--minutes", "1", "--faults", str(len(FAULTS)), "--seed", "11", "--rate", "60"]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.app", "chaos", *sizes, *only, "--json"],
        env=os.environ | {"ONCESIGN_DATA_DIR": str(tmp_path / "data")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said, told = process.communicate(timeout=COMMAND_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.terminate()  # it takes its servers with it
        said, told = process.communicate(timeout=COMMAND_TIMEOUT_S)
    assert process.returncode == 0, told[-3000:]
    report = json.loads(said)
    assert report["violations"] == []
    assert report["failed"] == []
    assert report["faults"] >= len(FAULTS) - 1  # of a busy machine: the last one may no longer fit
    assert report["overall"]["unrecovered"] == 0
    assert report["signed"] + report["rejected"] == report["rows"]
    assert report["rejected"] > 0
    for part in ("etcd", "kafka", "postgres"):  # nobody goes round the links
        assert sum(carried for link, carried in report["carried_bytes"].items() if link.startswith(part)) > 0
    assert not (tmp_path / "data" / "chaos").exists()
    assert processes_of(tmp_path) == []


def processes_of(folder: Path) -> list[psutil.Process]:
    """Found by the one thing that only its processes have on their command line: its path."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if str(folder) in " ".join(process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE
    ]

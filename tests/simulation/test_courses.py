"""Courses of events drawn from seeds, and every crash point: the real stages hold what they promise."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from pipeline.assignment import rules
from pipeline.ports import ReaderPosition
from pipeline.stages import reader
from pipeline.stream import Stream
from pipeline.testing.simulation.course import Verdict
from pipeline.testing.simulation.harsher import run
from pipeline.testing.simulation.memory import remembered
from pipeline.testing.simulation.story import Event

SEEDS = 2_000
TIMEOUT_S = 600
"""At the lowest priority, beside tests that start servers."""

FAULTS = {
    "clock jump", "disaster", "double", "kill", "lost lease", "markers held", "markers torn", "message too large",
    "outage", "position forgotten", "rebalance", "request cut", "request dies after", "request dies before",
    "request lost", "request refused", "request slow back", "request slow there", "second key manager", "standstill",
}  # fmt: skip


def simulate(*options: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "jobs.app", "simulate", *options]
    return subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def summary(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.timeout(TIMEOUT_S)
def test_two_thousand_courses_break_nothing() -> None:
    found = summary(simulate("--seeds", str(SEEDS), "--workers", "2", "--json"))
    assert (found["courses"], found["broken"]) == (SEEDS, 0)
    assert found["faults"].keys() == FAULTS
    assert found["rows"] > 4 * SEEDS


@pytest.mark.timeout(TIMEOUT_S)
def test_every_crash_point_breaks_nothing() -> None:
    found = summary(simulate("--crash-points", "each", "--json"))
    assert found["broken"] == 0
    assert found["courses"] > 240
    # Some requests are made only once or twice; each boundary is met at least at its first.
    assert found["without_their_crash_point"] < found["courses"] // 3


@pytest.mark.parametrize("seed", [17, 555, 4127])
def test_a_seed_is_the_same_course_every_time(seed: int) -> None:
    first = run(seed, told=True)
    with remembered():
        others = [run(other) for other in range(seed, seed + 5)]
        again = run(seed, told=True)
    assert again.events == first.events
    assert len({other.virtual_s for other in others}) > 1


def test_a_story_is_told_for_a_person() -> None:
    done = simulate("--seed", "17")
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert len(told) > 20
    assert all(len(line.split(maxsplit=2)) == 3 for line in told)
    assert any("reader-0.1" in line and "kafka EndTxn: done" in line for line in told)
    events = [json.loads(line) for line in simulate("--seed", "17", "--json").stdout.splitlines()]
    assert [str(Event(**event)) for event in events] == told


def broken_by(seeds: range) -> Verdict:
    with remembered():
        return next(verdict for verdict in map(run, seeds) if verdict.breaches)


def test_a_planted_fault_in_the_rules_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are freed with their nonces set back, as if a release undid what was lent."""
    freed = rules._freed

    def set_back(key: Any, now_ms: int) -> Any:
        after = freed(key, now_ms)
        return replace(after, next_nonce=max(0, after.next_nonce - 1))

    monkeypatch.setattr(rules, "_freed", set_back)
    assert any(breach[:2] in ("I1", "I7", "I9") for breach in broken_by(range(50)).breaches)


def test_a_planted_loss_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that steps over the first row of what it reads, when there are several."""
    whole = reader.batches_of

    def skipping(stream: Stream, chain_id: int, position: ReaderPosition, table: pa.Table, settings: Any) -> Any:
        return whole(stream, chain_id, position, table.slice(min(1, max(0, table.num_rows - 1))), settings)

    monkeypatch.setattr(reader, "batches_of", skipping)
    assert any(breach.startswith("I9: not settled") for breach in broken_by(range(20)).breaches)

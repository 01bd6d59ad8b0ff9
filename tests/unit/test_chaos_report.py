"""The report of a run of chaos: recovery times by kind, and a violation is never left out of it."""

from __future__ import annotations

import signal
from pathlib import Path

import orjson
import pytest

from jobs.chaos import disks
from jobs.chaos import run as run_module
from pipeline.testing.chaos.report import VIOLATION_CHARS_MAX, VIOLATIONS_SHOWN_MAX, Ended, Report
from tests.command_line import in_process

FAULTS = [
    Ended("kill signer", 1.0),
    Ended("kill signer", 9.0, disturbed=True),
    Ended("kill signer", 2.0),
    Ended("cut kafka", None, disturbed=True),
]


def test_recovery_times_are_given_by_kind_and_over_all() -> None:
    report = Report(seed=3, minutes=1, faults=FAULTS).to_json()
    assert report["faults"] == 4
    assert report["by_kind"]["kill signer"] == {
        "count": 3,
        "recovery_median_s": 2.0,
        "recovery_worst_s": 9.0,
        "unrecovered": 0,
        "undisturbed": 2,
        "undisturbed_worst_s": 2.0,
    }
    assert report["by_kind"]["cut kafka"]["unrecovered"] == 1
    assert report["by_kind"]["cut kafka"]["recovery_median_s"] is None
    assert report["overall"]["count"] == 4


def test_the_table_has_a_line_for_each_kind_and_one_for_all() -> None:
    rows = Report(seed=3, minutes=1, faults=FAULTS).rows()
    assert [row["fault"] for row in rows] == ["cut kafka", "kill signer", "all"]
    assert rows[1]["times"] == 3
    assert rows[2]["worst_s"] == 9.0


def test_every_violation_counts_and_long_ones_are_shortened() -> None:
    report = Report(seed=1, minutes=1, violations=["x" * 5_000] * 99)
    assert not report.ok
    assert report.to_json()["violations_total"] == 99
    assert len(report.to_json()["violations"]) == VIOLATIONS_SHOWN_MAX
    assert len(report.to_json()["violations"][0]) < VIOLATION_CHARS_MAX + 10


@pytest.mark.parametrize(
    ("faults", "violations", "code"), [(FAULTS, [], 0), (FAULTS, ["I2: row 7 was signed twice"], 4), ([], [], 1)]
)
def test_the_command_ends_with_4_on_a_violation_and_never_with_0_after_nothing(
    faults: list[Ended],
    violations: list[str],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    report = Report(seed=5, minutes=1, faults=faults, violations=violations)
    monkeypatch.setattr(run_module, "run", lambda _settings, _wish: report)
    monkeypatch.setattr(disks, "enter_namespace", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    ended = in_process(monkeypatch, capfd, tmp_path)("chaos", "--seed", "5", "--json")
    assert ended.code == code
    assert orjson.loads(ended.out)["violations"] == violations
    for violation in violations:
        assert violation in ended.err

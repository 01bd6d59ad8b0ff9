"""`oncesign top`: rates out of counts, a page out of a report, and an error where nothing can be watched."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs.submission import Place
from jobs.top import RATE_S, STAGES, Rates, page, reports
from pipeline.settings import Settings
from tests.command_line import in_process

REPORT: dict[str, Any] = {
    "stages": {"read": 5_000, "signed": 4_000, "published": 3_990, "verified": 3_000},
    "signed": 3_900, "rejected": 90, "verified": 3_000, "violations": 0, "total": 6_000, "done_before": 10,
    "batches_in_flight": 3, "waiting_for_key": 2, "queue": 1, "queue_oldest_s": 0.25,
    "rounds": 40, "rounds_aborted": 1, "keys": {"free": 14, "locked": 2}, "no_keys": [], "halted": {}, "restarts": 3,
    "pids": {"supervisor": 1, "signer-0": 2},
}  # fmt: skip
PER_SECOND = {"read": 100, "signed": 1_234, "published": 5, "verified": 0}


def text(**changes: Any) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(page(REPORT | changes, PER_SECOND))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def counts(number: int) -> dict[str, int]:
    return dict.fromkeys(STAGES, number)


def test_rates_are_taken_over_the_last_seconds() -> None:
    rates = Rates()
    assert rates.add(0.0, counts(500)) == counts(0)
    assert rates.add(2.0, counts(700)) == counts(100)
    assert rates.add(4.0, counts(700)) == counts(50)
    assert rates.add(4.0 + RATE_S, counts(1_700)) == counts(100)


def test_an_actor_that_counts_from_nought_again_is_no_rate_below_nought() -> None:
    rates = Rates()
    rates.add(0.0, counts(500))
    assert rates.add(1.0, counts(20)) == counts(0)


def test_a_page_has_rates_by_stage_and_what_waits() -> None:
    shown = text()
    assert ["signed", "signers", "1,234", "4,000"] in [line.split() for line in shown.splitlines()]
    assert "rows left" in shown
    assert "2,000" in shown
    assert "14 free, 2 locked" in shown
    assert "40, aborted 1" in shown
    assert "VIOLATIONS" not in shown


def test_what_needs_an_operator_is_said() -> None:
    shown = text(halted={"payouts/3": "another digest"}, no_keys=[5], violations=2)
    assert "stream payouts/3 is halted: another digest" in shown
    assert "no key for chain 5" in shown
    assert "2 VIOLATIONS; run: oncesign verify" in shown


class Client:
    """A job's log, whose pieces come slowly."""

    def __init__(self, before: list[str], after: list[str]) -> None:
        self._before, self._after = before, after

    def get_job_logs(self, _job: str) -> str:
        return "".join(self._before)

    async def tail_job_logs(self, _job: str) -> AsyncIterator[str]:
        for piece in self._before + self._after:
            await asyncio.sleep(0.4)
            yield piece


async def test_what_a_job_has_said_before_is_not_shown_as_now(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f'{{"progress": {{"rounds": {number}}}}}\n' for number in range(5)]
    client = Client([lines[0], lines[1] + lines[2][:9], lines[2][9:]], [lines[3], lines[4]])
    monkeypatch.setattr("jobs.top._own", lambda _: Place("here", "", "", {}))
    monkeypatch.setattr("jobs.submission.client_of", lambda _: client)
    monkeypatch.setattr("jobs.top._job", lambda *_: "job")
    assert [report["rounds"] async for report in reports(Settings(), "")] == [2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "error: no Ray cluster runs in"),
        (["--address", "http://127.0.0.1:1"], 3, "error: Ray at http://127.0.0.1:1:"),
    ],
)
def test_nothing_to_watch_is_one_line(
    arguments: list[str],
    code: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    ended = in_process(monkeypatch, capfd, tmp_path)("top", *arguments)
    assert ended.code == code
    assert ended.err.startswith(says)
    assert len(ended.err.splitlines()) == 1

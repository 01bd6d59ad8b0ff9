"""A submitted job is watched to its end: each line once, and no log read again and again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from ray.job_submission import JobStatus

from jobs import submission
from jobs.submission import Place, Watch
from pipeline.settings import Settings

LINES = [
    '{"progress": {"rounds": 1}}\n',
    "a warning\n",
    '{"progress": {"rounds": 2}}\n',
    '{"signed": 5, "exit_code": 0}\n',
]


class Job:
    """A driver that says one line after the other; its log comes in pieces of nine characters."""

    def __init__(self, lines: list[str], tailed: int) -> None:
        """`tailed` characters come as pieces before the job ends; the rest can only be read from the whole log."""
        self.log, self.tailed = "".join(lines), tailed
        self.status = JobStatus.RUNNING
        self.read = 0
        self.interrupted = False
        self.stopped = 0

    def submit_job(self, **_: Any) -> str:
        return "job"

    def stop_job(self, _job: str) -> None:
        self.stopped += 1
        self.tailed = len(self.log)

    def get_job_status(self, _job: str) -> JobStatus:
        return self.status

    def get_job_logs(self, _job: str) -> str:
        self.read += 1
        return self.log

    async def tail_job_logs(self, _job: str) -> AsyncIterator[str]:
        for at in range(0, self.tailed, 9):
            await asyncio.sleep(0)
            yield self.log[at : min(at + 9, self.tailed)]
        if self.interrupted:
            self.interrupted = False
            raise KeyboardInterrupt
        self.status = JobStatus.SUCCEEDED
        await asyncio.sleep(60)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "LOOK_S", 0.01)


def watched(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[Watch, list[int], str]:
    """What was seen of it: the watch, the rounds of its progress, and what came on stderr."""
    seen: list[int] = []
    watch = Watch(lambda fields: seen.append(fields["rounds"]))
    monkeypatch.setattr(submission, "client_of", lambda _: job)
    submission._run(Place("here", "", "python", {}), "", Settings(), watch)
    return watch, seen, capsys.readouterr().err


@pytest.mark.parametrize("tailed", [0, 9, 40, 41, 1000])
def test_every_line_comes_once_and_the_whole_log_is_read_once(
    tailed: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job(LINES, min(tailed, len("".join(LINES))))
    watch, seen, said = watched(job, monkeypatch, capsys)
    assert seen == [1, 2]
    assert said == "a warning\n"
    assert watch.summary == {"signed": 5, "exit_code": 0}
    assert job.read == 1


def test_ctrl_c_stops_the_job_and_nothing_is_said_twice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job(LINES, 50)
    job.interrupted = True
    watch, seen, said = watched(job, monkeypatch, capsys)
    assert job.stopped == 1
    assert seen == [1, 2]
    assert said.count("a warning") == 1
    assert "draining" in said
    assert watch.summary["signed"] == 5


def test_a_job_whose_log_is_lost_is_not_taken_for_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Cut(Job):
        async def tail_job_logs(self, _job: str) -> AsyncIterator[str]:
            yield self.log[:9]
            raise RuntimeError("WebSocket connection closed unexpectedly")

    with pytest.raises(submission.LOST, match="closed"):
        watched(Cut(LINES, 0), monkeypatch, capsys)

"""Commands that take minutes and need nothing but a processor: begun before the first test, at the lowest priority."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import pytest

TIMEOUT_S: Final = 280
LOWEST: Final = ("nice", "-n", "19")
MODULE: Final = (sys.executable, "-m")
EARLY: Final = {
    "test_no_guard_is_missed_by_nobody": ("tests.simulation.mutants", "--seeds", "200", "--workers", "2", "--json"),
    "test_two_thousand_courses_break_nothing": ("jobs.app", "simulate", "--seeds", "2000", "--workers", "2", "--json"),
    "test_every_crash_point_breaks_nothing": ("jobs.app", "simulate", "--crash-points", "each", "--json"),
}
"""The test that asks for a command's output → its module and arguments."""


class Early:
    """Runs commands one after the other in the background."""

    def __init__(self, commands: Sequence[tuple[str, ...]]) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._running: list[subprocess.Popen[str]] = []
        self._answers = {command: self._thread.submit(self._run, command) for command in commands}

    def answer(self, name: str) -> subprocess.CompletedProcess[str]:
        """What the command of a test printed; waits for its end."""
        future: Future[subprocess.CompletedProcess[str]] = self._answers[EARLY[name]]
        return future.result(TIMEOUT_S)

    def end(self) -> None:
        """Nothing goes on after the session."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        for process in self._running:
            process.terminate()

    def _run(self, command: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        with subprocess.Popen(
            [*LOWEST, *MODULE, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            self._running.append(process)
            stdout, stderr = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


BEGUN: Final = pytest.StashKey[Early]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin what the collected tests will ask for."""
    asked = {getattr(item, "originalname", "") for item in session.items}
    if not session.config.option.collectonly:
        session.config.stash[BEGUN] = Early([command for name, command in EARLY.items() if name in asked])


def pytest_unconfigure(config: pytest.Config) -> None:
    """End what is not over, after a test session that was broken off."""
    if BEGUN in config.stash:
        config.stash[BEGUN].end()


@pytest.fixture(scope="session")
def early(request: pytest.FixtureRequest) -> Early:
    return request.config.stash[BEGUN]

"""Commands that take minutes and need nothing but a processor: begun before the first test, at the lowest priority."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

TIMEOUT_S: Final = 280
LOWEST: Final = ("nice", "-n", "19")
MODULE: Final = (sys.executable, "-m")
HUNTED: Final = (
    "horizon of xid8",
    "rebuild after a slow commit",
    "a lock past its lease",
    "a lock past its lease, and a ledger",
    "watermark",
    "a restored etcd, and a ledger",
)
"""The mutants that are a known fault, and what prevents one."""

EARLY: Final = {
    "::test_no_guard_is_missed_by_nobody": ("tests.simulation.mutants", "--seeds=200", "--workers=2", "--json"),
    "::test_two_thousand_courses_break_nothing": ("jobs.app", "simulate", "--seeds=2000", "--workers=2", "--json"),
    "::test_every_crash_point_breaks_nothing": ("jobs.app", "simulate", "--crash-points=each", "--json"),
    "tests/simulation/test_rediscovery.py": (
        "tests.simulation.mutants",
        *("--seeds=200", "--workers=2", "--json"),
        *(f"--only={name}" for name in HUNTED),
    ),
    "tests/manifests/": ("tests.manifests.build",),
}
"""Part of the ids of tests that ask for a command's output → its module and arguments."""


class Early:
    """Runs commands one after the other in the background."""

    def __init__(self, commands: Sequence[tuple[str, ...]]) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._running: list[subprocess.Popen[str]] = []
        self._answers = {command: self._thread.submit(self._run, command) for command in commands}

    def answer(self, part: str) -> subprocess.CompletedProcess[str]:
        """What a command of EARLY printed; waits for its end."""
        future: Future[subprocess.CompletedProcess[str]] = self._answers[EARLY[part]]
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


def begun(ids: Iterable[str]) -> Early:
    """What these tests will ask for."""
    asked = list(ids)
    return Early([command for part, command in EARLY.items() if any(part in one for one in asked)])

"""`python -m tests.simulation.mutants` as a process, for tests that look at what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def mutants(*options: str, timeout_s: float = 100) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "tests.simulation.mutants", *options]
    return subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False)


def fates_of(done: subprocess.CompletedProcess[str], hunted: int) -> dict[str, dict[str, Any]]:
    """By the name of the mutant."""
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == hunted, done.stderr[-3000:]
    return {fate["name"]: fate for fate in found}

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba.core.caching import CacheImpl

from pipeline.ethereum import compiled as module
from pipeline.ethereum.compiled import compiled

LEAF = """
from compiled import compiled

@compiled
def leaf(number):
    return number + {step}
"""
ROOT = """
from compiled import compiled
from leaf import leaf

@compiled
def root(number):
    return leaf(number)

print(root(40), sum(root.stats.cache_hits.values()))
"""


def run(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "root.py"], cwd=folder, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


def test_a_loop_is_kept_until_any_source_changes(tmp_path: Path) -> None:
    shutil.copy(module.__file__, tmp_path / "compiled.py")
    (tmp_path / "leaf.py").write_text(LEAF.format(step=1))
    (tmp_path / "root.py").write_text(ROOT)
    assert run(tmp_path) == "41 0"
    assert run(tmp_path) == "41 1"
    (tmp_path / "leaf.py").write_text(LEAF.format(step=2))
    assert run(tmp_path) == "42 0"


def test_a_loop_runs_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])

    @compiled
    def double(numbers: np.ndarray) -> np.ndarray:
        return numbers * 2

    assert double(np.arange(3)).tolist() == [0, 2, 4]

"""The README's commands, run one after the other as a newcomer would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(400)]


def blocks(page: Path) -> list[str]:
    """The commands of a page's sh blocks."""
    found = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in found for line in block.splitlines() if line.strip()]


def test_every_command_of_the_readme_works(tmp_path: Path) -> None:
    env = os.environ | {"ONCESIGN_DATA_DIR": str(tmp_path / "a data directory"), "COLUMNS": "160"}
    commands = [line for line in blocks(ROOT / "README.md") if line.startswith("oncesign ")]
    assert len(commands) > 10
    try:
        for line in commands:
            argv = [sys.executable, "-m", "jobs.app", *line.split()[1:]]
            done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=200, check=False, cwd=tmp_path)
            assert done.returncode == 0, (line, done.stdout[-500:], done.stderr[-2000:])
            if line == "oncesign verify":
                assert re.search(r"violations\s+0\n", done.stdout), done.stdout
            if line.startswith("oncesign tail"):
                assert len(done.stdout.splitlines()) == 3
            if line.startswith("oncesign tx"):
                assert "outcome" in done.stdout
    finally:
        subprocess.run(
            [sys.executable, "-m", "jobs.app", "down"], env=env, capture_output=True, check=False, timeout=100
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a data directory", "payouts.parquet"]


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_other_commands_are_make_targets(page: Path) -> None:
    others = [line for line in blocks(page) if not line.startswith("oncesign ")]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in others:
        program, target = line.split()[:2]
        assert program == "make"
        assert f"\n{target}:" in makefile

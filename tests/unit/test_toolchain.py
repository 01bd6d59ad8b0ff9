"""What is built with Go once and kept, when two commands need it at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import RuntimeFault
from pipeline.local import toolchain

COMPILER = """#!/bin/sh
echo build >> {log}
sleep 0.5
{last}
"""
MAKES_IT = 'touch "$5"'


def pretend(monkeypatch: pytest.MonkeyPatch, folder: Path, last: str) -> Path:
    """A compiler in place of Go's, and where it says that it was called."""
    log, compiler = folder / "log", folder / "go"
    compiler.write_text(COMPILER.format(log=log, last=last))
    compiler.chmod(0o700)
    monkeypatch.setenv("ONCESIGN_CACHE_DIR", str(folder / "cache"))
    monkeypatch.setattr(toolchain, "go", lambda: str(compiler))
    return log


def build(_: int) -> Path:
    return toolchain.program("thing", {"main.go": b"package main"}, "building it")


def test_two_that_need_a_program_build_it_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = pretend(monkeypatch, tmp_path, MAKES_IT)
    with ThreadPoolExecutor(2) as both:
        first, second = both.map(build, range(2))
    assert first == second
    assert first.exists()
    assert log.read_text().splitlines() == ["build"]
    build(0)
    assert log.read_text().splitlines() == ["build"]


def test_a_build_that_fails_leaves_nothing_and_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = pretend(monkeypatch, tmp_path, "echo no such module >&2; exit 1")
    for _ in range(2):
        with pytest.raises(RuntimeFault, match="no such module"):
            build(0)
    assert len(log.read_text().splitlines()) == 2
    assert [path.suffix for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [".lock"]

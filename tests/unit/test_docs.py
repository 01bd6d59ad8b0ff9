"""What README and docs say of commands, settings and codes is all there, and there is nothing else."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.commands import app
from jobs.loading import variable_names
from pipeline.ethereum.reasons import Reason
from pipeline.export.columns import COLUMNS
from pipeline.export.events import REJECTED, SIGNED
from pipeline.stages.violation import ViolationKind
from tests.kube.page import APPLY, FILL, REACH, REMOVE, SIGN, step

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FORMATS = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
PAGES = [README, *(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md")))]
COMMANDS = (
    "demo", "up", "down", "status", "doctor", "migrate", "stock", "sign", "verify", "tx", "assignments", "recover",
    "export", "tail", "config", "keys", "bench", "simulate", "chaos", "broadcast", "top",
    "authorize",
)  # fmt: skip


@cache
def help_of(*command: str) -> str:
    said = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert said.exit_code == 0, said.output
    return said.stdout


def test_help_names_every_command_and_the_readme_describes_it() -> None:
    text = help_of()
    for command in COMMANDS:
        assert re.search(rf"│ {command} ", text), command
        assert f"`{command}" in README or f"`{command} " in README, command


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str) -> None:
    assert len(help_of(command)) > 150


def test_every_reason_code_is_documented() -> None:
    codes = {reason.code for reason in Reason if reason is not Reason.SIGNABLE}
    for code in codes:
        assert f"`{code}`" in README, code
        assert f"| `{code}` |" in FORMATS, code


def test_every_violation_is_documented() -> None:
    for kind in ViolationKind:
        assert f"`{kind.value}`" in FORMATS, kind


def test_every_exported_column_is_documented() -> None:
    section = FORMATS.split("## Exported rows")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == COLUMNS.names


def test_every_event_is_documented() -> None:
    for kind in (SIGNED, REJECTED):
        assert f"`{kind}`" in FORMATS, kind


def test_only_real_settings_are_named() -> None:
    known = set(variable_names()) | {"ONCESIGN_CACHE_DIR"}
    for page in PAGES:
        for name in re.findall(r"ONCESIGN_[A-Z_]+[A-Z]", page):
            assert name in known, name


def test_each_step_on_kubernetes_has_commands() -> None:
    steps = [step(number) for number in (APPLY, REACH, FILL, SIGN, REMOVE)]
    assert [commands.split()[0] for commands in steps] == ["kubectl", "kubectl", "ray", "ray", "kubectl"]


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((docs/[a-z]+\.md)\)", README):
        assert (ROOT / target).exists(), target


def test_every_option_that_a_page_names_is_one_of_its_command() -> None:
    named: set[tuple[str, str]] = set()
    for page in PAGES:
        for command, options in re.findall(r"`oncesign ((?:[a-z]+ ){1,2})(--[^`]*)`", page):
            named |= {(command, option) for option in re.findall(r"--[a-z-]+", options)}
    assert len(named) > 8
    for command, option in sorted(named):
        assert option in help_of(*command.split()), (command, option)

"""Each guard that is taken out of the real code is missed by the simulation; what is no mutant is told apart."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from pipeline.testing.simulation import crashes, harsher
from pipeline.testing.simulation.memory import remembered
from tests.simulation.guards import MUTANTS, NOT_ALONE, REDISCOVERED
from tests.simulation.hunt import fates_of, mutants
from tests.simulation.mutation import Edit, Mutant, Stale, apply

FEWEST = 30
COURSES = 30
TIMEOUT_S = 600
"""At the lowest priority, beside tests that start servers."""

STARTUP = "pipeline.assignment.startup"
SWEEPER = "pipeline.stages.sweeper"

HARNESS = """
import sys, orjson
from dataclasses import asdict
from tests.simulation.mutants import fates
from tests.simulation.mutation import Edit, Mutant
mutant = Mutant("a", "", (Edit({module!r}, {old!r}, {new!r}),))
sys.stdout.write(orjson.dumps([asdict(fate) for fate in fates([mutant], range({few}), points_max={few})]).decode())
"""
FEW = 10
"""Seeds, and crash points."""


@pytest.fixture(scope="module")
def fates() -> dict[str, dict[str, Any]]:
    done = mutants("--seeds", "200", "--workers", "2", "--json", timeout_s=TIMEOUT_S)
    found = fates_of(done, len(MUTANTS))
    assert done.returncode == (0 if all(fate["killed"] for fate in found.values()) else 4)
    return found


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_no_guard_is_missed_by_nobody(mutant: Mutant, fates: dict[str, dict[str, Any]]) -> None:
    fate = fates[mutant.name]
    sys.stderr.write(f"{fate['by']}: {fate['breach']}\n")
    assert not fate["wrong"]
    assert fate["killed"], f"it survives {fate['courses']} courses"
    assert fate["breach"].startswith(mutant.breaks or "I")
    assert mutant.calm or fate["by"] != "calm"


DEEDS = sorted({mutant.deed for mutant in (*MUTANTS, *REDISCOVERED)})
PLANS = [plan for mutant in MUTANTS for plan in mutant.plans]


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed or "any")
def test_the_code_as_it_is_outlives_the_same(deed: str) -> None:
    with remembered():
        broken = {seed: verdict.breaches for seed in range(COURSES) if (verdict := harsher.run(seed, deed)).breaches}
    assert not broken


def test_the_code_as_it_is_outlives_the_same_crash_points() -> None:
    with remembered(), harsher.late():
        plans = [*crashes.singles(crashes.boundaries())]
        broken = {str(plan): verdict.breaches for plan in plans if (verdict := harsher.run_points(plan)).breaches}
        broken |= {str(plan): found for plan in PLANS if (found := harsher.run_points(plan, alone=True).breaches)}
    assert not broken
    assert len(plans) > COURSES


def test_the_table_is_whole() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(names) == len(set(names)) >= FEWEST
    assert not NOT_ALONE.keys() & set(names)


def test_what_a_twin_plays_is_tested_against_the_real_server() -> None:
    for mutant in MUTANTS:
        if mutant.real:
            path, name = mutant.real.split("::")
            with open(path, encoding="utf-8") as file:  # noqa: PTH123 - from the root, as pytest names it
                assert f"def {name}(" in file.read()


def hunted(old: str, new: str, module: str = STARTUP) -> dict[str, Any]:
    script = HARNESS.format(module=module, old=old, new=new, few=FEW)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    [fate] = json.loads(done.stdout)
    assert isinstance(fate, dict)
    return fate


def test_a_mutant_that_changes_nothing_survives() -> None:
    fate = hunted("    if problems:\n", "    if len(problems) > 0:\n")
    assert (fate["killed"], fate["wrong"], fate["breach"]) == (False, "", "")
    assert fate["courses"] == 2 * FEW


def test_a_mutant_that_is_no_program_is_not_called_killed() -> None:
    fate = hunted("        if not aged:\n", "        if not ages:\n", SWEEPER)
    assert not fate["killed"]
    assert "NameError" in fate["wrong"]


def test_a_mutant_that_is_dead_at_once_is_not_called_killed() -> None:
    nonce = "next_nonce=key.next_nonce"
    fate = hunted(f"{nonce} + request.count,", f"{nonce} + request.count + 1,", "pipeline.assignment.rules")
    assert not fate["killed"]
    assert "calm course" in fate["wrong"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    if no_such_thing:\n", "    if False:\n"),
        ("import", "from"),
        ("    if problems:\n", "    if problems:  # the same\n"),
        ("    if problems:\n", "    if problems\n"),
        ("REPAIR = ", "REPAIRED = "),
    ],
    ids=["gone", "often", "no change", "no syntax", "outside of functions"],
)
def test_a_stale_mutant_is_refused(old: str, new: str) -> None:
    with pytest.raises(Stale):
        apply(Mutant("stale", "", (Edit(STARTUP, old, new),)))


def test_the_command_line_tells_a_person() -> None:
    done = mutants("--seeds", "3", "--only", "next nonce")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("next nonce")
    assert "1 mutants, 0 survived" in done.stderr

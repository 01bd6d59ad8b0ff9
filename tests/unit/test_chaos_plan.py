"""The plan of a run of chaos is a function of its seed, bounded, and leaves no kind of fault out."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from jobs.chaos.command import chosen
from pipeline.errors import UsageError
from pipeline.testing.chaos.fault import BACKUP, EVERYDAY, HEAD, RARE, TOPIC, Action, Kind
from pipeline.testing.chaos.plan import HOLD_S_MAX, HOLD_S_MIN, RARE_EVERY, plan

MINUTES = 30
FAULTS = 210


def test_the_same_seed_gives_the_same_faults_and_another_one_others() -> None:
    assert plan(7, FAULTS, MINUTES * 60) == plan(7, FAULTS, MINUTES * 60)
    assert plan(7, FAULTS, MINUTES * 60) != plan(8, FAULTS, MINUTES * 60)


@pytest.mark.parametrize("seed", range(20))
def test_half_an_hour_has_every_kind_of_fault_about_as_often(seed: int) -> None:
    faults = plan(seed, FAULTS, MINUTES * 60)
    times = Counter(fault.kind for fault in faults)
    assert len(faults) == FAULTS
    assert set(times) == {*EVERYDAY, *RARE}
    for kinds in (EVERYDAY, RARE):
        each = [times[kind] for kind in kinds]
        assert max(each) - min(each) <= 1


def test_faults_are_spread_and_bounded() -> None:
    faults = plan(1, FAULTS, MINUTES * 60)
    assert [fault.number for fault in faults] == list(range(1, FAULTS + 1))
    starts = [fault.start_s for fault in faults]
    assert starts == sorted(starts)
    assert starts[0] == 0
    assert starts[-1] < MINUTES * 60
    assert all(HOLD_S_MIN <= fault.hold_s <= HOLD_S_MAX for fault in faults)
    assert min(fault.hold_s for fault in faults) < 0.5
    assert max(fault.hold_s for fault in faults) > 15


def test_long_faults_are_far_apart() -> None:
    rare = [fault.number for fault in plan(3, FAULTS, 60) if fault.kind in RARE]
    assert all(later - earlier == RARE_EVERY for earlier, later in pairwise(rare))


def test_a_plan_of_some_kinds_has_these_only() -> None:
    kinds = chosen(["kill signer", "restore"])
    assert kinds == [Kind(Action.KILL, "signer"), BACKUP]
    assert {fault.kind for fault in plan(1, 50, 60, kinds)} == set(kinds)
    assert {fault.kind for fault in plan(1, 5, 60, [HEAD, TOPIC])} == {HEAD, TOPIC}
    with pytest.raises(UsageError, match="freeze kafka"):
        chosen(["no such fault"])
    with pytest.raises(ValueError, match="kind of fault"):
        plan(1, 1, 60, [])


def test_names_are_unique() -> None:
    names = [str(kind) for kind in (*EVERYDAY, *RARE)]
    assert len(set(names)) == len(names)

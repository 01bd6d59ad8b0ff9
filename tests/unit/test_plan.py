"""What the answer to a transaction says about the plan behind it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.assignment.rules import Assigning
from pipeline.errors import DeploymentHalted, NotLeader
from pipeline.ports import KeyValue
from tests.unit.assignment_records import (
    FENCE,
    GUARD,
    NOW_MS,
    PATHS,
    A,
    key,
    request,
    view,
)


def test_a_plan_knows_itself_when_it_was_written_before() -> None:
    held = view(key(1), key(2))
    first = Assigning(held, GUARD, NOW_MS, {})
    first.replies([request(A, 1)])
    first.plan.apply(50)
    assigning = Assigning(held, GUARD, NOW_MS + 1, {})
    assigning.replies([request(A, 2)])
    assigning.plan.delete(held.assignments[A, 1].record)
    plan = assigning.plan
    reads: dict[str, KeyValue | None] = {path: KeyValue(path, value, 60, 60) for path, value in plan.txn().puts}
    reads |= dict.fromkeys(plan.txn().deletes)
    assert plan.is_applied(reads)
    for path, kv in reads.items():
        changed = replace(kv, value=b"{}") if kv else KeyValue(path, b"{}", 60, 60)
        assert not plan.is_applied(reads | {path: changed})
    plan.apply(99, reads)
    assert {held.streams[A].mod_revision, held.assignments[A, 2].mod_revision} == {60}


def test_what_an_else_branch_says_about_the_leader() -> None:
    leader = KeyValue(PATHS.leader, GUARD.leader_value, FENCE, FENCE)
    genesis = KeyValue(PATHS.genesis, GUARD.genesis_value, 1, 1)
    GUARD.check({PATHS.leader: leader, PATHS.genesis: genesis})
    for other in (None, replace(leader, create_revision=FENCE + 1), replace(leader, value=b"{}")):
        with pytest.raises(NotLeader):
            GUARD.check({PATHS.leader: other, PATHS.genesis: genesis})
    for wrong in (None, replace(genesis, value=b"{}")):
        with pytest.raises(DeploymentHalted):
            GUARD.check({PATHS.leader: leader, PATHS.genesis: wrong})

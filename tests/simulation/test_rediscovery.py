"""Faults that are known from public reports: found when our guard is off, and on the same courses prevented by it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from pipeline.testing.simulation import harsher
from pipeline.testing.simulation.course import Verdict
from pipeline.testing.simulation.memory import remembered
from tests.simulation.guards import MUTANTS, REDISCOVERED
from tests.simulation.hunt import fates_of, mutants
from tests.simulation.mutation import Mutant

SEEDS = 200
TIMEOUT_S = 300
pytestmark = pytest.mark.timeout(TIMEOUT_S)
HUNTED = (
    "horizon of xid8",
    "rebuild after a slow commit",
    "a lock past its lease",
    "a lock past its lease, and a ledger",
    "watermark",
    "a restored etcd, and a ledger",
)
"""The mutants that are a known fault, and what prevents one."""

ALL: dict[str, Mutant] = {mutant.name: mutant for mutant in (*MUTANTS, *REDISCOVERED)}


class Found(NamedTuple):
    """How the harness found a fault."""

    breach: str
    by: str
    story: list[str]


@pytest.fixture(scope="module")
def fates() -> dict[str, dict[str, Any]]:
    only = [f"--only={name}" for name in HUNTED]
    found = fates_of(mutants(f"--seeds={SEEDS}", "--workers=2", "--json", *only, timeout_s=TIMEOUT_S), len(HUNTED))
    assert not [fate["wrong"] for fate in found.values() if fate["wrong"]]
    return found


@pytest.fixture
def found(fates: dict[str, dict[str, Any]]) -> Callable[[str], Found]:
    def by_name(name: str) -> Found:
        fate = fates[name]
        assert fate["killed"], f"it survives {fate['courses']} courses"
        sys.stderr.write("\n".join(["", *fate["story"], f"{fate['by']}: {fate['breach']}", ""]))
        return Found(fate["breach"], fate["by"], fate["story"])

    return by_name


def with_all_guards(name: str, by: str) -> Verdict:
    """The very course that broke."""
    mutant = ALL[name]
    with remembered(), harsher.late():
        if seed := re.fullmatch(r"seed (\d+)", by):
            return harsher.run(int(seed[1]), mutant.deed, told=True)
        [plan] = [plan for plan in mutant.plans if str(plan) == by]
        return harsher.run_points(plan, told=True, alone=True)


def told(story: list[str], *words: str) -> bool:
    """Whether these are told, one after the other."""
    text = "\n".join(story)
    return re.search(".*".join(map(re.escape, words)), text, re.DOTALL) is not None


def test_a_keyset_cursor_skips_rows_that_commit_late(found: Callable[[str], Found]) -> None:
    """Ids are given at the insert, and rows seen at the commit.

    Reported many times for readers that poll a table, e.g. "How Postgres sequences issues can impact your messaging
    guarantees" (event-driven.io, 2022) and "Postgres sequences can commit out-of-order" (Sequin, 2024).
    """
    name = "horizon of xid8"
    lost = found(name)
    assert re.match(r"I9: not settled .* rows without an outcome \[\d", lost.breach)
    assert not with_all_guards(name, lost.by).breaches


def test_a_late_end_of_a_transaction_ends_the_next_one(found: Callable[[str], Found]) -> None:
    """KAFKA-17754: EndTxn is sent again when it has no answer, and the broker cannot tell the late one from the next.

    KIP-890 says so, too ("a delayed EndTxn ... can result in incorrectly completing a transaction"). Here the next
    round's records are committed without its offsets: the round fails, is read again, and is published twice.
    """
    name = "rebuild after a slow commit"
    twice = found(name)
    assert twice.breach.startswith(("I3", "I5"))
    assert twice.breach.endswith("has 2 outcomes")
    assert told(twice.story, "Produce: done", "TxnOffsetCommit: lost on its way", "EndTxn: done", "Produce: done")
    held = with_all_guards(name, twice.by)
    assert not held.breaches
    assert told(
        [str(event) for event in held.events],
        "EndTxn: crash point",
        "InitProducerId: done",
        "consumer-0.1     kafka Produce",
    )


def test_a_lock_is_held_past_its_lease(found: Callable[[str], Found], fates: dict[str, dict[str, Any]]) -> None:
    """A holder that stands still for longer than its lease writes when it goes on, for it cannot know.

    Jepsen: etcd 3.4.3 (2020): "locks ... did not, and can not, guarantee mutual exclusion"; etcd's documentation on
    lock and lease asks for the revision as a fence. Without the compares of leader and records, and without the
    ledger, a nonce is lent twice; the ledger alone prevents that.
    """
    name = "a lock past its lease"
    twice = found(name)
    assert twice.breach.startswith(("I1", "I2"))
    held = with_all_guards(name, twice.by)
    assert not held.breaches
    assert held.faults["lost lease"]
    fate = fates["a lock past its lease, and a ledger"]
    assert (fate["killed"], fate["courses"]) == (False, SEEDS)


def test_an_etcd_is_restored_with_the_revisions_that_it_had(
    found: Callable[[str], Found], fates: dict[str, dict[str, Any]]
) -> None:
    """After a restore revisions are given a second time (etcd's documentation on disaster recovery, --bump-revision).

    So every compare of a revision holds, and a restored etcd lends what it has lent before. Without the comparison
    with the ledger and the ledger's watermark a nonce is signed twice; either alone prevents that; with both on, the
    key manager ends for good.
    """
    name = "watermark"
    twice = found(name)
    assert twice.breach.startswith("I1")
    held = with_all_guards(name, twice.by)
    assert not held.breaches
    assert told([str(event) for event in held.events], "restored from a backup", "key-manager", "ends for good")
    fate = fates["a restored etcd, and a ledger"]
    assert (fate["killed"], fate["courses"]) == (False, SEEDS)

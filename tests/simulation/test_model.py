"""The model of the protocol, searched to its end: nothing goes wrong with all guards, something without any one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pipeline.testing.model.reading import Reading
from pipeline.testing.model.search import Outcome, Step, search
from pipeline.testing.model.signing import Signing

STATES_MAX = 400_000

BROKEN_BY = {
    "fence": ("I7", Signing(faults=1)),
    "stream compare": ("I9", Signing(faults=2)),
    "key compare": ("I9", Signing(streams=2, batches=1, faults=2)),
    "same batch, same assignment": ("I9", Signing(faults=1)),
    "published means skip": ("I9", Signing(faults=2)),
    "digest": ("I5", Signing(faults=2)),
    "chain": ("I9", Signing(faults=1)),
    "ledger row": ("I2", Signing(streams=2, batches=1, faults=2)),
    "watermark": ("I1", Signing(streams=2, batches=1, faults=2)),
    "generation": ("I5", Signing(faults=1)),
    "offsets in the transaction": ("I5", Signing(faults=1)),
    "rebuild after abort": ("I5", Signing(faults=1)),
    "release after commit": ("I9", Signing(faults=1)),
    "sweeper leaves what is not committed": ("I5", Signing(faults=1)),
}


class Counter:
    """A model with a planted fault: it counts to three, or may fall into a hole at two."""

    def __init__(self, *, hole: bool, limit: int = 9) -> None:
        self.hole = hole
        self.limit = limit

    def start(self) -> int:
        return 0

    def steps(self, state: int) -> Iterator[Step[int]]:
        if 0 <= state < 3:
            yield Step(f"to {state + 1}", state + 1)
        if state == 2 and self.hole:
            yield Step("falls", -1, fault=True)

    def wrong(self, state: int) -> str:
        return "too far" if state == self.limit else ""

    def settled(self, state: int) -> bool:
        return state == 3


def told(outcome: Outcome) -> str:
    sys.stderr.write(f"{outcome}\n")
    return outcome.problem[:2]


def test_a_planted_violation_is_found_by_the_shortest_way() -> None:
    found = search(Counter(hole=False, limit=2), 10)
    assert (found.problem, found.trace) == ("too far", ("to 1", "to 2"))
    assert str(found) == "too far, after 2 steps:\n   1. to 1\n   2. to 2"


def test_a_planted_dead_end_is_found() -> None:
    found = search(Counter(hole=True), 10)
    assert found.problem.startswith("I9")
    assert found.trace == ("to 1", "to 2", "falls")


def test_a_model_that_is_too_large_is_refused() -> None:
    with pytest.raises(OverflowError, match="more than 2 states"):
        search(Counter(hole=False), 2)


def test_reading_with_every_pair_of_faults() -> None:
    found = search(Reading(faults=2), STATES_MAX)
    assert not found.problem, str(found)
    assert found.states > 1_000


@pytest.mark.parametrize("guard", Reading.GUARDS)
def test_reading_without_a_guard(guard: str) -> None:
    assert told(search(Reading(faults=2, without=frozenset({guard})), STATES_MAX)) in ("I2", "I8", "I9")


@pytest.mark.parametrize(
    ("model", "states"),
    [
        (Signing(streams=1, batches=2, faults=2), 100_000),
        (Signing(streams=2, batches=2, faults=1), 100_000),
    ],
    ids=["one stream, two faults", "two streams, one fault"],
)
@pytest.mark.timeout(300)
def test_signing_with_every_fault(model: Signing, states: int) -> None:
    found = search(model, STATES_MAX)
    assert not found.problem, str(found)
    assert found.states > states


@pytest.mark.parametrize("guard", Signing.GUARDS)
@pytest.mark.timeout(120)
def test_signing_without_a_guard(guard: str) -> None:
    invariant, model = BROKEN_BY[guard]
    assert told(search(replace(model, without=frozenset({guard})), STATES_MAX)) == invariant

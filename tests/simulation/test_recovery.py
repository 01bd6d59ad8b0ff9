"""`oncesign recover` in whole clusters: etcd is lost or restored while all runs, and every invariant holds again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from pipeline.assignment.rebuilding import _Rebuilding
from pipeline.assignment.rules import Batch
from pipeline.ports import LedgerEntry
from pipeline.stages.remains import Remains
from pipeline.testing.simulation.memory import remembered
from pipeline.testing.simulation.operator import Outcome, run

SEEDS = 400
PLANTED_SEEDS = 400
AWAITS = 150
"""A recovery of these courses takes fewer."""

KILLED_SEEDS = (1, 2, 6, 11)
"""Lost and restored; with batches that were sworn and not published, and with holes."""


@pytest.fixture(autouse=True)
def _remembered() -> Iterator[None]:
    with remembered():
        yield


def first_breach(seeds: int) -> Outcome | None:
    outcomes = (run(seed) for seed in range(seeds))
    return next((outcome for outcome in outcomes if outcome.breaches), None)


@pytest.mark.timeout(300)
def test_every_course_settles_after_its_recovery() -> None:
    faults: Counter[str] = Counter()
    runs = 0
    for seed in range(SEEDS):
        outcome = run(seed)
        assert outcome.breaches == [], seed
        faults += outcome.story.faults
        runs += outcome.tries
    assert runs > 1.2 * SEEDS, "some were killed or refused, and run again"
    assert faults["disaster"] == SEEDS
    assert faults["overlooked"] > SEEDS / 8
    assert faults["request dies after"] > SEEDS / 8


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", KILLED_SEEDS)
def test_a_recovery_may_be_killed_at_any_await(seed: int) -> None:
    killed = 0
    for await_ in range(AWAITS):
        outcome = run(seed, killed_at=await_)
        assert outcome.breaches == [], await_
        killed += outcome.tries > 1
    assert killed > AWAITS / 3


def test_a_seed_is_the_same_course_every_time() -> None:
    first, second = run(12, told=True), run(12, told=True)
    assert list(map(str, first.story.events)) == list(map(str, second.story.events))
    assert any("changed" in event.what for event in first.story.events)


async def _nothing(_self: Remains, *_: object) -> Mapping[Batch, LedgerEntry]:
    return {}


async def _everything(
    _self: Remains, candidates: Mapping[Batch, LedgerEntry], *_: object
) -> Mapping[Batch, LedgerEntry]:
    return dict(candidates)


def _under_another_fence(sworn: Callable[..., None]) -> Callable[..., None]:
    return lambda self, batch, entry: sworn(self, batch, replace(entry, fence=entry.fence + 1))


def _no_hole(_self: _Rebuilding, _batch: Batch) -> None:
    """Left as it is."""


PLANTED: dict[str, tuple[type, str, Any]] = {
    "what was sworn and not published is forgotten": (Remains, "_unpublished", _nothing),
    "what was published is taken for unpublished": (Remains, "_unpublished", _everything),
    "what was sworn comes back under another fence": (_Rebuilding, "_sworn", _under_another_fence(_Rebuilding._sworn)),
    "holes stay": (_Rebuilding, "_hole", _no_hole),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", PLANTED)
def test_a_recovery_that_goes_wrong_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, planted = PLANTED[fault]
    monkeypatch.setattr(owner, name, planted)
    assert first_breach(PLANTED_SEEDS) is not None

"""Deaths of `oncesign recover` itself: etcd is lost or older than the ledger, the repair is killed at each boundary.

Two lives begin the work and are killed in it, etcd is set back, a repair is killed, another one ends, and a last life
of the pipeline settles everything.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import Final

from pipeline.adapters.etcd import EtcdStore
from pipeline.assignment.paths import Paths
from pipeline.effects import Moment
from pipeline.ports import Txn
from pipeline.testing.simulation.crashes import Boundary
from tests.chaos.crash_points_case import READS, Case
from tests.chaos.crash_points_ground import Ground
from tests.chaos.crash_points_life import Place, Point, Record
from tests.chaos.crash_points_zygote import Zygote

ROUND_ENDS: Final = Boundary("consumer", "kafka", "EndTxn")
WRITES: Final = Boundary("recovery", "etcd", "Txn")
BEGUN: Final = Point(ROUND_ENDS, Moment.BEFORE)
GONE_ON: Final = Point(ROUND_ENDS, Moment.AFTER, 3)


class Loss(StrEnum):
    """What became of etcd."""

    LOST = "etcd lost"
    BEHIND = "etcd restored"


class Repairs:
    """Runs repairs in lanes, each in a place of its own."""

    def __init__(self, ground: Ground, zygote: Zygote, lanes: int) -> None:
        self._ground = ground
        self._zygote = zygote
        self._lanes = lanes

    def run(self, only: str = "") -> Iterator[Case]:
        """Every boundary that a repair meets, once before and once after it."""
        with ThreadPoolExecutor(self._lanes) as lanes:
            calm = list(lanes.map(lambda loss: self.case(loss, None), Loss))
            yield from calm
            found = [(loss, point) for loss, case in zip(Loss, calm, strict=True) for point in points_of(case.seen)]
            # What a repair reads is the same in both, and reading changes nothing.
            points = [(loss, p) for loss, p in found if loss is Loss.LOST or p.boundary.request not in READS]
            wanted = [(loss, point) for loss, point in points if only in f"{point}, {loss}"]
            yield from lanes.map(lambda asked: self.case(*asked), wanted)

    def case(self, loss: Loss, point: Point | None) -> Case:
        """One; without a point nobody kills it. `seen` is what the repair met that ended well."""
        place = self._ground.place()
        case = Case((point,) if point else (), loss)
        case.breaches += self._begin(place, loss)
        if point is not None:
            case.met.append(self._zygote.live(place, point, "repair-0", repair=True).met)
        repaired = self._zygote.live(place, None, "repair-1", repair=True)
        case.judge(repaired)
        last = self._zygote.live(place, None, "last-life")
        case.judge(last)
        case.settled_s, case.seen = repaired.settled_s + last.settled_s, repaired.seen
        if not case.breaches:
            self._ground.clear(place)
            shutil.rmtree(place.directory)
        return case

    def _begin(self, place: Place, loss: Loss) -> list[str]:
        """Work that etcd then does not know of, or not all of it; what was not as it should be."""
        unmet = [] if self._met(place, BEGUN, "life-0") else [f"{BEGUN} was not met"]
        kept = asyncio.run(_dump(place)) if loss is Loss.BEHIND else {}
        unmet += [] if self._met(place, GONE_ON, "life-1") else [f"{GONE_ON} was not met"]
        asyncio.run(_set_back(place, kept))
        return unmet

    def _met(self, place: Place, point: Point, name: str) -> bool:
        record: Record = self._zygote.live(place, point, name)
        return record.met


def points_of(seen: Mapping[tuple[Boundary, Moment], int]) -> Iterator[Point]:
    """Both sides of each boundary, and of what is written to etcd each time."""
    for (boundary, moment), times in sorted(seen.items()):
        yield from (Point(boundary, moment, nth) for nth in range(1, times + 1 if boundary == WRITES else 2))


async def _dump(place: Place) -> dict[str, bytes]:
    """A backup. The leader is not in it: its lease would run out."""
    store, paths = EtcdStore(place.settings().etcd), Paths(place.deployment)
    found = {kv.key: kv.value for kv in await store.list(paths.root + "/")}
    await store.close()
    return {key: value for key, value in found.items() if key != paths.leader}


async def _set_back(place: Place, kept: dict[str, bytes]) -> None:
    store, paths = EtcdStore(place.settings().etcd), Paths(place.deployment)
    gone = {kv.key for kv in await store.list(paths.root + "/")} - kept.keys()
    done = await store.commit(Txn(compares=(), puts=tuple(kept.items()), deletes=tuple(gone)))
    assert done.succeeded
    await store.close()

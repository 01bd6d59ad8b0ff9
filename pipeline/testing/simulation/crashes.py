"""Crash points: every request of every kind of process, with a death before it, a death after it, or a late answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from pipeline.testing.group import Committed
from pipeline.testing.network import Request
from pipeline.testing.simulation.cluster import BATCHES, GROUP, Cluster
from pipeline.testing.simulation.course import Verdict, run_calmly
from pipeline.testing.simulation.history import PATHS
from pipeline.testing.simulation.loop import SimulatedLoop
from pipeline.testing.simulation.story import Story
from pipeline.testing.simulation.weather import QUIET
from pipeline.testing.simulation.wire import Fate

HOW: Final = {
    "dies before": Fate(dies_before=True),
    "dies after": Fate(dies_after=True),
    "late answer": Fate(back_s=13.0),
}
"""A late answer comes after every time-out of a client and after the broker has given up its transaction."""

NTH: Final = (1, 3)
LOOK_S: Final = 0.0005


class Boundary(NamedTuple):
    """An effect on the outside: which kind of process asks what of whom."""

    client: str
    server: str
    request: str

    def __str__(self) -> str:
        return f"{self.client}: {self.server} {self.request}"


class CrashPoint(NamedTuple):
    """What happens at which boundary; `nth` counts from 1, from when the point is armed."""

    boundary: Boundary
    how: str
    nth: int = 1

    def __str__(self) -> str:
        return f"{self.boundary}, {self.how}, the {self.nth}."


@dataclass(slots=True)
class Crashes:
    """Fulfils simulation.course.Weathering: each point once, armed when the one before it was met."""

    points: Sequence[CrashPoint]
    story: Story
    calm: bool = True
    met_points: int = 0
    seen: dict[Boundary, int] = field(default_factory=dict)
    _count: int = 0

    def of(self, client: str, request: Request) -> Fate:
        """See simulation.wire.Fates."""
        if client == "world":
            return Fate()
        at = Boundary(_kind(client), request.server, request.name)
        self.seen[at] = self.seen.get(at, 0) + 1
        if self.calm or self.met_points == len(self.points) or self.points[self.met_points].boundary != at:
            return Fate()
        self._count += 1
        point = self.points[self.met_points]
        if self._count < point.nth:
            return Fate()
        self.met_points, self._count = self.met_points + 1, 0
        self.story.fault(point.how, client, f"{request.server} {request.name}: crash point: {point.how}")
        return HOW[point.how]

    def met(self, client: str, request: Request, outcome: str) -> None:
        """See simulation.wire.Fates."""
        if self.story.kept and (request.name not in QUIET or outcome != "done"):
            self.story.tell(client, f"{request.server} {request.name}: {outcome}")


@dataclass(frozen=True, slots=True)
class Plan:
    """Crash points one after the other; with `lost_batch` in a course in which Kafka loses a batch that has a key."""

    points: tuple[CrashPoint, ...] = ()
    lost_batch: bool = False

    def __str__(self) -> str:
        return ("a lost batch: " if self.lost_batch else "") + " and then ".join(map(str, self.points))

    def then(self, *points: CrashPoint) -> Plan:
        """The same, and more."""
        return Plan((*self.points, *points), self.lost_batch)


def run_points(plan: Plan, *, told: bool = False) -> tuple[Verdict, Crashes]:
    """One course with these crash points, and how many of them were met."""
    loop = SimulatedLoop()  # type: ignore[abstract] # what it lacks is I/O
    crashes = Crashes(plan.points, Story(loop, kept=told))
    incident = lose_batch if plan.lost_batch else None
    return run_calmly(crashes, crashes.story, loop, incident), crashes


async def lose_batch(cluster: Cluster) -> None:
    """When the first batch has a key its consumer dies, and somebody sets the group's offset past it."""
    at = PATHS.assignment(cluster.streams[0], 1)
    while cluster.etcd.get(at) is None:
        await cluster.clock.sleep(LOOK_S)
    for member in cluster.members:
        if member.name.startswith("consumer") and member.process is not None:
            member.process.kill()
    group = cluster.broker.group(GROUP)
    group.offsets[BATCHES, 0] = Committed(2, "1")  # after the record and the marker of its transaction
    cluster.story.tell("world", "sets the offset of the first batch forward, which is signed and not published")


def boundaries() -> dict[Boundary, Plan]:
    """Every boundary there is, with what must come before it occurs.

    Most occur when nothing goes wrong; the others are parts of a recovery from one death or from a lost batch.
    """
    found: dict[Boundary, Plan] = {}
    for plan in (Plan(), Plan(lost_batch=True)):
        for at in sorted(run_points(plan)[1].seen):
            found.setdefault(at, plan)
    for at, plan in list(found.items()):
        for how in HOW:
            first = plan.then(CrashPoint(at, how))
            for later in sorted(run_points(first)[1].seen):
                found.setdefault(later, first)
    return found


def singles(found: Mapping[Boundary, Plan]) -> Iterator[Plan]:
    """Every way to fail at every boundary, at its first and at a later occurrence."""
    for at, before in found.items():
        yield from (before.then(CrashPoint(at, how, nth)) for how in HOW for nth in NTH)


def pairs(found: Mapping[Boundary, Plan]) -> Iterator[Plan]:
    """Every single failure, and then every other one, also while the first is recovered from."""
    for first, before in found.items():
        for how in HOW:
            begun = before.then(CrashPoint(first, how))
            yield from (begun.then(CrashPoint(at, later)) for at in found for later in HOW)


def _kind(client: str) -> str:
    return re.sub(r"[-.].*", "", client) if not client.startswith("key-manager") else "key-manager"

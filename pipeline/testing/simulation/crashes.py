"""Crash points: every request of every kind of process, with a death before it, a death after it, or a late answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from pipeline.testing.network import Request
from pipeline.testing.simulation.course import Verdict, run_calmly
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


def run_points(points: Sequence[CrashPoint], *, told: bool = False) -> tuple[Verdict, Crashes]:
    """One course with these crash points, and how many of them were met."""
    loop = SimulatedLoop()  # type: ignore[abstract] # what it lacks is I/O
    crashes = Crashes(points, Story(loop, kept=told))
    return run_calmly(crashes, crashes.story, loop), crashes


def boundaries() -> dict[Boundary, tuple[CrashPoint, ...]]:
    """Every boundary there is, with the deaths that must come before it occurs.

    Those that occur when nothing goes wrong need none; the others are parts of a recovery from one death.
    """
    found: dict[Boundary, tuple[CrashPoint, ...]] = dict.fromkeys(sorted(run_points([])[1].seen), ())
    for at in list(found):
        for how in HOW:
            first = CrashPoint(at, how)
            for later in sorted(run_points([first])[1].seen):
                found.setdefault(later, (first,))
    return found


def singles(found: Mapping[Boundary, tuple[CrashPoint, ...]]) -> Iterator[list[CrashPoint]]:
    """Every way to fail at every boundary, at its first and at a later occurrence."""
    for at, before in found.items():
        yield from ([*before, CrashPoint(at, how, nth)] for how in HOW for nth in (1, 3))


def pairs(found: Mapping[Boundary, tuple[CrashPoint, ...]]) -> Iterator[list[CrashPoint]]:
    """Every single failure, and then every other one, also while the first is recovered from."""
    for first in (CrashPoint(at, how) for at in found for how in HOW):
        yield from ([*found[first.boundary], first, CrashPoint(at, how)] for at in found for how in HOW)


def _kind(client: str) -> str:
    return re.sub(r"[-.].*", "", client) if not client.startswith("key-manager") else "key-manager"

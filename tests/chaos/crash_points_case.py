"""One case: deaths in order, each of a life of its own, and what came of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from pipeline.effects import Moment
from pipeline.testing.simulation.crashes import Boundary
from tests.chaos.crash_points_life import Point, Record

BREACHES_SHOWN: Final = 3


# fmt: off
READS: Final = frozenset((
    "ConsumerGroupDescribe", "Fetch", "ListOffsets", "Metadata", "OffsetFetch", "Range", "assignments",
    "check", "entries", "entry", "generation", "heads", "holes", "kept_keys", "last_rows", "policies", "positions",
    "rows_after", "rows_of", "sighted", "streams", "system_id", "watermarks",
))
# fmt: on
"""Requests that change nothing: after the third of them nothing is other than after the first."""


@dataclass(slots=True)
class Case:
    """A case that was run."""

    points: tuple[Point, ...]
    began: str = ""  #: with what, if not only with the deaths before the last
    met: list[bool] = field(default_factory=list)
    settled_s: float = 0.0
    breaches: list[str] = field(default_factory=list)
    seen: dict[tuple[Boundary, Moment], int] = field(default_factory=dict)  #: by the life that recovered

    @property
    def verdict(self) -> str:
        """In a word or a line."""
        if self.breaches:
            return "; ".join(self.breaches[:BREACHES_SHOWN])
        return "ok" if all(self.met) else "never met"

    def judge(self, record: Record) -> None:
        """Take over what a life that should have ended well has to say."""
        self.breaches += record.breaches
        if not record.seen and not record.breaches:
            self.breaches.append("a life ended without a word")

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        fields: dict[str, Any] = {"boundary": "", "moment": "", "nth": 0}
        if self.points:
            last = self.points[-1]
            fields = {"boundary": str(last.boundary), "moment": last.moment, "nth": last.nth}
        return fields | {
            "began": self.began,
            "after": [str(point) for point in self.points[:-1]],
            "met": all(self.met),
            "recovered_s": round(self.settled_s, 2),
            "breaches": self.breaches,
        }

    def __str__(self) -> str:
        if not self.points:
            return f"{'nobody is killed':<53}          {self.settled_s:5.1f} s  {self.verdict} ({self.began})"
        at = self.points[-1]
        before = "; ".join([self.began, *map(str, self.points[:-1])]).removeprefix("; ")
        line = f"{at.boundary!s:<44} {at.moment:<6} {at.nth:>3}  {'met' if all(self.met) else 'not met':<7}"
        return f"{line} {self.settled_s:5.1f} s  {self.verdict}{f' (after {before})' if before else ''}"

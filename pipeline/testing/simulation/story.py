"""What happened in one course of events, for a person to read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.testing.simulation.loop import SimulatedLoop


class Event(NamedTuple):
    """Something at a moment."""

    at_s: float
    who: str
    what: str

    def __str__(self) -> str:
        return f"{self.at_s:9.3f}  {self.who:<16} {self.what}"


@dataclass(slots=True)
class Story:
    """Events in order; none are kept unless somebody wants to read them."""

    loop: SimulatedLoop
    kept: bool = False
    events: list[Event] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)  #: how many of each kind

    def tell(self, who: str, what: str) -> None:
        """One event, now."""
        if self.kept:
            self.events.append(Event(self.loop.time(), who, what))

    def fault(self, kind: str, who: str, what: str) -> None:
        """Something that should not happen happens now."""
        self.faults[kind] += 1
        self.tell(who, what)

"""What a run of chaos found: faults and recovery times by kind, violations, and the figures of the run."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

TITLES: Final = ("fault", "times", "median_s", "worst_s", "alone", "worst_alone_s")
VIOLATIONS_SHOWN_MAX: Final = 50
VIOLATION_CHARS_MAX: Final = 400


@dataclass(frozen=True, slots=True)
class Ended:
    """One fault that was carried out."""

    kind: str
    recovery_s: float | None  #: None when the streams did not go on before the run ended
    disturbed: bool = False  #: another fault was there, or came, before this one had recovered


@dataclass(slots=True)
class Report:
    """Of one run."""

    seed: int
    minutes: float
    faults: list[Ended] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  #: kind → why it could not be done here
    failed: list[str] = field(default_factory=list)  #: faults that our own tool could not carry out
    violations: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing was violated."""
        return not self.violations

    def by_kind(self) -> dict[str, dict[str, Any]]:
        """Count and recovery times of each kind."""
        grouped: dict[str, list[Ended]] = defaultdict(list)
        for ended in self.faults:
            grouped[ended.kind].append(ended)
        return {kind: _figures(faults) for kind, faults in sorted(grouped.items())}

    def to_json(self) -> dict[str, Any]:
        """The report as one object."""
        return {
            "seed": self.seed,
            "minutes": self.minutes,
            "faults": len(self.faults),
            "overall": _figures(self.faults),
            "by_kind": self.by_kind(),
            "skipped": self.skipped,
            "failed": self.failed,
            "violations": [shortened(violation) for violation in self.violations[:VIOLATIONS_SHOWN_MAX]],
            "violations_total": len(self.violations),
            **self.figures,
        }

    def rows(self) -> list[dict[str, Any]]:
        """The table: one line per kind, and one for all."""
        lines: Mapping[str, Mapping[str, Any]] = self.by_kind() | {"all": _figures(self.faults)}
        return [
            {
                "fault": kind,
                "times": figures["count"],
                "median_s": figures["recovery_median_s"],
                "worst_s": figures["recovery_worst_s"],
                "alone": figures["undisturbed"],
                "worst_alone_s": figures["undisturbed_worst_s"],
            }
            for kind, figures in lines.items()
        ]


def shortened(violation: str) -> str:
    """A violation may quote a thousand nonces."""
    return violation if len(violation) <= VIOLATION_CHARS_MAX else violation[:VIOLATION_CHARS_MAX] + " …"


def _figures(faults: Sequence[Ended]) -> dict[str, Any]:
    times = [ended.recovery_s for ended in faults if ended.recovery_s is not None]
    alone = [ended.recovery_s for ended in faults if ended.recovery_s is not None and not ended.disturbed]
    return {
        "count": len(faults),
        "recovery_median_s": round(statistics.median(times), 2) if times else None,
        "recovery_worst_s": round(max(times), 2) if times else None,
        "unrecovered": len(faults) - len(times),
        "undisturbed": len(alone),
        "undisturbed_worst_s": round(max(alone), 2) if alone else None,
    }

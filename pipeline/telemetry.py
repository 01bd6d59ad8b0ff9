"""What the pipeline tells of itself: its instruments, and the port through which it tells.

Numbers only: no tag is an address, a stream or a transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol


class Kind(StrEnum):
    """How the values of an instrument go together."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Instrument:
    """One metric."""

    name: str
    kind: Kind
    meaning: str
    tags: tuple[str, ...] = ()


READ: Final = Instrument("oncesign_read", Kind.COUNTER, "Rows put into batches.", ("source",))
SIGNED: Final = Instrument("oncesign_signed", Kind.COUNTER, "Rows published as signed.")
REJECTED: Final = Instrument("oncesign_rejected", Kind.COUNTER, "Rows published as rejected.")
VERIFIED: Final = Instrument("oncesign_verified", Kind.COUNTER, "Rows that the verifier has seen.", ("result",))
VIOLATIONS: Final = Instrument("oncesign_violations", Kind.COUNTER, "Violations that the verifier has found.")
BATCHES: Final = Instrument("oncesign_batches", Kind.COUNTER, "Batches that a stage is done with.", ("stage",))
SKIPPED: Final = Instrument("oncesign_skipped", Kind.COUNTER, "Batches that came again after they were published.")
ROUNDS: Final = Instrument("oncesign_rounds", Kind.COUNTER, "Kafka transactions of consumers that committed.")
ROUNDS_ABORTED: Final = Instrument("oncesign_rounds_aborted", Kind.COUNTER, "Those that did not, and were done again.")
FILLERS: Final = Instrument("oncesign_fillers", Kind.COUNTER, "Nonces filled because a row could not be signed.")
SWEPT: Final = Instrument("oncesign_swept", Kind.COUNTER, "Batches that the sweeper mended.", ("result",))
RESTARTS: Final = Instrument("oncesign_restarts", Kind.COUNTER, "Actors that had to be started again.", ("stage",))
ACTORS: Final = Instrument("oncesign_actors", Kind.GAUGE, "Actors under supervision.", ("stage",))
LAG: Final = Instrument(
    "oncesign_lag_batches", Kind.GAUGE, "Batches in Kafka that no consumer has committed.", ("source", "state")
)
STREAMS_HALTED: Final = Instrument("oncesign_streams_halted", Kind.GAUGE, "Streams that wait for an operator.")
KEYS: Final = Instrument("oncesign_keys", Kind.GAUGE, "Keys by state.", ("state",))
LOCK_OLDEST: Final = Instrument("oncesign_lock_oldest_seconds", Kind.GAUGE, "Age of the oldest lock on a key.")
QUEUE: Final = Instrument("oncesign_queue_length", Kind.GAUGE, "Requests that wait for a key.")
ASSIGNMENTS: Final = Instrument("oncesign_assignments", Kind.GAUGE, "Batches that have a key and are not released.")
BATCH_SECONDS: Final = Instrument(
    "oncesign_batch_seconds", Kind.HISTOGRAM, "Time of a stage for a batch, or for those it does at once.", ("stage",)
)

INSTRUMENTS: Final = tuple(value for value in globals().values() if isinstance(value, Instrument))

BOUNDS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Upper bounds of a histogram's buckets."""


class Telemetry(Protocol):
    """Where numbers go. Never raises for what the outside does; costs no more than a microsecond or two."""

    def add(self, counter: Instrument, more: float, **tags: str) -> None:
        """To a counter; 0 makes it known."""
        ...

    def set(self, gauge: Instrument, value: float, **tags: str) -> None:
        """What it is now; one that is not set again for a while is forgotten."""
        ...

    def observe(self, histogram: Instrument, seconds: float, **tags: str) -> None:
        """One more duration."""
        ...


class Silent:
    """Fulfils Telemetry and tells nobody."""

    def add(self, counter: Instrument, more: float, **tags: str) -> None:
        """See Telemetry."""

    def set(self, gauge: Instrument, value: float, **tags: str) -> None:
        """See Telemetry."""

    def observe(self, histogram: Instrument, seconds: float, **tags: str) -> None:
        """See Telemetry."""


SILENT: Final = Silent()


class Growth:
    """Counters out of the counts that one stage keeps: each telling adds what has come since the last."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.telemetry = telemetry
        self._told: dict[tuple[Instrument, tuple[tuple[str, str], ...]], int] = {}

    def tell(self, counter: Instrument, total: int, **tags: str) -> None:
        """`total` since the stage began; one that is less than before adds nothing."""
        key = counter, tuple(sorted(tags.items()))
        self.telemetry.add(counter, max(0, total - self._told.get(key, 0)), **tags)
        self._told[key] = total

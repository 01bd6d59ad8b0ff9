"""A twin of the telemetry: what was told, by name and tags, as strict about tags as the real one."""

from __future__ import annotations

from collections import defaultdict
from typing import TypeAlias

from pipeline.telemetry import Instrument, Kind

Series: TypeAlias = tuple[str, frozenset[tuple[str, str]]]


class TwinTelemetry:
    """Fulfils Telemetry."""

    def __init__(self) -> None:
        self._numbers: dict[Series, float] = {}
        self._observed: dict[Series, list[float]] = defaultdict(list)

    def add(self, counter: Instrument, more: float, **tags: str) -> None:
        """See Telemetry."""
        series = _series(counter, Kind.COUNTER, tags)
        if more < 0:
            raise ValueError(f"{counter.name} never goes down.")
        self._numbers[series] = self._numbers.get(series, 0) + more

    def set(self, gauge: Instrument, value: float, **tags: str) -> None:
        """See Telemetry."""
        self._numbers[_series(gauge, Kind.GAUGE, tags)] = value

    def observe(self, histogram: Instrument, seconds: float, **tags: str) -> None:
        """See Telemetry."""
        self._observed[_series(histogram, Kind.HISTOGRAM, tags)].append(seconds)

    def value(self, instrument: Instrument, **tags: str) -> float:
        """Of a counter or a gauge. Raises KeyError when it was never told."""
        return self._numbers[_series(instrument, instrument.kind, tags)]

    def observed(self, histogram: Instrument, **tags: str) -> list[float]:
        """Every duration, in order."""
        return self._observed[_series(histogram, Kind.HISTOGRAM, tags)]


def _series(instrument: Instrument, kind: Kind, tags: dict[str, str]) -> Series:
    if instrument.kind is not kind or set(tags) != set(instrument.tags):
        raise ValueError(f"{instrument.name} is a {instrument.kind} by {instrument.tags}, not a {kind} by {[*tags]}.")
    return instrument.name, frozenset(tags.items())

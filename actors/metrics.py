"""Telemetry over Ray's metrics: each node's Ray agent serves them to Prometheus, with `ray_` before each name.

Ray collects every ten seconds, and once more when a process ends; a gauge counts for one collection only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, Final

from ray.util import metrics

from pipeline.journal import Journal
from pipeline.stages.loops import cancel
from pipeline.telemetry import BOUNDS_S, Instrument, Kind

journal = Journal(__name__, "metrics")

PUBLISH_EVERY_S: Final = 5.0
"""Twice in each of Ray's collections, so that none is without the gauges."""


class RayTelemetry:
    """Fulfils Telemetry."""

    def add(self, counter: Instrument, more: float, **tags: str) -> None:
        """See Telemetry."""
        # Not inc(), which refuses 0: a counter that is not there before its first event hides that event from rates.
        _made(counter)._record(float(more), tags)  # noqa: SLF001

    def set(self, gauge: Instrument, value: float, **tags: str) -> None:
        """See Telemetry."""
        _made(gauge).set(float(value), tags)

    def observe(self, histogram: Instrument, seconds: float, **tags: str) -> None:
        """See Telemetry."""
        _made(histogram).observe(seconds, tags)


TELEMETRY: Final = RayTelemetry()


@cache
def _made(instrument: Instrument) -> Any:
    """One of each for this process."""
    name, meaning, tags = instrument.name, instrument.meaning, instrument.tags
    match instrument.kind:
        case Kind.COUNTER:
            return metrics.Counter(name, meaning, tags)
        case Kind.GAUGE:
            return metrics.Gauge(name, meaning, tags)
        case Kind.HISTOGRAM:
            return metrics.Histogram(name, meaning, list(BOUNDS_S), tags)


@asynccontextmanager
async def publishing(tell: Callable[[], None]) -> AsyncIterator[None]:
    """Call `tell` now, every PUBLISH_EVERY_S, and at the end."""
    task = asyncio.create_task(publish(tell), name="metrics")
    try:
        yield
    finally:
        await cancel([task])
        _tell(tell)


async def publish(tell: Callable[[], None]) -> None:
    """The same until cancelled."""
    while True:
        _tell(tell)
        await asyncio.sleep(PUBLISH_EVERY_S)


def _tell(tell: Callable[[], None]) -> None:
    try:
        tell()
    except Exception as error:  # noqa: BLE001 - signing goes on without figures
        journal.ended("figures are not told", frames=error, error=error)

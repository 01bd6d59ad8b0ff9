"""What Prometheus sees of the key manager. Counts only: no label is an address, a stream or a transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from pipeline.assignment.records import KeyState
from pipeline.errors import OncesignError
from pipeline.service.desk import Desk

PREFIX: Final = "oncesign_key_manager_"
CONTENT_TYPE: Final = CONTENT_TYPE_LATEST


class Metrics:
    """A registry of its own, so that nothing of Ray's or of another service is in it."""

    def __init__(self, desk: Callable[[], Desk | None]) -> None:
        """`desk` is the key manager when it leads, or was last seen to."""
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_State(desk))
        self._requests = Counter(
            f"{PREFIX}requests", "Requests by route and result.", ("route", "result"), registry=self._registry
        )

    def count(self, route: str, status: int) -> None:
        """One request has ended: succeeded, denied (the client's doing) or failed (ours)."""
        result = "succeeded" if status < 400 else "denied" if status < 500 else "failed"
        self._requests.labels(route, result).inc()

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


class _State(Collector):
    """Asks the key manager at each scrape."""

    def __init__(self, desk: Callable[[], Desk | None]) -> None:
        self._desk = desk

    def collect(self) -> Iterator[Metric]:
        """Leadership always, all else only while it leads: what another key manager does is not ours to say."""
        desk = self._desk()
        try:
            leads = desk is not None and desk.view() is not None
        except OncesignError:
            leads = False
        yield _gauge("leader", "1 while this key manager leads.", int(leads))
        if desk is None or not leads:
            return
        yield from self._counts(desk)
        yield from self._ages(desk)

    def _counts(self, desk: Desk) -> Iterator[Metric]:
        view, status = desk.view(), desk.status()
        keys = GaugeMetricFamily(f"{PREFIX}keys", "Keys by state.", labels=("state",))
        for state in KeyState:
            keys.add_metric((state.value,), view.keys_in(state))
        yield keys
        yield _gauge("fence", "etcd create_revision of the leader record.", status["fence"])
        yield _gauge("assignments", "Batches that were assigned and not released yet.", len(view.assignments))
        yield _gauge("streams_halted", "Streams halted until an operator acts.", len(status["halted"]))
        yield _gauge("queue_length", "Requests that wait for a key.", status["queue"])
        yield _gauge(
            "writes_failing", "1 while etcd or the ledger keeps it from writing.", int(desk.trouble is not None)
        )

    def _ages(self, desk: Desk) -> Iterator[Metric]:
        status = desk.status()
        yield _gauge("lock_oldest_seconds", "Age of the oldest lock on a key.", status["lock_oldest_s"])
        yield _gauge("queue_oldest_seconds", "Age of the oldest waiting request.", status["queue_oldest_s"])


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, meaning, value=value)

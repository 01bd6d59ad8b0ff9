"""A real pipeline as a real Prometheus sees it: every panel has data, no alert fires, and the figures are right."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from pipeline.custody.sealing import Kek
from pipeline.local.server import LOOPBACK
from pipeline.settings import (
    ReaderSettings,
    ServiceSettings,
    Settings,
)
from tests.manifests.prometheus import Scrape, dashboards, evaluate, panels, rules
from tests.manifests.rendered import built
from tests.pipeline_run import stock
from tests.placed import Cluster
from tests.ray_groups import NODES, Groups

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]  # the first run builds Prometheus

ROWS: Final = 1_500
"""Of each of two waves: a rate needs figures before and after."""

INVALID: Final = 0.1
KEYS: Final = 8
SCRAPE_EVERY_S: Final = 1.0
WORKER: Final = re.compile(r'^ray_oncesign_.*WorkerId="([0-9a-f]+)"', re.MULTILINE)
SEEN_WITHIN_S: Final = 120.0
LISTED_WITHIN_S: Final = 30.0
LABELS: Final = re.compile(
    r"(Component|NodeAddress|SessionName|Version|WorkerId|otel_scope_\w+|le)=|(stage|source|state|result)="
)
"""Ray's own, and ours."""


@pytest.fixture
def settings(deployed: Settings, service: ServiceSettings) -> Settings:
    Kek.create(deployed.kek_path)
    return deployed.model_copy(update={"reader": ReaderSettings(batch_rows_max=100), "service": service})


@pytest.fixture
def cluster(groups: Groups, settings: Settings) -> Iterator[Cluster]:
    made = Cluster(groups, settings)
    made.env |= {
        "ONCESIGN_SERVICE__HOST": LOOPBACK,
        "ONCESIGN_SERVICE__PORT": str(settings.service.port),
        "ONCESIGN_SERVICE__TOKEN_FILE": str(settings.service.token_file),
    }
    yield made
    made.run("down")


class Prometheus:
    """What it would have scraped: Ray's targets as Ray lists them, and the key manager's service."""

    def __init__(self, groups: Groups, settings: Settings) -> None:
        self._discovered = groups.folder / "prom_metrics_service_discovery.json"
        self.targets = self._every_node(time.monotonic() + LISTED_WITHIN_S)
        self._service = f"{LOOPBACK}:{settings.service.port}"
        self.scrapes: list[Scrape] = []
        # Ray goes on for a while to tell of workers that earlier tests had on its nodes.
        self._gone = {worker for target in self.targets for worker in WORKER.findall(fetch(f"{target}/metrics"))}

    def _every_node(self, deadline_s: float) -> list[str]:
        """Ray writes its list every five seconds: the first time perhaps before there was a node beside the head."""
        while True:
            listed = json.loads(self._discovered.read_bytes()) if self._discovered.exists() else []
            targets = [target for group in listed for target in group["targets"]]
            if len(targets) > len(NODES) + 1:  # and the head, and the dashboard
                return targets
            assert time.monotonic() < deadline_s, targets
            time.sleep(SCRAPE_EVERY_S)

    def scrape(self) -> None:
        fetch(f"{self._service}/readyz")  # as the kubelet does: then it knows whether it leads
        for target in [*self.targets, self._service]:
            labels = {"namespace": "demo", "pod": target, "ray_io_cluster": "oncesign", "ray_io_group": "io"}
            page = [
                line for line in fetch(f"{target}/metrics").splitlines() if not self._gone & {*WORKER.findall(line)}
            ]
            self.scrapes.append(Scrape(time.time(), labels, "\n".join(page) + "\n"))

    def until(self, holds: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + SEEN_WITHIN_S
        while True:
            self.scrape()
            if holds():
                return
            assert time.monotonic() < deadline_s, (self.totals(), self.lag())
            time.sleep(SCRAPE_EVERY_S)

    def lines(self) -> list[str]:
        """What was told of the pipeline at the last look."""
        last = self.scrapes[-len(self.targets) - 1 :]
        return [line for page in last for line in page.text.splitlines() if line.startswith("ray_oncesign_")]

    def has_seen(self, rows: int) -> bool:
        """Whether every stage has told of so many, and the supervisor that nothing waits."""
        read, signed, rejected, verified = self.totals()
        lag = self.lag()
        return rows == read == signed + rejected == verified and bool(lag) and all(one.endswith(" 0.0") for one in lag)

    def totals(self) -> list[float]:
        """Rows read, signed, rejected, verified."""
        return [self.total(f"ray_oncesign_{name}_total") for name in ("read", "signed", "rejected", "verified")]

    def lag(self) -> list[str]:
        return [line for line in self.lines() if line.startswith("ray_oncesign_lag_batches")]

    def total(self, metric: str) -> float:
        return sum(float(line.rsplit(" ", 1)[1]) for line in self.lines() if line.startswith(metric))

    def ask(self, queries: dict[str, str]) -> tuple[set[str], set[str]]:
        """Those with data, and those that name a metric which is not there."""
        found = evaluate(queries, self.scrapes[-1].at_s, scrapes=self.scrapes)
        return {n for n, a in found.items() if a.elements}, {n for n, a in found.items() if a.unknown}


def fetch(address: str) -> str:
    """With what Prometheus adds by itself."""
    try:
        with urllib.request.urlopen(f"http://{address}", timeout=10) as page:
            return f"{page.read().decode()}\nup 1\n"
    except OSError:  # not up yet
        return "up 0\n"


def test_every_panel_has_data_and_no_alert_fires(cluster: Cluster, groups: Groups) -> None:
    built("promql")
    prometheus = Prometheus(groups, cluster.settings)
    job = cluster.sign()
    try:
        stock(cluster.settings, ROWS, seed=1, invalid=INVALID)
        cluster.run("keys", "create", "--count", str(KEYS))
        prometheus.until(lambda: prometheus.has_seen(ROWS))
        stock(cluster.settings, ROWS, seed=2, invalid=INVALID)
        prometheus.until(lambda: prometheus.has_seen(2 * ROWS))
    finally:
        job.kill()
        job.communicate()
    all_is_shown(prometheus)
    no_alert_fires(prometheus)
    figures_are_right(prometheus)
    labels_name_nobody(prometheus)


def all_is_shown(prometheus: Prometheus) -> None:
    for board in dashboards().values():
        queries = panels(board)
        assert prometheus.ask(queries) == (set(queries), set())
        misspelt = {name: query.replace("_total", "_totals") for name, query in queries.items() if "_total" in query}
        assert prometheus.ask(misspelt) == (set(), set(misspelt))


def no_alert_fires(prometheus: Prometheus) -> None:
    assert prometheus.ask({name: rule["expr"] for name, rule in rules().items()}) == (set(), set())


def figures_are_right(prometheus: Prometheus) -> None:
    queries = {
        "signed": f"sum(ray_oncesign_signed_total) > {2 * ROWS * (1 - 2 * INVALID)}",
        "all": f"sum(ray_oncesign_signed_total) + sum(ray_oncesign_rejected_total) == {2 * ROWS}",
        "verified": f"sum(ray_oncesign_verified_total) == {2 * ROWS}",
        "violations": "sum(ray_oncesign_violations_total) == 0",
        "keys": f"sum(max by (state) (ray_oncesign_keys)) == {KEYS}",
        "batches": 'sum(ray_oncesign_batches_total{stage="read"}) == sum(ray_oncesign_batches_total{stage="commit"})',
    }
    assert prometheus.ask(queries)[0] == set(queries)


def labels_name_nobody(prometheus: Prometheus) -> None:
    for line in prometheus.lines():
        labels = line[line.index("{") + 1 : line.rindex("}")]
        assert not LABELS.sub("", re.sub(r'"[^"]*"', "", labels)).strip(","), line
        assert "0x" not in labels, line
        assert "payouts/" not in labels, line

"""Prometheus' own parser and engine, asked about series that are made up or were scraped."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from tests.manifests.rendered import built, named, render

TIMEOUT_S: Final = 60
INTERVAL: Final = "1m"
"""What Grafana would put for $__rate_interval."""


@dataclass(frozen=True)
class Scrape:
    """What a target served."""

    at_s: float
    labels: Mapping[str, str]
    text: str


@dataclass(frozen=True)
class Answer:
    """What a query has."""

    elements: int  #: with a number
    unknown: Sequence[str]  #: metrics that it names and that have no series


def evaluate(
    queries: Mapping[str, str], at_s: float, *, series: str = "", scrapes: Sequence[Scrape] = ()
) -> dict[str, Answer]:
    """`series` in the language of promtool's rule tests, a value a minute.

    Raises AssertionError with what Prometheus does not like.
    """
    asked = {"series": series, "scrapes": [asdict(scrape) for scrape in scrapes], "at_s": at_s, "queries": queries}
    argv = [built("promql")]
    done = subprocess.run(argv, input=json.dumps(asked), capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    return {name: Answer(**found) for name, found in json.loads(done.stdout).items()}


def rules() -> dict[str, dict[str, Any]]:
    """Every alert by its name."""
    groups = named(render("monitoring"), "PrometheusRule")["spec"]["groups"]
    found = [rule for group in groups for rule in group["rules"]]
    assert len({rule["alert"] for rule in found}) == len(found)
    return {rule["alert"]: rule for rule in found}


def dashboards() -> dict[str, dict[str, Any]]:
    """Every dashboard by the name of its file."""
    data = named(render("monitoring"), "ConfigMap", "oncesign-dashboard")["data"]
    return {name: json.loads(text) for name, text in data.items()}


def panels(dashboard: Mapping[str, Any]) -> dict[str, str]:
    """Its queries as Grafana sends them, by panel."""
    return {
        f"{panel['title']}, {target['refId']}": target["expr"]
        .replace("$__rate_interval", INTERVAL)
        .replace("$namespace", ".*")
        for panel in dashboard["panels"]
        for target in panel["targets"]
    }

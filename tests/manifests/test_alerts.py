"""Alerts fire on what they are for and are silent otherwise, as Prometheus itself evaluates them."""

from __future__ import annotations

import re
from typing import Final

import pytest

from tests.manifests.prometheus import dashboards, evaluate, panels, rules

pytestmark = pytest.mark.timeout(900)  # the first run builds the evaluator

POINTS: Final = 180
"""Minutes of each series."""

OURS: Final = "oncesign_key_manager_"
PIPELINE: Final = "ray_oncesign_"
GOING: Final = f'{PIPELINE}lag_batches{{source="payouts",state="going"}}'
HEALTHY: Final = {
    "leader": "1+0x180",
    "writes_failing": "0+0x180",
    "streams_halted": "0+0x180",
    "lock_oldest_seconds": "2+0x180",
    "queue_oldest_seconds": "0+0x180",
    "fence": "7+0x90 12+0x89",
    'requests_total{route="/v1/assign",result="succeeded"}': "0+60x180",
    'requests_total{route="/v1/assign",result="failed"}': "0+1x3 3+0x176",
    'requests_total{route="/v1/assign",result="denied"}': "0+3x180",
    f"{PIPELINE}violations_total": "0+0x180",
    GOING: "0+0x159 90-10x9 0+0x10",
    f"{PIPELINE}rounds_total": "0+60x180",
    f"{PIPELINE}rounds_aborted_total": "0+0x170 2+0x9",
    f'{PIPELINE}restarts_total{{stage="signer"}}': "0+0x150 3+0x29",
    f'{PIPELINE}actors{{stage="signer"}}': "3+0x180",
    "up": "1+0x180",
}
"""A quiet day: the lead changes once, a restart fails requests, signers are made anew, rows come all at once."""

SICK: Final[dict[str, dict[str, str | None]]] = {
    "KeyManagerAbsent": {"leader": None},
    "KeyManagerNotLeading": {"leader": "1+0x100 0+0x79"},
    "KeyManagerCannotWrite": {"writes_failing": "0+0x100 1+0x79"},
    "StreamHalted": {
        "streams_halted": "0+0x100 2+0x79",
        f'{PIPELINE}lag_batches{{source="payouts",state="halted"}}': "0+0x100 9+1x79",
    },
    "KeyLockedLong": {"lock_oldest_seconds": "0+60x180"},
    "KeysShort": {"queue_oldest_seconds": "0+0x160 0+60x19"},
    "KeyManagerReplacedOften": {"fence": "7+1x180"},
    "ServiceRequestsFail": {'requests_total{route="/v1/assign",result="failed"}': "0+60x180"},
    "ServiceRequestsDenied": {'requests_total{route="/v1/assign",result="denied"}': "0+600x180"},
    "ViolationFound": {f"{PIPELINE}violations_total": "_x170 1+0x9"},
    "PipelineStands": {GOING: "0+0x159 4+0x20", f"{PIPELINE}rounds_total": "0+60x159 9540+0x20"},
    "LagGrows": {GOING: "0+0x100 5+1x50 55+0x29"},
    "RoundsAbortedOften": {f"{PIPELINE}rounds_aborted_total": "0+1x180"},
    "ActorsRestartedOften": {f'{PIPELINE}restarts_total{{stage="signer"}}': "0+0x150 0+1x29"},
    "RayPodUnreachable": {"up": "1+0x100 0+0x79"},
}
"""What each alert is for: which series are otherwise, and how they go then."""


def fires(series: dict[str, str], queries: dict[str, str]) -> set[str]:
    """The queries that have a result at the end."""
    lines = "".join(f"{_full(name)} {values}\n" for name, values in series.items())
    found = evaluate(queries, (POINTS - 1) * 60, series=lines)
    return {name for name, answer in found.items() if answer.elements}


def _full(name: str) -> str:
    if name == "up":
        return 'up{namespace="demo",pod="io-1",ray_io_cluster="oncesign",ray_io_group="io"}'
    metric, _, labels = name.partition("{")
    prefix = "" if metric.startswith(PIPELINE) else OURS
    return f'{prefix}{metric}{{namespace="demo",{labels or "}"}'


def expressions() -> dict[str, str]:
    return {name: rule["expr"] for name, rule in rules().items()}


def test_a_quiet_day_has_no_alert() -> None:
    assert fires(HEALTHY, expressions()) == set()


def test_there_is_a_case_for_each_alert() -> None:
    assert set(SICK) == set(rules())


@pytest.mark.parametrize("alert", SICK)
def test_an_alert_fires_on_what_it_is_for_and_no_other_does(alert: str) -> None:
    series = {name: values for name, values in (HEALTHY | SICK[alert]).items() if values is not None}
    assert fires(series, expressions()) == {alert}


def test_a_pipeline_whose_consumers_are_all_gone_stands() -> None:
    series = {name: values for name, values in HEALTHY.items() if "rounds" not in name} | {GOING: "4+0x180"}
    assert "PipelineStands" in fires(series, expressions())


def test_what_an_alert_waits_for_is_bounded() -> None:
    for name, rule in rules().items():
        minutes = re.fullmatch(r"(\d+)m", rule.get("for", "0m"))
        assert minutes, name
        assert int(minutes[1]) <= (3 if rule["labels"]["severity"] == "critical" else 10), name


def test_a_query_that_is_none_is_an_error() -> None:
    with pytest.raises(AssertionError, match="parse error"):
        fires(HEALTHY, {"broken": "max by (namespace) (up"})


def test_the_queries_of_the_key_managers_dashboard_have_results() -> None:
    """Those of the pipeline's are asked of a real one: see integration/test_metrics.py."""
    queries = {name: query.replace("[1m]", "[5m]") for name, query in panels(dashboards()["key-manager.json"]).items()}
    others = {'keys{state="free"}': "3+0x180", "queue_length": "0+0x180", "assignments": "1+0x180"}
    assert fires(HEALTHY | others, queries) == set(queries)

"""Alerts fire on what they are for and are silent otherwise, as Prometheus itself evaluates them."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any, Final

import pytest

from tests.manifests.rendered import built, named, render

pytestmark = pytest.mark.timeout(900)  # the first run builds the evaluator

POINTS: Final = 180
"""Minutes of each series."""

OURS: Final = "oncesign_key_manager_"
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
    "up": "1+0x180",
}
"""A quiet day, with one change of the lead and the failed requests of a restart."""

SICK: Final = {
    "KeyManagerAbsent": ("leader", None),
    "KeyManagerNotLeading": ("leader", "1+0x100 0+0x79"),
    "KeyManagerCannotWrite": ("writes_failing", "0+0x100 1+0x79"),
    "StreamHalted": ("streams_halted", "0+0x100 2+0x79"),
    "KeyLockedLong": ("lock_oldest_seconds", "0+60x180"),
    "KeysShort": ("queue_oldest_seconds", "0+0x160 0+60x19"),
    "KeyManagerReplacedOften": ("fence", "7+1x180"),
    "ServiceRequestsFail": ('requests_total{route="/v1/assign",result="failed"}', "0+60x180"),
    "ServiceRequestsDenied": ('requests_total{route="/v1/assign",result="denied"}', "0+600x180"),
    "RayPodUnreachable": ("up", "1+0x100 0+0x79"),
}
"""What each alert is for: which series, and how it goes then."""


def rules() -> dict[str, dict[str, Any]]:
    groups = named(render("monitoring"), "PrometheusRule")["spec"]["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def fires(series: dict[str, str], queries: dict[str, str]) -> set[str]:
    """The queries that have a result at the end."""
    lines = "".join(f"  {_full(name)} {values}\n" for name, values in series.items())
    asked = {"series": f"load 1m\n{lines}", "at_s": (POINTS - 1) * 60, "queries": queries}
    done = subprocess.run(
        [built("promql")], input=json.dumps(asked), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return {name for name, count in json.loads(done.stdout).items() if count}


def _full(name: str) -> str:
    if name == "up":
        return 'up{namespace="demo",pod="io-1",ray_io_cluster="oncesign",ray_io_group="io"}'
    metric, _, labels = name.partition("{")
    return f'{OURS}{metric}{{namespace="demo",{labels or "}"}'


def expressions() -> dict[str, str]:
    return {name: rule["expr"] for name, rule in rules().items()}


def test_a_quiet_day_has_no_alert() -> None:
    assert fires(HEALTHY, expressions()) == set()


def test_there_is_a_case_for_each_alert() -> None:
    assert set(SICK) == set(rules())


@pytest.mark.parametrize("alert", SICK)
def test_an_alert_fires_on_what_it_is_for_and_no_other_does(alert: str) -> None:
    name, values = SICK[alert]
    series = {key: value for key, value in HEALTHY.items() if key != name} | ({name: values} if values else {})
    assert fires(series, expressions()) == {alert}


def test_what_an_alert_waits_for_is_bounded() -> None:
    for name, rule in rules().items():
        minutes = re.fullmatch(r"(\d+)m", rule.get("for", "0m"))
        assert minutes, name
        assert int(minutes[1]) <= (3 if rule["labels"]["severity"] == "critical" else 10), name


def test_a_query_that_is_none_is_an_error() -> None:
    with pytest.raises(AssertionError, match="parse error"):
        fires(HEALTHY, {"broken": "max by (namespace) (up"})


def test_the_queries_of_the_dashboard_have_results() -> None:
    dashboard = json.loads(named(render("monitoring"), "ConfigMap", "oncesign-dashboard")["data"]["key-manager.json"])
    queries = {
        f"{panel['id']}{target['refId']}": target["expr"].replace("$__rate_interval", "5m").replace("$namespace", ".*")
        for panel in dashboard["panels"]
        for target in panel["targets"]
    }
    others = {'keys{state="free"}': "3+0x180", "queue_length": "0+0x180", "assignments": "1+0x180"}
    assert fires(HEALTHY | others, queries) == set(queries)

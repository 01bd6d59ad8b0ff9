"""Each alert can be looked up, and what alerts and dashboards ask for is what key manager and pipeline tell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from pipeline.telemetry import INSTRUMENTS, Kind
from tests.manifests.pods import pods
from tests.manifests.prometheus import dashboards, rules
from tests.manifests.rendered import ROOT, Manifest, named, of_kind, render
from tests.unit.service_world import opened

pytestmark = pytest.mark.timeout(900)  # where there is no kubectl, the first run builds kustomize

OVERLAY: Final = "monitoring"
PAGE: Final = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
OURS: Final = re.compile(r"\boncesign_[a-z_]+")
PIPELINES: Final = re.compile(r"\bray_oncesign_[a-z_]+")
OF_PROMETHEUS: Final = re.compile(r"\b(up|ray_(?!oncesign_)[a-z_]+)\{")
ENDINGS: Final = {Kind.COUNTER: ("_total",), Kind.GAUGE: ("",), Kind.HISTOGRAM: ("_bucket", "_sum", "_count")}
SERIES: Final = {f"ray_{one.name}{ending}" for one in INSTRUMENTS for ending in ENDINGS[one.kind]}
"""What Prometheus sees of the pipeline."""


def asked() -> Iterator[str]:
    yield from (rule["expr"] for rule in rules().values())
    for board in dashboards().values():
        yield from (target["expr"] for panel in board["panels"] for target in panel["targets"])
        yield from (variable["query"] for variable in board["templating"]["list"])


def untold(texts: list[str]) -> set[str]:
    """What is asked of the pipeline, and is not there."""
    return {name for text in texts for name in PIPELINES.findall(text)} - SERIES


def runbook(page: str) -> set[str]:
    alerts = page.split("\n## Alerts\n")[1].split("\n## ", maxsplit=1)[0]
    return set(re.findall(r"^### (\w+)$", alerts, re.MULTILINE))


def test_each_alert_has_a_section_of_its_name_and_each_section_an_alert() -> None:
    assert set(rules()) == runbook(PAGE)
    for name, rule in rules().items():
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("critical", "warning")


def test_a_section_that_is_missing_is_found() -> None:
    assert runbook(PAGE.replace("### StreamHalted", "### Halted")) != set(rules())


async def test_everything_asked_for_is_told_by_the_key_manager(tmp_path: Path) -> None:
    async with opened(tmp_path) as office:
        await office.get("/v1/keys")
        async with office.client.get("/metrics") as response:
            told = set(OURS.findall(await response.text()))
    wanted = {name for text in asked() for name in OURS.findall(text)}
    assert len(wanted) > 8
    assert wanted <= told
    assert not any(OF_PROMETHEUS.search(text) and "ray_io_cluster" not in text for text in asked())


def test_everything_asked_for_is_told_by_the_pipeline() -> None:
    texts = list(asked())
    assert not untold(texts)
    assert untold([text.replace("ray_oncesign_rounds_total", "ray_oncesign_round_total") for text in texts])


def test_each_figure_of_the_pipeline_is_on_a_dashboard_and_in_the_table() -> None:
    section = PAGE.split("\n## Metrics\n")[1].split("\n## ", maxsplit=1)[0]
    described = {name for line in section.splitlines() for name in PIPELINES.findall(line) if line.startswith("|")}
    shown = {name for text in asked() for name in PIPELINES.findall(text)}
    for one in INSTRUMENTS:
        names = {f"ray_{one.name}{ending}" for ending in ENDINGS[one.kind]}
        assert shown & names, one.name
        assert described & (names | {f"ray_{one.name}"}), one.name
    assert described <= SERIES | {f"ray_{one.name}" for one in INSTRUMENTS}


@pytest.mark.parametrize("name", ["key-manager.json", "pipeline.json"])
def test_panels_of_a_dashboard_do_not_overlap(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    board = dashboards()[name]
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_every_dashboard_is_looked_at() -> None:
    boards = dashboards()
    assert set(boards) == {"key-manager.json", "pipeline.json"}
    assert len({board["uid"] for board in boards.values()}) == len(boards)


@pytest.mark.parametrize("monitor", ["oncesign-key-manager", "oncesign-ray"])
@pytest.mark.parametrize("overlay", ["overlays/demo", "overlays/production"])
def test_each_monitor_finds_pods_with_the_port_that_it_asks(overlay: str, monitor: str) -> None:
    spec = named(render(OVERLAY), "PodMonitor", monitor)["spec"]
    wanted = spec["selector"]["matchLabels"].items()
    selected = [pod for pod in pods(render(overlay)) if wanted <= pod.labels.items()]
    assert selected
    for endpoint in spec["podMetricsEndpoints"]:
        for pod in selected:
            ports = {port["name"] for container in pod.containers for port in container.get("ports", [])}
            assert endpoint["port"] in ports, pod.name


def test_every_monitor_is_looked_at() -> None:
    monitors: list[Manifest] = of_kind(render(OVERLAY), "PodMonitor")
    assert {item["metadata"]["name"] for item in monitors} == {"oncesign-key-manager", "oncesign-ray"}

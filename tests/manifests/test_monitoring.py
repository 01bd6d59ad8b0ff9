"""Each alert can be looked up, and what alerts and dashboard ask for is what the key manager tells."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.manifests.pods import pods
from tests.manifests.rendered import ROOT, Manifest, named, of_kind, render
from tests.unit.service_world import opened

pytestmark = pytest.mark.timeout(900)  # where there is no kubectl, the first run builds kustomize

OVERLAY: Final = "monitoring"
PAGE: Final = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
OURS: Final = re.compile(r"\boncesign_[a-z_]+")
OF_PROMETHEUS: Final = re.compile(r"\b(up|ray_[a-z_]+)\{")


def rules() -> list[dict[str, Any]]:
    groups = named(render(OVERLAY), "PrometheusRule")["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    data = named(render(OVERLAY), "ConfigMap", "oncesign-dashboard")["data"]
    made: dict[str, Any] = json.loads(data["key-manager.json"])
    return made


def asked() -> Iterator[str]:
    yield from (rule["expr"] for rule in rules())
    yield from (target["expr"] for panel in dashboard()["panels"] for target in panel["targets"])
    yield from (variable["query"] for variable in dashboard()["templating"]["list"])


def runbook(page: str) -> set[str]:
    alerts = page.split("\n## Alerts\n")[1].split("\n## ", maxsplit=1)[0]
    return set(re.findall(r"^### (\w+)$", alerts, re.MULTILINE))


def test_each_alert_has_a_section_of_its_name_and_each_section_an_alert() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))
    assert set(names) == runbook(PAGE)
    for rule in rules():
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("critical", "warning")


def test_a_section_that_is_missing_is_found() -> None:
    assert runbook(PAGE.replace("### StreamHalted", "### Halted")) != {rule["alert"] for rule in rules()}


async def test_everything_asked_for_is_told_by_the_key_manager(tmp_path: Path) -> None:
    async with opened(tmp_path) as office:
        await office.get("/v1/keys")
        async with office.client.get("/metrics") as response:
            told = set(OURS.findall(await response.text()))
    wanted = {name for text in asked() for name in OURS.findall(text)}
    assert len(wanted) > 8
    assert wanted <= told
    assert not any(OF_PROMETHEUS.search(text) and "ray_io_cluster" not in text for text in asked())


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(dashboard()["panels"])


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

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest

from jobs import leave


def processes(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    found = [SimpleNamespace(info={"name": name}) for name in names]
    monkeypatch.setattr(psutil, "process_iter", lambda _attributes: iter(found))


def test_where_no_node_of_ray_runs_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    processes(monkeypatch, "bash", "python")
    monkeypatch.setattr(leave, "connect", lambda _settings: pytest.fail("it would look for a node for a minute"))
    leave.main()


def test_a_node_is_known_by_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    processes(monkeypatch, "bash", "raylet")
    assert leave.node_runs()

"""docs/key-manager.md names every route and every code, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.service.openapi import OPEN_ROUTES
from pipeline.service.problem import MEANINGS
from pipeline.service.route import ROUTES

MANUAL = (Path(__file__).resolve().parents[2] / "docs" / "key-manager.md").read_text(encoding="utf-8")


def test_every_route_is_described() -> None:
    described = set(re.findall(r"`((?:GET|POST) /[^`?]*)`", MANUAL))
    assert described == {f"{route.method} {route.path}" for route in ROUTES} | {
        f"GET {path}" for path, *_ in OPEN_ROUTES
    }


def test_every_code_is_described_with_its_status() -> None:
    table = MANUAL.split("## Errors")[1].split("## Metrics")[0]
    described = dict(re.findall(r"^\| `([a-z_]+)` \| (\d{3}) \|", table, re.MULTILINE))
    assert described == {code.value: str(int(meaning.status)) for code, meaning in MEANINGS.items()}

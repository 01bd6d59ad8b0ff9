"""The programs that render and ask are being built since the session began; a test that needs one says what failed."""

from __future__ import annotations

import pytest

from tests.early import Early


@pytest.fixture(scope="session", autouse=True)
def _programs(early: Early) -> None:
    early.answer("tests/manifests/")

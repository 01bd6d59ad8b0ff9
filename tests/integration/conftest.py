"""What tests of a whole pipeline share; each module says by its own `settings` on which servers."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from pipeline.custody.sealing import Kek
from pipeline.settings import Settings
from tests.command_line import Ended, Oncesign, environment, in_process


@pytest.fixture
def kek(settings: Settings) -> Kek:
    return Kek.load(settings.kek_path)


@pytest.fixture
def oncesign(settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Oncesign:
    run = in_process(monkeypatch, capfd, settings.data_dir)

    def with_settings(*arguments: str, env: Mapping[str, str] | None = None) -> Ended:
        return run(*arguments, env=environment(settings) | dict(env or {}))

    return with_settings

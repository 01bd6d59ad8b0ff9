"""The driver counts rows for its reports; that it cannot must not end a pipeline whose actors wait for Postgres."""

from __future__ import annotations

from typing import cast

import pytest

from actors.supervisor import PipelineStatus
from jobs.driver import Driver, Wish
from pipeline.adapters.ledger import PostgresLedger
from pipeline.errors import DatabaseUnavailable
from pipeline.settings import Settings

SIGNED = 7


class Ledger:
    """Away for the first three questions."""

    def __init__(self) -> None:
        self.asked = 0

    async def signed(self) -> int:
        self.asked += 1
        if self.asked <= 3:
            raise DatabaseUnavailable("terminating connection", address="here")
        return SIGNED


async def test_a_postgres_that_is_away_is_told_once_and_waited_for(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def total(_: Settings) -> int:
        return SIGNED

    monkeypatch.setattr("actors.composition.tables.total", total)
    driver = Driver(Settings(), Wish(until_drained=False, verify=False), "job")
    ledger = cast("PostgresLedger", Ledger())
    for _ in range(3):
        await driver._count(ledger, PipelineStatus())
    assert capfd.readouterr().err.count("rows cannot be counted now: Postgres at here") == 1
    await driver._count(ledger, PipelineStatus())
    assert driver._progress(PipelineStatus())["signed"] == SIGNED

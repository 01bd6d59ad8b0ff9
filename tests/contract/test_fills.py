"""Nonces before a key's first one: sworn once, with their fees, and never beside a batch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from pipeline.adapters.ledger import PostgresLedger
from pipeline.errors import DatabaseUnavailable, FillRefused, LedgerRefused
from pipeline.fill import Fill
from pipeline.ports import LedgerEntry
from pipeline.stream import Stream
from pipeline.testing.ledger import TwinLedger

Tested = PostgresLedger | TwinLedger

SENDER, OTHER = "0x" + "11" * 20, "0x" + "22" * 20
FILL = Fill(1, SENDER, 3, 7, 100, 2)  # nonces 3 to 9
ENTRY = LedgerEntry(Stream("payouts", 0), 1, "aa" * 32, 1, SENDER, 10, 5, 5, "signer-0")


@pytest.fixture(params=["twin", pytest.param("postgres", marks=pytest.mark.integration)])
async def ledger(request: pytest.FixtureRequest) -> AsyncIterator[Tested]:
    made: Tested = TwinLedger()
    if request.param == "postgres":
        made = PostgresLedger(request.getfixturevalue("postgres"))
    yield made
    await made.close()


async def test_a_fill_is_sworn_once_and_keeps_its_fees(ledger: Tested) -> None:
    assert await ledger.record_fill(FILL, 10) == FILL
    assert await ledger.record_fill(replace(FILL, fee_cap=999, priority_fee=9), 10) == FILL
    assert (await ledger.watermarks())[1, SENDER] == 10


@pytest.mark.parametrize(("first", "count"), [(3, 6), (2, 2), (9, 1), (0, 10)])
async def test_no_nonce_is_filled_twice(ledger: Tested, first: int, count: int) -> None:
    await ledger.record_fill(FILL, 10)
    with pytest.raises(FillRefused, match="filled already"):
        await ledger.record_fill(replace(FILL, first_nonce=first, count=count), 10)
    await ledger.record_fill(replace(FILL, first_nonce=0, count=3), 10)
    await ledger.record_fill(replace(FILL, sender=OTHER), 10)


async def test_what_the_pool_may_give_out_is_not_filled(ledger: Tested) -> None:
    with pytest.raises(FillRefused, match="from 9 on"):
        await ledger.record_fill(FILL, 9)
    await ledger.record(replace(ENTRY, first_nonce=8))
    with pytest.raises(FillRefused, match="from 8 on"):
        await ledger.record_fill(FILL, 13)
    await ledger.record_fill(replace(FILL, count=5), 13)


async def test_a_batch_begins_after_what_was_filled(ledger: Tested) -> None:
    await ledger.record_fill(FILL, 10)
    with pytest.raises(LedgerRefused, match="the batch would start at 9"):
        await ledger.record(replace(ENTRY, first_nonce=9))
    assert await ledger.record(ENTRY)
    assert await ledger.record_fill(FILL, 15) == FILL  # a repeat stays as good as it was


async def test_nothing_is_filled_beside_a_recovery(ledger: Tested, request: pytest.FixtureRequest) -> None:
    other = ledger.client() if isinstance(ledger, TwinLedger) else PostgresLedger(request.getfixturevalue("postgres"))
    assert await other.bar_signers()
    with pytest.raises(DatabaseUnavailable):
        await ledger.record_fill(FILL, 10)
    await other.close()

"""The second guard: what it takes, what it repeats, what it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from pipeline.adapters.ledger import PostgresLedger
from pipeline.errors import LedgerRefused
from pipeline.ports import LedgerEntry
from pipeline.settings import PostgresSettings
from pipeline.stream import Stream

pytestmark = pytest.mark.integration

SENDER = "0x" + "11" * 20
ENTRY = LedgerEntry(Stream("payouts", 0), 1, "aa" * 32, 1, SENDER, 0, 10, 5, "signer-0")


@pytest.fixture
async def ledger(postgres: PostgresSettings) -> AsyncIterator[PostgresLedger]:
    made = PostgresLedger(postgres)
    yield made
    await made.close()


async def test_a_new_row_is_written_and_the_same_row_is_repeated(ledger: PostgresLedger) -> None:
    assert await ledger.record(ENTRY) is True
    assert await ledger.record(replace(ENTRY, worker="signer-1")) is False
    assert await ledger.entry(ENTRY.stream, 1) == ENTRY
    assert await ledger.watermarks() == {(1, SENDER): 10}
    assert await ledger.heads() == {ENTRY.stream: 1}
    assert await ledger.signed() == 10


@pytest.mark.parametrize(
    "change",
    [{"digest": "bb" * 32}, {"first_nonce": 1}, {"count": 9}, {"fence": 6}, {"chain_id": 2}, {"sender": "0x" + "22" * 20}],
    ids=lambda change: next(iter(change)),
)
async def test_a_second_answer_for_a_batch_is_refused(ledger: PostgresLedger, change: dict[str, object]) -> None:
    await ledger.record(ENTRY)
    with pytest.raises(LedgerRefused):
        await ledger.record(replace(ENTRY, **change))  # type: ignore[arg-type] # one field at a time
    assert await ledger.entry(ENTRY.stream, 1) == ENTRY


@pytest.mark.parametrize("first_nonce", [0, 5, 9, 11, 100])
async def test_only_the_next_nonce_of_a_sender_is_taken(ledger: PostgresLedger, first_nonce: int) -> None:
    await ledger.record(ENTRY)
    with pytest.raises(LedgerRefused):
        await ledger.record(replace(ENTRY, seq=2, digest="bb" * 32, first_nonce=first_nonce))
    assert await ledger.entry(ENTRY.stream, 2) is None
    assert await ledger.watermarks() == {(1, SENDER): 10}
    assert await ledger.record(replace(ENTRY, seq=2, digest="bb" * 32, first_nonce=10)) is True


async def test_a_batch_without_a_signable_row_needs_no_sender(ledger: PostgresLedger) -> None:
    empty = replace(ENTRY, sender="", first_nonce=0, count=0)
    assert await ledger.record(empty) is True
    assert await ledger.record(empty) is False
    assert await ledger.watermarks() == {}


async def test_of_two_at_once_one_writes(postgres: PostgresSettings) -> None:
    ledgers = [PostgresLedger(postgres) for _ in range(6)]
    answers = await asyncio.gather(*(ledger.record(ENTRY) for ledger in ledgers))
    assert sorted(answers) == [False] * 5 + [True]
    rivals = [replace(ENTRY, seq=2 + i, digest=f"{i:02x}" * 32, first_nonce=10) for i in range(6)]
    results = await asyncio.gather(
        *(ledger.record(rival) for ledger, rival in zip(ledgers, rivals, strict=True)), return_exceptions=True
    )
    assert sum(result is True for result in results) == 1
    assert sum(isinstance(result, LedgerRefused) for result in results) == 5
    for ledger in ledgers:
        await ledger.close()


async def test_the_largest_nonces_fit(ledger: PostgresLedger) -> None:
    high = replace(ENTRY, first_nonce=2**64 - 12, count=10)
    await ledger.record(high)
    assert await ledger.entry(high.stream, 1) == high

"""What was broadcast: which batch is next, what stays decided, and what is never offered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import psycopg
import pytest

from pipeline.adapters import broadcasts as adapter
from pipeline.adapters.broadcasts import PostgresBroadcasts
from pipeline.adapters.ledger import PostgresLedger
from pipeline.adapters.outcomes import PostgresOutcomes
from pipeline.adapters.postgres import connection_string
from pipeline.errors import DatabaseUnavailable, NotLeader
from pipeline.ethereum.signed import SignedHeader
from pipeline.ports import Ledger, LedgerEntry, Place
from pipeline.settings import PostgresSettings
from pipeline.stages.account import Transaction
from pipeline.stages.broadcaster import Broadcasts, Fate, NextBatch
from pipeline.stages.inspection import Finding, Sighting
from pipeline.stages.node import Receipt
from pipeline.stages.violation import Violation, ViolationKind
from pipeline.stream import Stream
from pipeline.testing.broadcasts import TwinBroadcasts
from pipeline.testing.ledger import TwinLedger
from pipeline.testing.outcomes import TwinOutcomes
from pipeline.testing.source import TwinSource

CHAIN, OTHER = 1, 5
STREAM = Stream("payouts", 1)
TOPIC = "tx.signed"
A, B = "0x" + "11" * 20, "0x" + "22" * 20
LIMIT = 10
MINED = Receipt(7, succeeded=True, gas_used=21_000)


@dataclass
class Tables:
    """One database: broadcasts under test, and what ledger and verifier left there."""

    broadcasts: Broadcasts
    ledger: Ledger
    outcomes: Any
    seq: int = 0

    async def sign(self, sender: str, first: int, count: int, *, chain: int = CHAIN, verified: bool = True) -> Place:
        self.seq += 1
        entry = LedgerEntry(STREAM, self.seq, "aa" * 32, chain, sender, first, count, 5, "signer-0")
        await self.ledger.record(entry)
        place = Place(TOPIC, 0, self.seq)
        if verified:
            await self.verify(entry, place)
        return place

    async def verify(self, entry: LedgerEntry, place: Place, **finding: Any) -> None:
        header = SignedHeader(
            entry.stream, entry.seq, entry.chain_id, entry.sender, entry.first_nonce, entry.count, entry.digest, 5, ""
        )
        await self.outcomes.save(Finding(sightings=[Sighting(header, place, 0)], **finding), TOPIC, 0, place.offset + 1)

    async def next(self, *besides: str, chain: int = CHAIN) -> list[tuple[str, int]]:
        found = await self.broadcasts.next_batches(chain, besides, LIMIT)
        return [(batch.sender, batch.first_nonce) for batch in found]


@pytest.fixture(params=["twin", pytest.param("postgres", marks=pytest.mark.integration)])
async def tables(request: pytest.FixtureRequest) -> AsyncIterator[Tables]:
    if request.param == "twin":
        twin_ledger = TwinLedger()
        twin_outcomes = TwinOutcomes({"payouts": TwinSource(8)}, twin_ledger)
        yield Tables(TwinBroadcasts(twin_ledger, twin_outcomes), twin_ledger, twin_outcomes)
        return
    settings: PostgresSettings = request.getfixturevalue("postgres")
    ledger, outcomes, broadcasts = (
        PostgresLedger(settings),
        PostgresOutcomes(settings),
        PostgresBroadcasts(settings),
    )
    yield Tables(broadcasts, ledger, outcomes)
    for client in (ledger, outcomes, broadcasts):
        await client.close()


def fate(nonce: int, sender: str = A, **changes: Any) -> Fate:
    transaction = Transaction("payouts", nonce + 1, nonce, bytes([nonce]) * 32, b"raw")
    return replace(Fate(sender, transaction), **changes)


async def test_nothing_is_next_at_first(tables: Tables) -> None:
    assert await tables.next() == []
    assert await tables.broadcasts.undecided(CHAIN) == 0


async def test_each_sender_has_one_next_batch_with_its_place(tables: Tables) -> None:
    place = await tables.sign(A, 0, 3)
    await tables.sign(A, 3, 2)
    await tables.sign(B, 5, 1)
    assert await tables.next() == [(A, 0), (B, 5)]
    assert await tables.broadcasts.next_batches(CHAIN, [B], LIMIT) == [NextBatch(A, 0, place)]
    assert len(await tables.broadcasts.next_batches(CHAIN, [], 1)) == 1
    assert await tables.broadcasts.undecided(CHAIN) == 6


async def test_chains_are_apart(tables: Tables) -> None:
    await tables.sign(A, 0, 3)
    await tables.sign(A, 7, 3, chain=OTHER)
    assert await tables.next(chain=OTHER) == [(A, 7)]
    await tables.broadcasts.save(CHAIN, [fate(2, receipt=MINED)], {A: 3})
    assert await tables.next() == []
    assert await tables.next(chain=OTHER) == [(A, 7)]


async def test_a_decided_batch_gives_way_to_the_next(tables: Tables) -> None:
    await tables.sign(A, 4, 3)
    await tables.sign(A, 7, 2)
    await tables.broadcasts.save(CHAIN, [fate(n, takes=1) for n in (4, 5, 6)], {})
    assert await tables.next() == [(A, 4)]
    await tables.broadcasts.save(CHAIN, [fate(n, receipt=MINED) for n in (4, 5, 6)], {A: 7})
    assert await tables.next() == [(A, 7)]
    assert await tables.broadcasts.undecided(CHAIN) == 2


async def test_what_was_not_verified_is_not_next(tables: Tables) -> None:
    await tables.sign(A, 0, 3)
    await tables.sign(A, 3, 2, verified=False)
    assert [b.first_nonce for b in await tables.broadcasts.batches_at(CHAIN, {A: 0})] == [0]
    assert await tables.broadcasts.batches_at(CHAIN, {A: 3}) == []
    assert await tables.broadcasts.batches_at(CHAIN, {A: 1}) == []
    assert await tables.broadcasts.undecided(CHAIN) == 5


async def test_a_batch_with_a_violation_is_not_next(tables: Tables) -> None:
    place = await tables.sign(A, 0, 3, verified=False)
    entry = await tables.ledger.entry(STREAM, 1)
    assert entry is not None
    await tables.verify(entry, place, violations=[Violation(ViolationKind.NONCE_TWICE, "why", STREAM, 1)])
    assert await tables.next() == []


async def test_saving_nothing_is_nothing(tables: Tables) -> None:
    await tables.broadcasts.save(CHAIN, [], {})


@pytest.fixture
async def saved(postgres: PostgresSettings) -> AsyncIterator[PostgresBroadcasts]:
    made = PostgresBroadcasts(postgres)
    yield made
    await made.close()


def rows(settings: PostgresSettings) -> list[tuple[Any, ...]]:
    with psycopg.connect(connection_string(settings)) as connection:
        return connection.execute(
            "SELECT nonce::int, status, sends, detail, block_number, succeeded, gas_used::int FROM broadcasts"
            " ORDER BY nonce"
        ).fetchall()


@pytest.mark.integration
async def test_what_is_mined_stays_mined(saved: PostgresBroadcasts, postgres: PostgresSettings) -> None:
    await saved.save(CHAIN, [fate(0, reason="insufficient funds"), fate(1, takes=1), fate(2, takes=1)], {})
    assert [row[:4] for row in rows(postgres)] == [
        (0, "failed", 0, "insufficient funds"), (1, "sent", 1, ""), (2, "sent", 1, ""),
    ]  # fmt: skip
    await saved.save(
        CHAIN,
        [fate(0, takes=1), fate(1, receipt=MINED), fate(2, receipt=Receipt(7, succeeded=False, gas_used=30_000))],
        {},
    )
    await saved.save(CHAIN, [fate(1, takes=1), fate(2, reason="late")], {})
    assert rows(postgres) == [
        (0, "sent", 1, "", None, None, None),
        (1, "mined", 1, "", 7, True, 21_000),
        (2, "mined", 1, "", 7, False, 30_000),
    ]


@pytest.mark.integration
async def test_a_rows_fate_is_found(saved: PostgresBroadcasts) -> None:
    assert await saved.find("payouts", 1) is None
    await saved.save(CHAIN, [fate(0, receipt=MINED)], {})
    found = await saved.find("payouts", 1)
    assert found is not None
    assert (found["status"], found["block_number"], found["succeeded"]) == ("mined", 7, True)


@pytest.mark.integration
async def test_another_hash_does_not_take_a_nonces_row(saved: PostgresBroadcasts, postgres: PostgresSettings) -> None:
    await saved.save(CHAIN, [fate(0, takes=1)], {})
    other = Transaction("payouts", 9, 0, b"\xff" * 32, b"raw")
    await saved.save(CHAIN, [Fate(A, other, receipt=MINED)], {})
    assert [row[1] for row in rows(postgres)] == ["sent"]


@pytest.mark.integration
async def test_a_chain_has_one_broadcaster(
    saved: PostgresBroadcasts, postgres: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "CLAIM_S", 1.0)
    await saved.claim(CHAIN)
    second = PostgresBroadcasts(postgres)
    with pytest.raises(NotLeader, match="chain 1 has a broadcaster already"):
        await second.claim(CHAIN)
    await second.claim(OTHER)
    await saved.close()
    await second.claim(CHAIN)
    await second.close()


async def test_a_dead_server_is_named() -> None:
    gone = PostgresBroadcasts(PostgresSettings.model_validate({"dsn": "postgresql://nobody@127.0.0.1:1/none"}))
    with pytest.raises(DatabaseUnavailable, match=r"127\.0\.0\.1:1/none"):
        await gone.next_batches(CHAIN, [], 1)

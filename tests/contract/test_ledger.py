"""The second guard: what it takes, what it repeats, what it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from pipeline.adapters.ledger import PostgresLedger
from pipeline.adapters.postgres import connection_string
from pipeline.errors import DatabaseUnavailable, LedgerRefused
from pipeline.ports import LedgerEntry
from pipeline.settings import PostgresSettings
from pipeline.stream import Stream
from pipeline.testing.ledger import TwinLedger

Tested = PostgresLedger | TwinLedger

SENDER = "0x" + "11" * 20
ENTRY = LedgerEntry(Stream("payouts", 0), 1, "aa" * 32, 1, SENDER, 0, 10, 5, "signer-0")

ROUNDS = 40


@pytest.fixture(params=["twin", pytest.param("postgres", marks=pytest.mark.integration)])
async def ledger(request: pytest.FixtureRequest) -> AsyncIterator[Tested]:
    made = TwinLedger() if request.param == "twin" else PostgresLedger(request.getfixturevalue("postgres"))
    yield made
    await made.close()


async def test_a_new_row_is_written_and_the_same_row_is_repeated(ledger: Tested) -> None:
    assert await ledger.record(ENTRY) is True
    assert await ledger.record(replace(ENTRY, worker="signer-1")) is False
    assert await ledger.entry(ENTRY.stream, 1) == ENTRY
    assert await ledger.watermarks() == {(1, SENDER): 10}
    assert await ledger.heads() == {ENTRY.stream: 1}
    assert await ledger.signed() == 10


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "bb" * 32},
        {"first_nonce": 1},
        {"count": 9},
        {"fence": 6},
        {"chain_id": 2},
        {"sender": "0x" + "22" * 20},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_a_second_answer_for_a_batch_is_refused(ledger: Tested, change: dict[str, object]) -> None:
    await ledger.record(ENTRY)
    with pytest.raises(LedgerRefused):
        await ledger.record(replace(ENTRY, **change))  # type: ignore[arg-type] # one field at a time
    assert await ledger.entry(ENTRY.stream, 1) == ENTRY


@pytest.mark.parametrize("first_nonce", [0, 5, 9, 11, 100])
async def test_only_the_next_nonce_of_a_sender_is_taken(ledger: Tested, first_nonce: int) -> None:
    await ledger.record(ENTRY)
    with pytest.raises(LedgerRefused):
        await ledger.record(replace(ENTRY, seq=2, digest="bb" * 32, first_nonce=first_nonce))
    assert await ledger.entry(ENTRY.stream, 2) is None
    assert await ledger.watermarks() == {(1, SENDER): 10}
    assert await ledger.record(replace(ENTRY, seq=2, digest="bb" * 32, first_nonce=10)) is True


async def test_a_batch_without_a_signable_row_needs_no_sender(ledger: Tested) -> None:
    empty = replace(ENTRY, sender="", first_nonce=0, count=0)
    assert await ledger.record(empty) is True
    assert await ledger.record(empty) is False
    assert await ledger.watermarks() == {}


@pytest.mark.integration
async def test_of_two_at_once_one_writes(postgres: PostgresSettings) -> None:
    ledgers = [PostgresLedger(postgres) for _ in range(6)]
    for turn in range(ROUNDS):  # which of the table's keys notices first differs from time to time
        entry = replace(ENTRY, seq=1 + turn, first_nonce=turn * ENTRY.count)
        answers = await asyncio.gather(*(ledger.record(entry) for ledger in ledgers))
        assert sorted(answers) == [False] * 5 + [True]
    first = ROUNDS * ENTRY.count
    rivals = [replace(ENTRY, seq=1 + ROUNDS + i, digest=f"{i:02x}" * 32, first_nonce=first) for i in range(6)]
    results = await asyncio.gather(
        *(ledger.record(rival) for ledger, rival in zip(ledgers, rivals, strict=True)), return_exceptions=True
    )
    assert sum(result is True for result in results) == 1
    assert sum(isinstance(result, LedgerRefused) for result in results) == 5
    for ledger in ledgers:
        await ledger.close()


async def test_the_largest_nonces_fit(ledger: Tested) -> None:
    high = replace(ENTRY, first_nonce=2**64 - 12, count=10)
    await ledger.record(high)
    assert await ledger.entry(high.stream, 1) == high


async def test_a_senders_nonces_are_counted_per_chain(ledger: Tested) -> None:
    await ledger.record(ENTRY)
    assert await ledger.record(replace(ENTRY, seq=2, chain_id=5, first_nonce=70)) is True
    assert await ledger.watermarks() == {(1, SENDER): 10, (5, SENDER): 80}


async def test_heads_are_the_last_batches(ledger: Tested) -> None:
    for seq in (1, 2, 3):
        await ledger.record(replace(ENTRY, seq=seq, first_nonce=10 * seq))
    await ledger.record(replace(ENTRY, stream=Stream("payouts", 3), first_nonce=40))
    assert await ledger.heads() == {Stream("payouts", 0): 3, Stream("payouts", 3): 1}
    assert await ledger.entry(Stream("payouts", 3), 2) is None


# ── Postgres alone ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def connection(postgres: PostgresSettings) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(connection_string(postgres), autocommit=True) as made:
        yield made


@pytest.mark.integration
async def test_a_signature_waits_for_the_disk_whatever_the_server_has_set(
    postgres: PostgresSettings, connection: psycopg.Connection[Any]
) -> None:
    connection.execute("ALTER ROLE CURRENT_USER SET synchronous_commit = off")
    connection.execute(
        "CREATE FUNCTION seen() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION 'commits %', current_setting('synchronous_commit') USING ERRCODE = 'OS001'; END $$;"
        "CREATE CONSTRAINT TRIGGER seen AFTER INSERT ON signing_ledger INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION seen()"
    )
    ledger = PostgresLedger(postgres)
    try:
        with pytest.raises(LedgerRefused, match="commits on"):  # what holds at the moment of the commit
            await ledger.record(ENTRY)
    finally:
        connection.execute("ALTER ROLE CURRENT_USER RESET synchronous_commit")
        await ledger.close()


@pytest.mark.integration
@pytest.mark.parametrize(
    "statement",
    ["UPDATE signing_ledger SET fence = 9", "DELETE FROM signing_ledger", "TRUNCATE signing_ledger"],
    ids=lambda statement: statement.split()[0],
)
async def test_what_was_sworn_stays(
    postgres: PostgresSettings, connection: psycopg.Connection[Any], statement: str
) -> None:
    ledger = PostgresLedger(postgres)
    await ledger.record(ENTRY)
    with pytest.raises(psycopg.errors.RestrictViolation, match="immutable"):
        connection.execute(statement)
    assert await ledger.entry(ENTRY.stream, 1) == ENTRY
    await ledger.close()


@pytest.mark.integration
async def test_a_lost_connection_is_made_again(postgres: PostgresSettings, connection: psycopg.Connection[Any]) -> None:
    ledger = PostgresLedger(postgres)
    await ledger.record(ENTRY)
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with pytest.raises(DatabaseUnavailable):
        await ledger.record(ENTRY)
    assert await ledger.record(ENTRY) is False
    await ledger.close()


@pytest.mark.integration
@pytest.mark.parametrize(
    "change", [{"chain_id": 2**63}, {"count": 2**31}, {"seq": 0}, {"first_nonce": 10**20}], ids=str
)
async def test_what_no_column_holds_is_refused(postgres: PostgresSettings, change: dict[str, int]) -> None:
    ledger = PostgresLedger(postgres)
    with pytest.raises(LedgerRefused):
        await ledger.record(replace(ENTRY, **change))  # type: ignore[arg-type] # one number at a time
    assert await ledger.heads() == {}
    await ledger.close()


@pytest.mark.integration
async def test_a_database_without_tables_says_what_to_run(
    postgres: PostgresSettings, connection: psycopg.Connection[Any]
) -> None:
    connection.execute("DROP TABLE signing_ledger CASCADE")
    ledger = PostgresLedger(postgres)
    with pytest.raises(DatabaseUnavailable, match="oncesign migrate"):
        await ledger.heads()
    await ledger.close()

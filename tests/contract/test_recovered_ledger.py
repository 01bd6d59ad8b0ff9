"""What a recovery needs of the ledger: who may write, whose keys are kept, which rows come last, which are missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial

import psycopg
import pytest

from pipeline.adapters.ledger import PostgresLedger
from pipeline.adapters.postgres import connection_string
from pipeline.assignment.archive import KeptKey
from pipeline.assignment.view import GENERATION_SHIFT
from pipeline.errors import DatabaseUnavailable, LedgerRefused
from pipeline.ports import LedgerEntry
from pipeline.settings import PostgresSettings
from pipeline.stream import Stream
from pipeline.testing.ledger import TwinLedger

Tested = PostgresLedger | TwinLedger
Connect = Callable[[], Tested]

A, B = Stream("payouts", 0), Stream("payouts", 1)
SENDER, OTHER = "0x" + "11" * 20, "0x" + "22" * 20
ENTRY = LedgerEntry(A, 1, "aa" * 32, 1, SENDER, 0, 10, 5, "signer-0")
KEY = KeptKey(1, SENDER, b"sealed", 7)


@pytest.fixture(params=["twin", pytest.param("postgres", marks=pytest.mark.integration)])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    """Connections to one database."""
    make: Connect
    if request.param == "twin":
        make = TwinLedger().client
    else:
        settings: PostgresSettings = request.getfixturevalue("postgres")
        make = partial(PostgresLedger, settings)
    made: list[Tested] = []

    def connected() -> Tested:
        made.append(make())
        return made[-1]

    yield connected
    for ledger in made:
        await ledger.close()


async def gone(ledger: Tested) -> None:
    """Postgres learns of a closed connection a moment later."""
    await ledger.close()
    await asyncio.sleep(0.2)


async def test_nobody_is_alone_while_a_signer_is_connected(connect: Connect) -> None:
    signer, other, recovery = connect(), connect(), connect()
    await signer.enlist()
    assert await other.heads() == {}  # whoever only reads is in nobody's way
    assert await recovery.bar_signers() is False
    await gone(signer)
    assert await recovery.bar_signers() is True
    assert await recovery.bar_signers() is True


async def test_whoever_writes_is_enlisted_by_that(connect: Connect) -> None:
    signer, recovery = connect(), connect()
    await signer.record(ENTRY)
    await signer.record(ENTRY)
    assert await recovery.bar_signers() is False
    await gone(signer)
    assert await recovery.bar_signers() is True


async def test_nobody_writes_beside_a_recovery(connect: Connect) -> None:
    recovery, signer, second = connect(), connect(), connect()
    assert await recovery.bar_signers() is True
    assert await second.bar_signers() is False
    for call in (signer.enlist(), signer.record(ENTRY)):
        with pytest.raises(DatabaseUnavailable, match="a recovery is under way"):
            await call
    assert await recovery.heads() == {}
    await gone(recovery)
    assert await signer.record(ENTRY) is True


async def test_after_a_recovery_nothing_older_is_written(connect: Connect) -> None:
    signer, recovery = connect(), connect()
    await signer.record(ENTRY)
    await gone(signer)
    assert await recovery.generation() == 0
    assert await recovery.bar_signers()
    assert await recovery.begin_generation("here") == 1
    assert await recovery.generation() == 1
    await gone(recovery)
    again = connect()
    assert await again.record(ENTRY) is False, "what was sworn before stays good"
    older = replace(ENTRY, seq=2, digest="bb" * 32, first_nonce=10)
    for stale in (older, replace(ENTRY, digest="cc" * 32), replace(older, first_nonce=99)):
        with pytest.raises(DatabaseUnavailable, match="older than the last recovery"):
            await again.record(stale)
    assert await again.heads() == {A: 1}
    assert await again.watermarks() == {(1, SENDER): 10}
    newer = replace(older, fence=(1 << GENERATION_SHIFT) + 3)
    assert await again.record(newer) is True
    with pytest.raises(LedgerRefused):
        await again.record(replace(newer, digest="dd" * 32))


async def test_the_copy_of_a_key_that_came_last_counts(connect: Connect) -> None:
    ledger = connect()
    assert await ledger.kept_keys() == []
    await ledger.keep_keys([])
    await ledger.keep_keys([KEY, replace(KEY, chain_id=2, start_nonce=0), KeptKey(1, OTHER, b"another", 2**64 - 2)])
    await ledger.keep_keys([replace(KEY, start_nonce=9)])  # the same bytes: the first copy stays
    await ledger.keep_keys([KeptKey(1, OTHER, b"sealed anew", 3)])
    found = {(key.chain_id, key.address): key for key in await ledger.kept_keys()}
    assert found == {
        (1, SENDER): KEY,
        (2, SENDER): replace(KEY, chain_id=2, start_nonce=0),
        (1, OTHER): KeptKey(1, OTHER, b"sealed anew", 3),
    }


async def test_the_last_row_of_each_sender_is_the_one_with_its_highest_nonces(connect: Connect) -> None:
    ledger = connect()
    second = replace(ENTRY, stream=B, digest="bb" * 32, first_nonce=10)
    other = replace(ENTRY, seq=2, digest="cc" * 32, sender=OTHER, first_nonce=3)
    elsewhere = replace(ENTRY, seq=3, digest="dd" * 32, chain_id=2)
    nobody = replace(ENTRY, seq=4, digest="ee" * 32, sender="", first_nonce=0, count=0)
    for entry in (ENTRY, second, other, elsewhere, nobody):
        await ledger.record(entry)
    assert sorted(await ledger.last_rows(), key=lambda entry: entry.digest) == [second, other, elsewhere]


async def test_rows_come_in_pages_and_holes_are_named(connect: Connect) -> None:
    ledger = connect()
    made = [replace(ENTRY, stream=A, seq=seq, first_nonce=10 * at) for at, seq in enumerate((2, 3, 7))]
    for entry in [*made, replace(ENTRY, stream=B, seq=1, first_nonce=30)]:
        await ledger.record(entry)
    assert await ledger.entries(A, 0, 2) == made[:2]
    assert await ledger.entries(A, 3, 2) == made[2:]
    assert await ledger.entries(A, 7, 2) == []
    assert list(await ledger.holes()) == [(A, 1), (A, 4), (A, 5), (A, 6)]


@pytest.mark.integration
async def test_a_recovery_that_lost_its_connection_is_alone_no_more(postgres: PostgresSettings) -> None:
    ledger = PostgresLedger(postgres)
    assert await ledger.bar_signers()
    with psycopg.connect(connection_string(postgres), autocommit=True) as stranger:
        stranger.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    for _ in range(3):
        with pytest.raises(DatabaseUnavailable):
            await ledger.bar_signers()
    await ledger.close()


@pytest.mark.integration
@pytest.mark.parametrize("table", ["kept_keys", "recoveries", "retired_keys"])
async def test_what_a_recovery_needs_stays(postgres: PostgresSettings, table: str) -> None:
    ledger = PostgresLedger(postgres)
    await ledger.keep_keys([KEY])
    await ledger.begin_generation("here")
    await ledger.retire_key(1, OTHER)
    await ledger.close()
    with psycopg.connect(connection_string(postgres), autocommit=True) as stranger:
        for statement in (f"DELETE FROM {table}", f"TRUNCATE {table}"):
            with pytest.raises(psycopg.errors.RestrictViolation, match="immutable"):
                stranger.execute(statement)


async def test_keys_set_apart_are_remembered_until_they_are_not(connect: Connect) -> None:
    ledger = connect()
    for key in ((1, SENDER), (2, SENDER), (1, OTHER), (1, OTHER)):
        await ledger.set_apart(*key, apart=True)
    for _ in range(2):
        await ledger.set_apart(1, SENDER, apart=False)
    assert set(await connect().keys_set_apart()) == {(2, SENDER), (1, OTHER)}


async def test_a_retired_key_is_remembered_and_its_copies_may_go(connect: Connect) -> None:
    ledger = connect()
    other = KeptKey(1, OTHER, b"sealed", 0)
    await ledger.keep_keys([KEY, replace(KEY, sealed=b"anew"), other])
    await ledger.retire_key(1, SENDER)
    await ledger.retire_key(1, SENDER)
    assert set(await connect().retired_keys()) == {(1, SENDER)}
    assert len(await ledger.kept_keys()) == 2
    for _ in range(2):
        await ledger.destroy_key(1, SENDER)
        assert await ledger.kept_keys() == [other]

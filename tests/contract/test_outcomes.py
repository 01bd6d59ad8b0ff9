"""The verifier's tables: what they take once, what they report, and what is missing at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import psycopg
import pytest

from pipeline.adapters.ledger import PostgresLedger
from pipeline.adapters.outcomes import PostgresOutcomes
from pipeline.adapters.postgres import connection_string
from pipeline.ethereum.signed import SignedHeader
from pipeline.ports import Ledger, LedgerEntry, Outcome, Place
from pipeline.settings import PostgresSettings, SourceSettings
from pipeline.stages.inspection import Finding, Sighting
from pipeline.stages.verifier import Outcomes
from pipeline.stages.violation import Violation, ViolationKind
from pipeline.stock.mix import Mix
from pipeline.stock.row import insert
from pipeline.stream import Stream
from pipeline.testing.ledger import TwinLedger
from pipeline.testing.outcomes import TwinOutcomes
from pipeline.testing.source import TwinSource

SOURCE = SourceSettings(name="payouts", chain_id=1, shards=8)
STREAM = Stream("payouts", 1)
SENDER = "0x" + "11" * 20
TOPIC = "tx.signed"
LIMIT = 10
ENTRY = LedgerEntry(STREAM, 1, "aa" * 32, 1, SENDER, 0, 3, 5, "signer-0")
HEADER = SignedHeader(STREAM, 1, 1, SENDER, 0, 3, "aa" * 32, 5, "signer-0")


@dataclass
class Tables:
    """One database: outcomes under test, and the source and ledger beside them."""

    outcomes: Any
    ledger: Ledger
    source: TwinSource | PostgresSettings

    def insert(self, count: int) -> None:
        rows = Mix(1, 1).rows(count)
        if isinstance(self.source, TwinSource):
            self.source.insert(*rows)
        else:
            insert(self.source, "transactions", rows)

    async def reconcile(self, heads: dict[Stream, int] | None = None) -> list[Violation]:
        outcomes: Outcomes = self.outcomes
        return list(await outcomes.reconcile(SOURCE, LIMIT, heads))


@pytest.fixture(params=["twin", pytest.param("postgres", marks=pytest.mark.integration)])
async def tables(request: pytest.FixtureRequest) -> AsyncIterator[Tables]:
    if request.param == "twin":
        source, twin_ledger = TwinSource(SOURCE.shards), TwinLedger()
        yield Tables(TwinOutcomes({"payouts": source}, twin_ledger), twin_ledger, source)
        return
    settings: PostgresSettings = request.getfixturevalue("postgres")
    outcomes, ledger = PostgresOutcomes(settings), PostgresLedger(settings)
    yield Tables(outcomes, ledger, settings)
    await outcomes.close()
    await ledger.close()


def place(offset: int) -> Place:
    return Place(TOPIC, 0, offset)


def signed(tx_id: int, nonce: int, offset: int = 0, **changes: Any) -> Outcome:
    outcome = Outcome("payouts", tx_id, "signed", 1, STREAM, 1, SENDER, nonce, bytes([tx_id % 256]) * 32, place(offset))
    return replace(outcome, **changes)


def rejected(tx_id: int, offset: int = 0, reason: str = "unknown_type") -> Outcome:
    return Outcome("payouts", tx_id, "rejected", 1, STREAM, 1, place=place(offset), reason=reason, detail="why")


def seen(offset: int = 0, fillers: int = 0, **changes: Any) -> Sighting:
    return Sighting(replace(HEADER, **changes), place(offset), fillers)


async def save(tables: Tables, finding: Finding, next_offset: int = 1) -> list[ViolationKind]:
    return [violation.kind for violation in await tables.outcomes.save(finding, TOPIC, 0, next_offset)]


THREE = Finding(outcomes=[signed(1, 0), signed(2, 1), signed(3, 2)], sightings=[seen()])


async def test_a_batch_that_was_seen_is_told(tables: Tables) -> None:
    await save(tables, THREE)
    assert await tables.outcomes.sighted([]) == frozenset()
    assert await tables.outcomes.sighted([(STREAM, 1), (STREAM, 2), (Stream("payouts", 2), 1)]) == {(STREAM, 1)}


async def test_nothing_is_known_at_first(tables: Tables) -> None:
    assert await tables.outcomes.positions() == {}
    assert await tables.outcomes.counts() == {"signed": 0, "rejected": 0, "violations": 0}
    assert await tables.reconcile() == []


async def test_outcomes_and_the_position_are_kept_together(tables: Tables) -> None:
    assert await save(tables, Finding(outcomes=[signed(1, 0), rejected(2)]), 7) == []
    assert await tables.outcomes.positions() == {(TOPIC, 0): 7}
    assert await tables.outcomes.counts() == {"signed": 1, "rejected": 1, "violations": 0}


async def test_the_same_record_may_be_looked_at_again(tables: Tables) -> None:
    finding = Finding(outcomes=[*THREE.outcomes, rejected(4)], sightings=THREE.sightings)
    for _ in range(3):
        assert await save(tables, finding) == []
    assert await tables.outcomes.counts() == {"signed": 3, "rejected": 1, "violations": 0}


@pytest.mark.parametrize("again", [signed(2, 9, 5), signed(2, 1, 5), rejected(2, 5)], ids=["nonce", "place", "status"])
async def test_a_row_has_one_outcome(tables: Tables, again: Outcome) -> None:
    await save(tables, THREE)
    assert await save(tables, Finding(outcomes=[again])) == [ViolationKind.TRANSACTION_TWICE]
    assert (await tables.outcomes.counts())["signed"] == 3


async def test_a_row_twice_in_one_record(tables: Tables) -> None:
    twice = Finding(outcomes=[signed(1, 0), signed(1, 1), signed(2, 2)])
    assert await save(tables, twice) == [ViolationKind.TRANSACTION_TWICE]


async def test_a_nonce_has_one_row(tables: Tables) -> None:
    await save(tables, THREE)
    assert await save(tables, Finding(outcomes=[signed(9, 2, 5)])) == [ViolationKind.NONCE_TWICE]
    assert await save(tables, Finding(outcomes=[signed(8, 7, 6), signed(10, 7, 6)])) == [ViolationKind.NONCE_TWICE]
    assert await save(tables, Finding(outcomes=[signed(9, 2, 5, chain_id=2)])) == []
    assert await save(tables, Finding(outcomes=[signed(11, 2, 5, sender="0x" + "22" * 20)])) == []


async def test_a_batch_is_published_once(tables: Tables) -> None:
    await save(tables, THREE)
    assert await save(tables, Finding(sightings=[seen(5)])) == [ViolationKind.BATCH_TWICE]
    assert await save(tables, Finding(sightings=[seen(0), seen(6, seq=2)])) == []


async def test_violations_are_kept_once_and_reported_again(tables: Tables) -> None:
    planted = Violation(ViolationKind.WRONG_SENDER, "0x00 signed", STREAM, 1, 2)
    nowhere = Violation(ViolationKind.UNREADABLE, "tx.signed[0]@4: no batch")
    for _ in range(2):
        assert await save(tables, Finding(violations=[planted, nowhere])) == []
    assert (await tables.outcomes.counts())["violations"] == 2
    assert await tables.reconcile() == [planted, nowhere]


async def test_any_text_can_be_kept(tables: Tables) -> None:
    odd = Violation(ViolationKind.UNREADABLE, "nul \0 and \U0001f511 " + "long " * 5_000)
    await save(tables, Finding(violations=[odd], outcomes=[rejected(1, reason="a\0b" * 5_000)]))
    assert await tables.outcomes.counts() == {"signed": 0, "rejected": 1, "violations": 1}


async def test_a_complete_run_lacks_nothing(tables: Tables) -> None:
    tables.insert(4)
    await tables.ledger.record(ENTRY)
    await save(tables, THREE)
    await save(tables, Finding(outcomes=[rejected(4)]))
    assert await tables.reconcile() == []


async def test_a_row_without_an_outcome(tables: Tables) -> None:
    tables.insert(4)
    await tables.ledger.record(ENTRY)
    await save(tables, THREE)
    [missing] = await tables.reconcile()
    assert (missing.kind, missing.tx_id) == (ViolationKind.ROW_WITHOUT_OUTCOME, 4)


async def test_of_each_kind_a_bounded_number_is_listed(tables: Tables) -> None:
    tables.insert(LIMIT * 3)
    assert len(await tables.reconcile()) == LIMIT


async def test_a_batch_that_was_sworn_and_not_seen(tables: Tables) -> None:
    await tables.ledger.record(ENTRY)
    await tables.ledger.record(LedgerEntry(Stream("other", 1), 1, "aa" * 32, 1, "0x" + "33" * 20, 0, 3, 5, "w"))
    await tables.ledger.record(replace(ENTRY, seq=2, digest="bb" * 32, sender="", first_nonce=0, count=0))
    await save(tables, THREE)
    tables.insert(3)
    [missing] = await tables.reconcile()
    assert (missing.kind, missing.seq) == (ViolationKind.BATCH_NOT_PUBLISHED, 2)
    assert "signer-0" in missing.detail


async def test_beside_a_running_pipeline_only_what_is_due_can_be_missing(tables: Tables) -> None:
    tables.insert(30)  # ids 1, 9, 17, 25 are in shard 1
    await tables.ledger.record(replace(ENTRY, count=2))
    await tables.ledger.record(replace(ENTRY, seq=2, digest="bb" * 32, first_nonce=2, count=1))
    await save(tables, Finding(outcomes=[signed(1, 0), signed(9, 1)], sightings=[seen(count=2)]))
    assert await tables.reconcile({STREAM: 1}) == []
    assert {v.kind for v in await tables.reconcile({STREAM: 2})} == {
        ViolationKind.BATCH_NOT_PUBLISHED,
        ViolationKind.NONCE_GAP,
    }
    await save(tables, Finding(outcomes=[signed(25, 2)]))
    [overtaken] = await tables.reconcile({STREAM: 1})
    assert (overtaken.kind, overtaken.tx_id) == (ViolationKind.ROW_WITHOUT_OUTCOME, 17)


@pytest.mark.parametrize("nonces", [(0, 1, 3), (1, 2, 3), (0, 1, 2)], ids=["inside", "at the start", "at the end"])
async def test_a_gap_in_the_nonces(tables: Tables, nonces: tuple[int, ...]) -> None:
    tables.insert(3)
    await tables.ledger.record(replace(ENTRY, count=4))
    outcomes = [signed(tx_id, nonce) for tx_id, nonce in enumerate(nonces, start=1)]
    await save(tables, Finding(outcomes=outcomes, sightings=[seen()]))
    [gap] = await tables.reconcile()
    assert gap.kind is ViolationKind.NONCE_GAP
    assert gap.detail == f"{SENDER} on chain 1: nonces 0 to 3 hold 3 transactions"


@pytest.mark.parametrize("filled", [1, 2, 3], ids=["first", "inside", "last"])
async def test_a_filled_nonce_is_no_gap(tables: Tables, filled: int) -> None:
    tables.insert(3)
    await tables.ledger.record(ENTRY)
    outcomes = [signed(tx_id, tx_id - 1) for tx_id in (1, 2, 3) if tx_id != filled]
    outcomes.append(rejected(filled, reason="signing_failed"))
    await save(tables, Finding(outcomes=outcomes, sightings=[seen(fillers=1)]))
    assert await tables.reconcile() == []


@pytest.mark.parametrize("fillers", [0, 1])
async def test_fillers_and_failed_rows_are_as_many(tables: Tables, fillers: int) -> None:
    tables.insert(3)
    await tables.ledger.record(replace(ENTRY, count=2 + fillers))
    third = rejected(3, reason="unknown_type" if fillers else "signing_failed")
    sighting = seen(fillers=fillers, count=2 + fillers)
    await save(tables, Finding(outcomes=[signed(1, 0), signed(2, 1), third], sightings=[sighting]))
    [violation] = await tables.reconcile()
    assert violation.kind is ViolationKind.FILLER_MISMATCH


# ── Postgres alone ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.integration
async def test_two_verifiers_at_once_do_not_accuse_each_other(postgres: PostgresSettings) -> None:
    verifiers = [PostgresOutcomes(postgres) for _ in range(4)]
    outcomes = [signed(tx_id, tx_id, offset=tx_id) for tx_id in range(500)]
    finding = Finding(outcomes=outcomes, sightings=[seen(3)])
    found = await asyncio.gather(*(made.save(finding, TOPIC, 0, 9) for made in verifiers))
    assert list(map(list, found)) == [[]] * 4
    assert (await verifiers[0].counts())["signed"] == 500
    for made in verifiers:
        await made.close()


@pytest.mark.integration
async def test_nothing_of_a_look_is_kept_when_it_cannot_all_be_kept(postgres: PostgresSettings) -> None:
    made = PostgresOutcomes(postgres)
    with psycopg.connect(connection_string(postgres), autocommit=True) as connection:
        connection.execute("ALTER TABLE verifier_positions ADD CHECK (next_offset < 100)")
    with pytest.raises(psycopg.errors.CheckViolation):
        await made.save(THREE, TOPIC, 0, 200)
    assert await made.counts() == {"signed": 0, "rejected": 0, "violations": 0}
    assert await made.save(THREE, TOPIC, 0, 99) == []
    assert (await made.counts())["signed"] == 3
    await made.close()


@pytest.mark.integration
async def test_an_outcome_can_be_looked_up(postgres: PostgresSettings) -> None:
    made = PostgresOutcomes(postgres)
    await made.save(THREE, TOPIC, 0, 1)
    found = await made.find("payouts", 2)
    assert found is not None
    assert (found["status"], found["nonce"], bytes(found["sender"]).hex()) == ("signed", 1, SENDER[2:])
    assert await made.find("payouts", 4) is None
    await made.close()

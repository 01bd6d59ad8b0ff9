"""The verifier finds every kind of fault that is planted in signed records, and nothing where there is none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.assignment.records import Assignment
from pipeline.stages.violation import ViolationKind
from pipeline.stock.mix import Mix
from tests.published import (
    SECRETS,
    SOURCE,
    Publisher,
    all_but_last,
    findings,
    kinds,
    rebuilt,
    verifier,
    with_header,
    with_rows,
)


@pytest.fixture
def publisher() -> Publisher:
    made = Publisher()
    made.stock(60)
    return made


async def test_an_honest_pipeline_has_no_violation() -> None:
    publisher = Publisher()
    publisher.stock(400, invalid_share=0.2)
    for shard in range(SOURCE.shards):
        for secret in (*SECRETS, *SECRETS):
            await publisher.honest(shard, 50, secret)
    made = verifier(publisher)
    assert await findings(publisher, made) == []
    assert made.count.signed + made.count.rejected == 400
    assert made.count.rejected > 40
    assert made.count.violations == 0


async def test_the_honest_rest_of_the_plants_is_found_to_be_honest(publisher: Publisher) -> None:
    publisher.publish(await all_but_last(publisher))
    assert await findings(publisher) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("value", 12345),
        ("to", b"\x99" * 20),
        ("gas_limit", 9_999_999),
        ("max_fee_per_gas", 10**15),
        ("max_priority_fee_per_gas", 0),
        ("data", b"\x01\x02"),
        ("access_list", '[{"address": "0x' + "ab" * 20 + '", "storageKeys": []}]'),
        ("type", 1),
    ],
)
async def test_a_changed_field(field: str, value: Any) -> None:
    publisher = Publisher()
    plain = next(row for row in Mix(1, 1).rows(50) if row.type == 2 and row.access_list is None and row.to)
    plain = plain._replace(gas_limit=1_000_000)
    publisher.source.insert(*[plain] * 4)
    batch = await publisher.batch(0, 2)
    publisher.publish(publisher.sign(batch, SECRETS[0]))
    await publisher.swear(publisher.sign(batch, SECRETS[0], 0))
    await publisher.honest(1, 2, SECRETS[1])
    changes = {field: value} | ({"max_priority_fee_per_gas": None} if field == "type" else {})
    stored = publisher.source.rows[4]
    publisher.source.rows[4] = type(stored)(stored.cursor, plain._replace(**changes))
    [violation] = await findings(publisher)
    assert (violation.kind, violation.tx_id) == (ViolationKind.CHANGED_FIELD, 4)
    assert field in violation.detail


async def test_another_key_signed(publisher: Publisher) -> None:
    record = await all_but_last(publisher)
    batch_rows = record.rows.to_pylist()
    foreign = publisher.sign(await rebuilt(publisher), SECRETS[1], record.header.first_nonce)
    batch_rows[3] = foreign.rows.to_pylist()[3]
    publisher.publish(with_rows(record, batch_rows))
    [violation] = await findings(publisher)
    assert violation.kind is ViolationKind.WRONG_SENDER
    assert violation.tx_id == batch_rows[3]["tx_id"]


async def test_a_header_that_names_another_sender(publisher: Publisher) -> None:
    record = await all_but_last(publisher)
    publisher.publish(with_header(record, sender="0x" + "77" * 20))
    found = kinds(await findings(publisher))
    assert {ViolationKind.WRONG_SENDER, ViolationKind.LEDGER_MISMATCH} <= found


async def test_a_nonce_twice(publisher: Publisher) -> None:
    await publisher.honest(0, 30)
    await publisher.honest(1, 20, SECRETS[1])
    record = publisher.sign(await publisher.batch(1, 10), SECRETS[0], first_nonce=25)
    publisher.publish(record)  # the ledger would have refused it
    found = await findings(publisher)
    twice = [violation.tx_id for violation in found if violation.kind is ViolationKind.NONCE_TWICE]
    assert len(twice) == 5
    assert ViolationKind.LEDGER_MISMATCH in kinds(found)


async def test_a_nonce_other_than_the_assigned(publisher: Publisher) -> None:
    record = await all_but_last(publisher)
    rows = record.rows.to_pylist()
    rows[4]["nonce"] += 1
    publisher.publish(with_rows(record, rows))
    found = kinds(await findings(publisher))
    assert ViolationKind.WRONG_NONCE in found


async def test_a_transaction_in_two_batches(publisher: Publisher) -> None:
    record = await all_but_last(publisher)
    publisher.publish(record)
    again = with_header(publisher.sign(await rebuilt(publisher), SECRETS[1]), seq=3)
    await publisher.swear(again)
    publisher.publish(again, 1)
    found = await findings(publisher)
    assert [v.kind for v in found].count(ViolationKind.TRANSACTION_TWICE) == 10


async def test_a_transaction_twice_in_one_batch(publisher: Publisher) -> None:
    record = await all_but_last(publisher)
    rows = record.rows.to_pylist()
    rows[7]["tx_id"] = rows[6]["tx_id"]
    publisher.publish(with_rows(record, rows))
    found = kinds(await findings(publisher))
    assert {ViolationKind.TRANSACTION_TWICE, ViolationKind.ROW_WITHOUT_OUTCOME} <= found


async def test_a_gap(publisher: Publisher) -> None:
    await publisher.honest(0, 30)
    await publisher.honest(1, 20, SECRETS[1])
    publisher.ledger.next_nonces.clear()
    record = publisher.sign(await publisher.batch(1, 10), SECRETS[0], first_nonce=31)
    await publisher.swear(record)
    publisher.publish(record)
    [violation] = await findings(publisher)
    assert violation.kind is ViolationKind.NONCE_GAP
    assert "0 to 40 hold 40" in violation.detail


async def test_a_missing_row(publisher: Publisher) -> None:
    record = await all_but_last(publisher)
    publisher.publish(with_rows(record, record.rows.to_pylist()[:-1]))
    found = await findings(publisher)
    gap = ViolationKind.NONCE_GAP
    assert kinds(found) == {ViolationKind.LEDGER_MISMATCH, ViolationKind.ROW_WITHOUT_OUTCOME, gap}
    [missing] = [v.tx_id for v in found if v.kind is ViolationKind.ROW_WITHOUT_OUTCOME]
    assert missing == record.rows.to_pylist()[-1]["tx_id"]


async def test_a_batch_that_never_appeared(publisher: Publisher) -> None:
    await all_but_last(publisher)
    found = kinds(await findings(publisher))
    assert {ViolationKind.BATCH_NOT_PUBLISHED, ViolationKind.ROW_WITHOUT_OUTCOME} <= found


async def test_a_batch_twice(publisher: Publisher) -> None:
    record = await all_but_last(publisher)
    publisher.publish(record)
    publisher.publish(with_header(record, worker="signer-7"))
    found = await findings(publisher)
    assert kinds(found) == {ViolationKind.BATCH_TWICE, ViolationKind.TRANSACTION_TWICE}


@pytest.mark.parametrize("change", [{"fence": 6}, {"digest": "00" * 32}, {"chain_id": 2}, {"seq": 9}])
async def test_another_answer_than_the_ledger_has(publisher: Publisher, change: dict[str, Any]) -> None:
    record = await all_but_last(publisher)
    publisher.publish(with_header(record, **change))
    assert ViolationKind.LEDGER_MISMATCH in kinds(await findings(publisher))


async def test_a_signature_without_a_ledger_row(publisher: Publisher) -> None:
    await publisher.honest(0, 30)
    publisher.publish(publisher.sign(await publisher.batch(1, 30), SECRETS[1]))
    assert kinds(await findings(publisher)) == {ViolationKind.LEDGER_MISMATCH}


async def test_a_hash_that_is_not_the_transactions(publisher: Publisher) -> None:
    record = await all_but_last(publisher)
    rows = record.rows.to_pylist()
    rows[0]["hash"] = rows[1]["hash"]
    publisher.publish(with_rows(record, rows))
    [violation] = await findings(publisher)
    assert violation.kind is ViolationKind.WRONG_HASH


async def test_bytes_that_are_no_transaction(publisher: Publisher) -> None:
    record = await all_but_last(publisher)
    rows = record.rows.to_pylist()
    rows[0]["raw"] = rows[0]["raw"][:-1]
    publisher.publish(with_rows(record, rows))
    [violation] = await findings(publisher)
    assert violation.kind is ViolationKind.UNREADABLE


async def test_a_row_that_the_source_does_not_have(publisher: Publisher) -> None:
    record = await all_but_last(publisher)
    rows = record.rows.to_pylist()
    rows[0]["tx_id"] = 4711
    publisher.publish(with_rows(record, rows))
    found = kinds(await findings(publisher))
    assert found == {ViolationKind.UNKNOWN_ROW, ViolationKind.ROW_WITHOUT_OUTCOME}


async def test_rows_in_another_order() -> None:
    """Each signature is right, but the row that came second has the first nonce."""
    plain = Publisher()
    [row] = [row for row in Mix(1, 1).rows(20) if row.type == 2 and row.to][:1]
    plain.source.insert(row, row, row, row)
    record = plain.sign(await plain.batch(0, 2), SECRETS[0])
    await plain.swear(record)
    await plain.honest(1, 2, SECRETS[1])
    rows = record.rows.to_pylist()
    rows[0]["tx_id"], rows[1]["tx_id"] = rows[1]["tx_id"], rows[0]["tx_id"]
    plain.publish(with_rows(record, rows))
    [violation] = await findings(plain)
    assert violation.kind is ViolationKind.WRONG_ORDER


async def test_an_assignment_other_than_the_ledger_has(publisher: Publisher) -> None:
    await publisher.honest(0, 30)
    batch = await publisher.batch(1, 20)
    record = publisher.sign(batch, SECRETS[1])
    h = record.header
    right = Assignment(
        h.stream, h.seq, batch.header.prev, batch.header.cursor, h.digest, 1, h.sender, h.first_nonce, h.count,
        20, 1, 5, "consumer-0", "here", 0, 0, (0, 0),
    )  # fmt: skip
    made = verifier(publisher)
    assert await made.compare([right]) == []  # not sworn yet
    await publisher.swear(record)
    assert await made.compare([right]) == []
    wrong = [replace(right, first_nonce=7), replace(right, address="0x" + "12" * 20), replace(right, fence=6)]
    assert kinds(await made.compare(wrong)) == {ViolationKind.LEDGER_MISMATCH}
    assert len(await made.compare(wrong)) == 3

"""The verifier on rejected rows, fillers, and records that say the impossible."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest

from pipeline.custody.generation import address_of
from pipeline.ethereum import kernel
from pipeline.ethereum.filler import fill
from pipeline.ethereum.rejected import Rejection
from pipeline.ethereum.signed import SignedHeader, SignedRecord
from pipeline.stages.violation import ViolationKind
from pipeline.stream import Stream
from tests.published import REJECTED, SECRETS, SIGNED, Publisher, all_but_last, findings, kinds, with_header


@pytest.fixture
def publisher() -> Publisher:
    made = Publisher()
    made.stock(60)
    return made


async def rejected_all(publisher: Publisher, **changes: Any) -> None:
    """Shard 0 honest; of shard 1 the first row is rejected by a record with these changes, and the rest left out."""
    await publisher.honest(0, 30)
    batch = await publisher.batch(1, 30)
    said = Rejection(int(batch.columns.tx_id[0]), "payouts", 1, 1, 1, "unknown_type", "type 9", 1, 1_700_000_000_000)
    fields = {name: getattr(said, name) for name in Rejection.__slots__} | changes
    publisher.broker.append(REJECTED, 1, b"", Rejection(**fields).to_json())


async def test_a_good_row_that_was_rejected(publisher: Publisher) -> None:
    await rejected_all(publisher)
    found = await findings(publisher)
    assert ViolationKind.WRONG_VERDICT in kinds(found)
    assert "the rules say signable" in next(v.detail for v in found if v.kind is ViolationKind.WRONG_VERDICT)


async def test_a_bad_row_that_was_rejected_for_another_reason() -> None:
    publisher = Publisher()
    publisher.stock(60, invalid_share=1.0)
    batch = await publisher.batch(0, 30)
    await publisher.swear(publisher.sign(batch, SECRETS[0]))
    publisher.publish(publisher.sign(batch, SECRETS[0]))
    publisher.reject(batch)
    await publisher.honest(1, 30)
    log = publisher.broker.partition(REJECTED, 1)
    message = log.entries[0].message
    assert message is not None
    fields = {**orjson.loads(message.value), "reason": "signing_failed"}
    log.entries[0] = replace(log.entries[0], message=replace(message, value=Rejection(**fields).to_json()))
    assert ViolationKind.WRONG_VERDICT in kinds(await findings(publisher))


async def test_a_bad_row_that_was_signed(publisher: Publisher) -> None:
    record = await all_but_last(publisher)
    publisher.publish(record)
    tx_id = record.rows.to_pylist()[2]["tx_id"]
    stored = publisher.source.rows[tx_id]
    publisher.source.rows[tx_id] = type(stored)(stored.cursor, stored.row._replace(gas_limit=100))
    [violation] = await findings(publisher)
    assert violation.kind is ViolationKind.WRONG_VERDICT


async def test_a_row_that_was_signed_and_rejected(publisher: Publisher) -> None:
    record = await all_but_last(publisher)
    publisher.publish(record)
    tx_id = record.rows.to_pylist()[0]["tx_id"]
    said = Rejection(tx_id, "payouts", 1, 2, 1, "unknown_type", "", 1, 0)
    publisher.broker.append(REJECTED, 0, b"", said.to_json())
    assert ViolationKind.TRANSACTION_TWICE in kinds(await findings(publisher))


async def test_a_failed_signature_needs_a_filler(publisher: Publisher) -> None:
    await rejected_all(publisher, reason="signing_failed")
    assert ViolationKind.FILLER_MISMATCH in kinds(await findings(publisher))


@pytest.mark.parametrize(
    "value",
    [b"", b"not arrow", b"{}", b"\xff" * 100],
)
@pytest.mark.parametrize("topic", [SIGNED, REJECTED])
async def test_a_record_that_cannot_be_read(publisher: Publisher, topic: str, value: bytes) -> None:
    publisher.publish(await all_but_last(publisher))
    publisher.broker.append(topic, 1, b"", value)
    assert kinds(await findings(publisher)) == {ViolationKind.UNREADABLE}


@pytest.mark.parametrize(
    "change",
    [
        {"sender": "0x" + "zz" * 20},
        {"sender": ""},
        {"stream": Stream("payouts", 2**16)},
        {"stream": Stream("elsewhere", 0)},
        {"stream": Stream("Pay\0outs", 0)},
        {"seq": 2**63},
        {"seq": 0},
        {"chain_id": 2**64},
        {"chain_id": -1},
        {"first_nonce": -1},
        {"first_nonce": 2**64},
    ],
    ids=str,
)
async def test_a_header_that_says_the_impossible(publisher: Publisher, change: dict[str, Any]) -> None:
    record = await all_but_last(publisher)
    publisher.publish(record)
    publisher.publish(with_header(record, **change))
    assert kinds(await findings(publisher)) == {ViolationKind.UNREADABLE}


@pytest.mark.parametrize(
    "change",
    [
        {"tx_id": "7"},
        {"tx_id": True},
        {"tx_id": 1.5},
        {"shard": 2**15},
        {"seq": -1},
        {"source": "elsewhere"},
        {"source": None},
        {"reason": 5},
        {"chain_id": 2**63},
    ],
    ids=str,
)
async def test_a_rejection_that_says_the_impossible(publisher: Publisher, change: dict[str, Any]) -> None:
    await rejected_all(publisher, **change)
    assert ViolationKind.UNREADABLE in kinds(await findings(publisher))


async def test_a_filler_is_no_row(publisher: Publisher) -> None:
    """A nonce that a transfer of nothing to the sender took, beside the row's rejection, is in order."""
    await publisher.honest(0, 30)
    batch = await publisher.batch(1, 30)
    everything = np.ones(30, bool)
    signed = kernel.sign(batch, everything, SECRETS[1], 0)
    signed.failed[4] = 1
    sender = address_of(SECRETS[1])
    signed = fill(signed, batch, np.flatnonzero(everything), sender, SECRETS[1])
    h = batch.header
    record = SignedRecord.build(SignedHeader(h.stream, h.seq, 1, sender, 0, 30, batch.digest, 5, "w"), signed)
    await publisher.swear(record)
    publisher.publish(record)
    said = Rejection(int(batch.columns.tx_id[4]), "payouts", 1, 1, 1, "signing_failed", "", 1, 0)
    publisher.broker.append(REJECTED, 0, b"", said.to_json())
    assert await findings(publisher) == []

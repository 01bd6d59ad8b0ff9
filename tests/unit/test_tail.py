"""What `oncesign tail` makes of a record: CloudEvents, or a line."""

from __future__ import annotations

import dataclasses
from typing import Any

import orjson
import pyarrow as pa
import pytest

from jobs.tail import first_offset, lines_of
from pipeline.errors import UsageError
from pipeline.ethereum.rejected import Rejection
from pipeline.ports import Message, Place
from tests.cloud_events import checked
from tests.published import REJECTED, SECRETS, SIGNED, Publisher

REJECTION = Rejection(42, "payouts", 3, 9, 1, "to_malformed", "19 bytes", 1, 1_700_000_000_000)
AT_MS = 1_772_368_215_250
TIME = "2026-03-01T12:30:15.250Z"


def shown(message: Message, *, as_events: bool = True) -> list[str]:
    return list(lines_of(message, signed_topic=SIGNED, deployment="local", as_events=as_events))


def rejected(value: bytes = REJECTION.to_json(), unix_ms: int | None = AT_MS) -> Message:
    return Message(Place(REJECTED, 0, 5), b"", value, unix_ms=unix_ms)


async def signed(rows: int = 4) -> tuple[Message, Any]:
    publisher = Publisher()
    publisher.stock(rows)
    record = await publisher.honest(0, rows // 2)
    return Message(Place(SIGNED, 1, 7), b"", record.encode(), unix_ms=AT_MS), record


async def test_an_event_for_each_transaction() -> None:
    message, record = await signed()
    events = [checked(line) for line in shown(message)]
    assert [event["id"] for event in events] == ["tx.signed/1/7/0", "tx.signed/1/7/1"]
    assert {event["source"] for event in events} == {"/oncesign/local/payouts/0"}
    assert {event["type"] for event in events} == {"oncesign.transaction.signed.v1"}
    assert {event["time"] for event in events} == {TIME}
    for event, row in zip(events, record.rows.to_pylist(), strict=True):
        assert event["subject"] == str(row["tx_id"])
        assert event["data"] == {
            "tx_id": row["tx_id"], "source": "payouts", "shard": 0, "seq": 1, "chain_id": 1,
            "sender": record.header.sender, "nonce": row["nonce"],
            "hash": "0x" + row["hash"].hex(), "raw": "0x" + row["raw"].hex(),
        }  # fmt: skip


def test_a_rejection_is_an_event_with_what_its_record_says() -> None:
    [event] = [checked(line) for line in shown(rejected())]
    assert event == {
        "specversion": "1.0", "id": "tx.rejected/0/5/0", "source": "/oncesign/local/payouts/3", "subject": "42",
        "type": "oncesign.transaction.rejected.v1", "time": TIME, "datacontenttype": "application/json",
        "data": dataclasses.asdict(REJECTION),
    }  # fmt: skip


def test_a_time_is_never_made_up() -> None:
    [event] = [checked(line) for line in shown(rejected(unix_ms=None))]
    assert "time" not in event
    [line] = shown(rejected(unix_ms=None), as_events=False)
    assert line.startswith("- rejected ")


async def test_a_filler_is_an_event_without_a_subject() -> None:
    message, record = await signed(2)
    rows = record.rows.set_column(0, record.rows.schema.field(0), pa.nulls(1, pa.int64()))
    filled = dataclasses.replace(record, rows=rows)
    [event] = [checked(line) for line in shown(dataclasses.replace(message, value=filled.encode()))]
    assert event["data"]["tx_id"] is None
    assert event["data"]["raw"].startswith("0x")
    assert "subject" not in event


async def test_a_line_for_each_batch_or_rejection() -> None:
    message, record = await signed(8)
    sender = record.header.sender
    assert shown(message, as_events=False) == [
        f"{TIME} signed   payouts/0 batch 1: 4 transactions of {sender}, nonces 0 … 3, at tx.signed[1]@7"
    ]
    assert shown(rejected(), as_events=False) == [f"{TIME} rejected payouts/3 batch 9, row 42: to_malformed: 19 bytes"]


async def test_a_batch_without_a_signable_row() -> None:
    publisher = Publisher()
    publisher.stock(4, 1.0)
    record = publisher.sign(await publisher.batch(0, 2), SECRETS[0])
    message = Message(Place(SIGNED, 0, 0), b"", record.encode())
    assert shown(message) == []
    assert shown(message, as_events=False) == ["- signed   payouts/0 batch 1: no row to sign"]


@pytest.mark.parametrize("value", [b"", b"{}", REJECTION.to_json().replace(b"payouts", b"Pay outs")])
def test_a_stranger_s_record_is_left_out(value: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(rejected(value)) == []
    assert capsys.readouterr().err.startswith("tx.rejected[0]@5 is left out, it is no record of oncesign's: ")


@pytest.mark.parametrize(
    ("begin", "offset"), [("start", 10), ("now", 50), ("end-15", 35), ("END-1", 49), ("end-0", 50), ("end-99", 10)]
)
def test_where_to_begin(begin: str, offset: int) -> None:
    assert first_offset(begin)(10, 50) == offset


@pytest.mark.parametrize("begin", ["", "yesterday", "end", "end-", "end--1", "end-1.5", "12"])
def test_there_is_no_such_place(begin: str) -> None:
    with pytest.raises(UsageError, match="there is no such place"):
        first_offset(begin)


def test_numbers_are_exact() -> None:
    [line] = shown(rejected(dataclasses.replace(REJECTION, tx_id=2**63 - 1).to_json()))
    assert orjson.loads(line)["data"]["tx_id"] == 2**63 - 1

"""The records as etcd holds them: a public contract."""

from __future__ import annotations

import json

import pytest

from pipeline.assignment.records import Assignment, Genesis, Holder, KeyRecord, KeyState, Leader, Record, StreamRecord
from pipeline.errors import MalformedBatch
from pipeline.stream import START
from tests.unit.assignment_records import PATHS, A, cursor, key

LOCKED = key(1, state=KeyState.LOCKED, holder=Holder(A, 7, "consumer-0.1", "here", 12), disable_on_release=True)
ASSIGNMENT = Assignment(
    A, 7, cursor(6), cursor(7), "ab" * 32, 1, "0x" + "11" * 20, 2**64 - 12, 10, 11, 1, 12, "w", "here", 5, 9, (3, 4)
)
RECORDS: list[Record] = [
    Genesis("this", 5),
    Leader("me", "here", 7, 5),
    key(1),
    LOCKED,
    StreamRecord(A, 1, "74"),
    StreamRecord(A, 1, "74", 7, cursor(7), "ab" * 32, "halted for a reason"),
    ASSIGNMENT,
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_survives_with_sorted_keys(record: Record) -> None:
    raw = record.to_json()
    assert type(record).from_json(raw) == record
    fields = json.loads(raw)
    assert raw == json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def test_the_contract_of_a_key_record() -> None:
    assert json.loads(LOCKED.to_json()) == {
        "address": key(1).address,
        "chain_id": 1,
        "disable_on_release": True,
        "holder": {"fence": 12, "node": "here", "seq": 7, "stream": "payouts/0", "worker": "consumer-0.1"},
        "next_nonce": 0,
        "set_apart": False,
        "since_unix_ms": key(1).since_unix_ms,
        "state": "locked",
        "uses": 0,
    }
    assert json.loads(key(1).to_json())["holder"] is None


def test_the_contract_of_a_stream_and_an_assignment() -> None:
    assert json.loads(StreamRecord(A, 1, "74").to_json())["cursor"] == str(START)
    fields = json.loads(ASSIGNMENT.to_json())
    assert (fields["prev"], fields["cursor"], fields["signed_from"]) == ("106:6", "107:7", [3, 4])
    assert fields["first_nonce"] == 2**64 - 12
    assert fields["denied"] == ""


def test_what_was_written_before_keys_were_set_apart_and_batches_denied() -> None:
    for record, name in ((LOCKED, "set_apart"), (ASSIGNMENT, "denied")):
        fields = json.loads(record.to_json())
        del fields[name]
        assert type(record).from_json(json.dumps(fields).encode()) == record


def test_the_paths_are_a_contract_too() -> None:
    root = "/oncesign/local"
    assert (PATHS.genesis, PATHS.leader) == (f"{root}/genesis", f"{root}/leader")
    assert PATHS.key(1, "0xab") == f"{root}/keys/1/0xab"
    assert PATHS.sealed("0xab") == f"{root}/sealed/0xab"
    assert PATHS.stream(A) == f"{root}/streams/payouts/0"
    assert PATHS.assignment(A, 7) == f"{root}/assignments/payouts/0/7"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b"7",
        b"\xff",
        key(1).to_json().replace(b'"free"', b'"lent"'),
        Genesis("x", 1).to_json(),
    ],
)
def test_what_is_no_key_record_is_refused(raw: bytes) -> None:
    with pytest.raises(MalformedBatch, match="not a KeyRecord"):
        KeyRecord.from_json(raw)


def test_a_stream_record_with_a_strange_cursor_is_refused() -> None:
    raw = StreamRecord(A, 1, "74").to_json()
    with pytest.raises(MalformedBatch):
        StreamRecord.from_json(raw.replace(str(START).encode(), b"later"))

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.bench_kernel import mixed_rows
from pipeline.errors import MalformedBatch
from pipeline.ethereum.ipc import read_ipc, write_ipc
from pipeline.ethereum.kernel import sign
from pipeline.ethereum.rejected import Rejection
from pipeline.ethereum.signed import SignedColumns, SignedHeader, SignedRecord, header_of
from pipeline.stream import Stream
from tests import ethereum_rows as rows_

COUNT = 40
HEADER = SignedHeader(
    stream=Stream("payouts", 3),
    seq=7,
    chain_id=1,
    sender=rows_.ADDRESS,
    first_nonce=300,
    count=COUNT,
    digest=rows_.DIGEST,
    fence=12,
    worker="signer-1.77",
)
NOTHING = dataclasses.replace(HEADER, sender="", first_nonce=0, count=0)


@pytest.fixture(scope="module")
def signed() -> SignedColumns:
    return sign(rows_.batch(mixed_rows(COUNT)), np.ones(COUNT, np.bool_), rows_.SECRET, 300)


def test_it_comes_back_as_it_was(signed: SignedColumns) -> None:
    value = SignedRecord.build(HEADER, signed).encode()
    record = SignedRecord.decode(value)
    assert record.header == HEADER == header_of(value)
    assert record.rows.column("tx_id").to_pylist() == signed.tx_id.tolist()
    assert record.rows.column("nonce").to_pylist() == list(range(300, 300 + COUNT))
    assert record.rows.column("hash").to_pylist() == [row.tobytes() for row in signed.hashes]
    assert record.rows.column("raw").to_pylist() == [rows_.raw_of(signed, k) for k in range(COUNT)]


def test_the_metadata_is_the_public_contract(signed: SignedColumns) -> None:
    _, fields = read_ipc(SignedRecord.build(HEADER, signed).encode())
    assert fields == {
        "codec": "1",
        "source": "payouts",
        "shard": "3",
        "seq": "7",
        "chain_id": "1",
        "sender": rows_.ADDRESS,
        "first_nonce": "300",
        "count": str(COUNT),
        "digest": rows_.DIGEST,
        "fence": "12",
        "worker": "signer-1.77",
    }


def test_a_batch_without_a_signable_row_is_a_record_too() -> None:
    value = SignedRecord.build(NOTHING, SignedColumns.empty()).encode()
    record = SignedRecord.decode(value)
    assert record.header == NOTHING
    assert record.rows.num_rows == 0


def test_signing_nothing_is_the_same_as_no_signing() -> None:
    none = sign(rows_.batch(mixed_rows(3)), np.zeros(3, np.bool_), rows_.SECRET, 0)
    for name in SignedColumns.__slots__:
        left, right = getattr(none, name), getattr(SignedColumns.empty(), name)
        assert np.array_equal(left, right), name
        assert left.dtype == right.dtype, name


def test_a_repeat_differs_in_its_worker_alone(signed: SignedColumns) -> None:
    again = sign(rows_.batch(mixed_rows(COUNT)), np.ones(COUNT, np.bool_), rows_.SECRET, 300)
    value = SignedRecord.build(HEADER, signed).encode()
    assert SignedRecord.build(HEADER, again).encode() == value
    elsewhere = SignedRecord.build(dataclasses.replace(HEADER, worker="signer-9.12"), again).encode()
    (rows, fields), (other_rows, other_fields) = read_ipc(value), read_ipc(elsewhere)
    assert rows.equals(other_rows)
    assert {**other_fields, "worker": HEADER.worker} == fields


ALWAYS = [field.name for field in dataclasses.fields(SignedHeader) if field.name not in {"stream", "policy"}]


@pytest.mark.parametrize("name", ALWAYS)
def test_metadata_that_lacks_a_field_is_refused(signed: SignedColumns, name: str) -> None:
    rows, fields = read_ipc(SignedRecord.build(HEADER, signed).encode())
    value = write_ipc(rows, {key: text for key, text in fields.items() if key != name})
    for read in (SignedRecord.decode, header_of):
        with pytest.raises(MalformedBatch):
            read(value)


def test_the_policy_of_its_batch_travels_with_it(signed: SignedColumns) -> None:
    header = dataclasses.replace(HEADER, policy=4)
    value = SignedRecord.build(header, signed).encode()
    assert SignedRecord.decode(value).header == header == header_of(value)
    with pytest.raises(MalformedBatch):
        header_of(write_ipc(*_with(value, policy="four")))


def _with(value: bytes, **fields: str) -> tuple[Any, dict[str, str]]:
    rows, found = read_ipc(value)
    return rows, found | fields


@pytest.mark.parametrize("change", [{"codec": "2"}, {"count": "39"}, {"count": "x"}, {"fence": ""}, {"seq": "1.5"}])
def test_metadata_that_does_not_fit_is_refused(signed: SignedColumns, change: dict[str, str]) -> None:
    rows, fields = read_ipc(SignedRecord.build(HEADER, signed).encode())
    with pytest.raises(MalformedBatch):
        SignedRecord.decode(write_ipc(rows, fields | change))


def test_a_batch_is_not_a_signed_batch(signed: SignedColumns) -> None:
    value = SignedRecord.build(HEADER, signed).encode()
    _, fields = read_ipc(value)
    for wrong in (rows_.batch(mixed_rows(3)).encode(), write_ipc(rows_.record_batch(mixed_rows(COUNT)), fields)):
        with pytest.raises(MalformedBatch):
            SignedRecord.decode(wrong)


@pytest.mark.parametrize("name", ["nonce", "hash", "raw"])
def test_a_null_where_none_may_be_is_refused(signed: SignedColumns, name: str) -> None:
    rows, fields = read_ipc(SignedRecord.build(HEADER, signed).encode())
    columns: list[Any] = list(rows.columns)
    place = rows.schema.get_field_index(name)
    columns[place] = pa.nulls(COUNT, rows.schema.field(place).type)
    with pytest.raises(MalformedBatch):
        SignedRecord.decode(write_ipc(pa.RecordBatch.from_arrays(columns, schema=rows.schema), fields))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_value_is_read_or_refused(data: st.DataObject) -> None:
    empty = SignedRecord.build(NOTHING, SignedColumns.empty()).encode()
    value = bytearray(empty)
    for _ in range(data.draw(st.integers(1, 3))):
        value[data.draw(st.integers(0, len(value) - 1))] ^= data.draw(st.integers(1, 255))
    for read in (SignedRecord.decode, header_of):
        try:
            read(bytes(value))
        except MalformedBatch:
            continue


REJECTION = Rejection(
    tx_id=42,
    source="payouts",
    shard=3,
    seq=7,
    chain_id=1,
    reason="unknown_type",
    detail="type 9; known are 0 legacy, 1 access list, 2 fee market",
    rules_version=1,
    rejected_at=1_700_000_000_000,
)


def test_a_rejection_comes_back_as_it_was() -> None:
    assert Rejection.from_json(REJECTION.to_json()) == REJECTION


def test_a_rejection_is_the_public_contract() -> None:
    assert REJECTION.to_json().decode() == (
        '{"chain_id":1,"detail":"type 9; known are 0 legacy, 1 access list, 2 fee market","policy":0,'
        '"reason":"unknown_type","rejected_at":1700000000000,"rules_version":1,"seq":7,"shard":3,"source":"payouts","tx_id":42}'
    )


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"null", b"7", b'{"tx_id": 1}', b"\xff", b'"text"'])
def test_what_is_no_rejection_is_refused(value: bytes) -> None:
    with pytest.raises(MalformedBatch):
        Rejection.from_json(value)


def test_a_rejection_with_another_field_or_type_is_refused() -> None:
    for changed in (
        REJECTION.to_json().replace(b'"seq":7', b'"seq":"7"'),
        REJECTION.to_json().replace(b'"seq":7', b'"seq":7,"more":1'),
        REJECTION.to_json().replace(b'"source":"payouts"', b'"source":null'),
    ):
        with pytest.raises(MalformedBatch):
            Rejection.from_json(changed)

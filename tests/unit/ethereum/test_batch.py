from __future__ import annotations

import dataclasses
import hashlib
import itertools
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import MalformedBatch
from pipeline.ethereum.batch import ACCESS_LIST, COLUMNS, Batch, BatchHeader
from pipeline.ethereum.columns import Columns
from pipeline.ethereum.ipc import write_ipc
from pipeline.ethereum.reasons import Reason
from pipeline.stream import Cursor, Stream
from tests import ethereum_rows as rows_

LISTED = [
    {"address": b"\x11" * 20, "storage_keys": [b"\x22" * 32, b"\x33" * 32]},
    {"address": b"\x44" * 20, "storage_keys": []},
]

ROWS = [
    rows_.row(tx_id=1, data=b"abc"),
    rows_.row(tx_id=2, type=0, to=None, data=b"\x60\x00"),
    rows_.row(tx_id=3, type=1, access_list=LISTED),
    rows_.row(tx_id=-4, access_list=[]),
    rows_.row(tx_id=5, defect=int(Reason.TO_MALFORMED)),
    rows_.row(tx_id=6, access_list=LISTED[:1], data=b"\0" * 100),
]

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


def same(a: Columns, b: Columns) -> bool:
    pairs: list[tuple[Any, Any]] = list(zip(a, b, strict=True))
    return all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in pairs)


def with_column(batch: pa.RecordBatch, name: str, column: Any) -> pa.RecordBatch:
    columns: list[Any] = list(batch.columns)
    columns[batch.schema.get_field_index(name)] = column
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def test_it_comes_back_as_it_was() -> None:
    batch = rows_.batch(ROWS)
    again = Batch.decode(batch.encode())
    assert again.header == batch.header
    assert again.digest == batch.digest
    assert again.rows.to_pylist() == batch.rows.to_pylist() == ROWS
    assert same(again.columns, batch.columns)


def test_the_metadata_is_the_public_contract() -> None:
    metadata = pa.ipc.open_stream(rows_.batch(ROWS).encode()).schema.metadata
    assert metadata is not None
    assert {name.decode(): value.decode() for name, value in metadata.items()} == {
        "oncesign.codec": "1",
        "oncesign.source": "payouts",
        "oncesign.shard": "3",
        "oncesign.seq": "7",
        "oncesign.prev": "740:11",
        "oncesign.cursor": "755:90",
        "oncesign.chain_id": "1",
        "oncesign.digest": rows_.batch(ROWS).digest,
        "oncesign.system_id": "7423",
    }


def test_the_digest_is_pinned() -> None:
    # A change of the canonical encoding would make every batch that is in flight a stranger: it needs a new codec.
    assert rows_.batch(ROWS).digest == "b5ecf14591ec6bbb1b56bc52584b7df60500decf92ad737ff26a54dcde016e55"


def described_digest(header: BatchHeader, rows: list[rows_.Row]) -> str:
    """The digest as the module's docstring describes it, from plain rows."""
    lists = [row["access_list"] or [] for row in rows]
    entries = [entry for entries in lists for entry in entries]

    def offsets(lengths: list[int]) -> bytes:
        return struct.pack(f"<{len(lengths) + 1}i", *itertools.accumulate(lengths, initial=0))

    def numbers(kind: str, name: str) -> bytes:
        return struct.pack(f"<{len(rows)}{kind}", *(row[name] or 0 for row in rows))

    def valid(name: str) -> bytes:
        return bytes(row[name] is not None for row in rows)

    arrays = {
        "tx_id": numbers("q", "tx_id"),
        "type": numbers("B", "type"),
        "chain_id": numbers("Q", "chain_id"),
        "to": b"".join(row["to"] or bytes(20) for row in rows),
        "to_valid": valid("to"),
        "value": b"".join(row["value"] for row in rows),
        "gas_limit": numbers("Q", "gas_limit"),
        "max_fee": numbers("Q", "max_fee_per_gas"),
        "priority": numbers("Q", "max_priority_fee_per_gas"),
        "priority_valid": valid("max_priority_fee_per_gas"),
        "data_offsets": offsets([len(row["data"]) for row in rows]),
        "data": b"".join(row["data"] for row in rows),
        "list_valid": valid("access_list"),
        "list_offsets": offsets([len(entries) for entries in lists]),
        "addresses": b"".join(entry["address"] for entry in entries),
        "key_offsets": offsets([len(entry["storage_keys"]) for entry in entries]),
        "storage_keys": b"".join(key for entry in entries for key in entry["storage_keys"]),
        "defect": numbers("B", "defect"),
    }
    lines = (1, header.stream, header.seq, header.prev, header.cursor, header.chain_id, header.system_id, len(rows))
    text = b"oncesign-batch\0" + b"".join(f"{line}\n".encode() for line in lines)
    for name, array in arrays.items():
        text += name.encode() + b"\0" + len(array).to_bytes(8, "little") + array
    return hashlib.sha256(text).hexdigest()


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
@given(st.lists(rows_.rows(), min_size=1, max_size=8))
def test_the_digest_is_what_its_docstring_says(rows: list[rows_.Row]) -> None:
    assert rows_.batch(rows).digest == described_digest(rows_.header(), rows)


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
@given(st.lists(rows_.rows(), min_size=1, max_size=8), st.integers(0, 5), st.integers(0, 5))
def test_the_digest_does_not_see_slices(rows: list[rows_.Row], before: int, after: int) -> None:
    padding = [rows_.row(access_list=LISTED, data=b"xyz", to=None), rows_.row(type=0)]
    framed = rows_.record_batch([*padding * before, *rows, *padding * after]).slice(2 * before, len(rows))
    sliced = Batch.build(rows_.header(), framed)
    assert sliced.digest == rows_.batch(rows).digest
    assert same(sliced.columns, rows_.batch(rows).columns)
    assert Batch.decode(sliced.encode()).digest == sliced.digest


def test_the_digest_does_not_see_what_lies_under_a_null() -> None:
    rows = [rows_.row(access_list=LISTED), rows_.row(access_list=None), rows_.row(access_list=LISTED[1:])]
    plain = rows_.record_batch(rows)
    full = rows_.record_batch([row | {"access_list": row["access_list"] or LISTED} for row in rows])
    lists: Any = full.column("access_list")
    hidden: Any = pa.ListArray.from_arrays(
        lists.offsets, lists.values, mask=pa.array([False, True, False]), type=lists.type
    )
    assert hidden.to_pylist() == plain.column("access_list").to_pylist()
    assert len(hidden.values) > len(hidden.flatten())
    covered = Batch.build(rows_.header(), with_column(plain, "access_list", hidden))
    assert same(covered.columns, Batch.build(rows_.header(), plain).columns)
    assert covered.digest == Batch.build(rows_.header(), plain).digest


def test_the_digest_does_not_see_values_under_nulls() -> None:
    rows = rows_.record_batch([rows_.row(), rows_.row(type=0, to=None)])
    tips = pa.array(np.array([10**9, 77], np.uint64), mask=np.array([False, True]))
    to = pa.Array.from_buffers(pa.binary(20), 2, [pa.py_buffer(b"\x01"), pa.py_buffer(b"\x35" * 40)])
    noisy = with_column(with_column(rows, "max_priority_fee_per_gas", tips), "to", to)
    assert noisy.to_pylist() == rows.to_pylist()
    assert Batch.build(rows_.header(), noisy).digest == Batch.build(rows_.header(), rows).digest


@pytest.mark.parametrize(
    "change",
    [
        {"tx_id": 9},
        {"type": 1},
        {"chain_id": 5},
        {"to": None},
        {"to": bytes(20)},
        {"value": rows_.wei(1)},
        {"gas_limit": 21_001},
        {"max_fee_per_gas": 1},
        {"max_priority_fee_per_gas": None},
        {"max_priority_fee_per_gas": 0},
        {"data": b"\0"},
        {"access_list": []},
        {"access_list": LISTED[:1]},
        {"defect": 3},
    ],
)
def test_the_digest_sees_every_column(change: rows_.Row) -> None:
    assert rows_.batch([rows_.row(**change)]).digest != rows_.batch([rows_.row()]).digest


def test_the_digest_sees_where_data_is_cut() -> None:
    one = rows_.batch([rows_.row(data=b"ab"), rows_.row(data=b"c")])
    other = rows_.batch([rows_.row(data=b"a"), rows_.row(data=b"bc")])
    assert one.digest != other.digest


@pytest.mark.parametrize(
    "change",
    [
        {"stream": Stream("payouts", 4)},
        {"seq": 8},
        {"prev": Cursor(740, 12)},
        {"cursor": Cursor(755, 91)},
        {"chain_id": 5},
        {"system_id": "7424"},
    ],
)
def test_the_digest_sees_the_header(change: dict[str, Any]) -> None:
    header = dataclasses.replace(rows_.header(), **change)
    assert Batch.build(header, rows_.record_batch(ROWS)).digest != rows_.batch(ROWS).digest


def renamed(rows: pa.RecordBatch) -> pa.RecordBatch:
    return rows.rename_columns([name if name != "gas_limit" else "gas" for name in rows.schema.names])


def with_null(name: str) -> Any:
    return lambda rows: with_column(rows, name, pa.nulls(rows.num_rows, rows.schema.field(name).type))


def with_null_key(rows: pa.RecordBatch) -> pa.RecordBatch:
    entry = {"address": b"\x11" * 20, "storage_keys": [None]}
    return with_column(rows, "access_list", pa.array([[entry]] * rows.num_rows, rows.schema.field("access_list").type))


@pytest.mark.parametrize(
    "broken",
    [
        renamed,
        lambda rows: rows.select(range(10)),
        lambda rows: rows.slice(0, 0),
        with_null("value"),
        with_null("chain_id"),
        with_null("data"),
        with_null("defect"),
        with_null_key,
        lambda rows: with_column(rows, "defect", pa.array([int(Reason.SIGNING_FAILED)] * rows.num_rows, pa.uint8())),
        lambda rows: with_column(rows, "defect", pa.array([200] * rows.num_rows, pa.uint8())),
    ],
)
def test_rows_that_are_not_a_batch_are_refused(broken: Any) -> None:
    with pytest.raises(MalformedBatch):
        Batch.build(rows_.header(), broken(rows_.record_batch(ROWS)))


@pytest.mark.parametrize("chain_id", [0, -1, 2**63 - 36, 2**64])
def test_a_chain_id_that_no_signature_can_carry_is_refused(chain_id: int) -> None:
    with pytest.raises(MalformedBatch):
        rows_.batch(ROWS, chain_id)


def test_the_largest_chain_id_is_taken() -> None:
    assert rows_.batch(ROWS, 2**63 - 37).header.chain_id == 2**63 - 37


def fields() -> dict[str, str]:
    metadata = pa.ipc.open_stream(rows_.batch(ROWS).encode()).schema.metadata or {}
    return {name.decode().removeprefix("oncesign."): value.decode() for name, value in metadata.items()}


def test_metadata_put_together_by_hand_is_taken() -> None:
    assert Batch.decode(write_ipc(rows_.record_batch(ROWS), fields())).digest == rows_.batch(ROWS).digest


@pytest.mark.parametrize(
    "name", ["codec", "source", "shard", "seq", "prev", "cursor", "chain_id", "digest", "system_id"]
)
def test_metadata_that_lacks_a_field_is_refused(name: str) -> None:
    lacking = {key: value for key, value in fields().items() if key != name}
    with pytest.raises(MalformedBatch):
        Batch.decode(write_ipc(rows_.record_batch(ROWS), lacking))


@pytest.mark.parametrize(
    "change",
    [
        {"codec": "2"},
        {"codec": "one"},
        {"shard": "x"},
        {"seq": ""},
        {"seq": "8"},
        {"prev": "740"},
        {"cursor": "1:--1"},
        {"chain_id": "1.0"},
        {"chain_id": "5"},
        {"system_id": "0"},
        {"digest": "00" * 32},
    ],
)
def test_metadata_that_is_changed_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(MalformedBatch):
        Batch.decode(write_ipc(rows_.record_batch(ROWS), fields() | change))


def test_rows_that_are_changed_are_refused() -> None:
    changed = rows_.record_batch([ROWS[0] | {"value": rows_.wei(10**18 + 1)}, *ROWS[1:]])
    with pytest.raises(MalformedBatch, match="digest"):
        Batch.decode(write_ipc(changed, fields()))


def several(count: int) -> bytes:
    rows = rows_.record_batch(ROWS)
    sink = pa.BufferOutputStream()
    metadata: dict[bytes | str, bytes | str] = {f"oncesign.{name}": value for name, value in fields().items()}
    with pa.ipc.new_stream(sink, rows.schema.with_metadata(metadata)) as writer:
        for _ in range(count):
            writer.write_batch(rows)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("count", [0, 2])
def test_another_number_of_record_batches_is_refused(count: int) -> None:
    with pytest.raises(MalformedBatch, match=str(count)):
        Batch.decode(several(count))


@pytest.mark.parametrize("value", [b"", b"\0", b"hello", b'{"tx_id": 1}', b"\xff" * 64, b"ARROW1\0\0" * 8])
def test_what_is_not_arrow_is_refused(value: bytes) -> None:
    with pytest.raises(MalformedBatch):
        Batch.decode(value)


def test_a_truncated_value_is_refused_or_whole() -> None:
    batch = rows_.batch(ROWS)
    value = batch.encode()
    for length in range(0, len(value), 7):
        try:
            assert Batch.decode(value[:length]).digest == batch.digest  # only the end-of-stream mark was cut off
        except MalformedBatch:
            continue
        assert length >= len(value) - 8


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_value_is_refused_or_harmless(data: st.DataObject) -> None:
    batch = rows_.batch(ROWS)
    value = bytearray(batch.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        value[data.draw(st.integers(0, len(value) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        again = Batch.decode(bytes(value))
    except MalformedBatch:
        return
    assert (again.header, again.digest) == (batch.header, batch.digest)
    assert same(again.columns, batch.columns)


def test_the_schema_is_the_public_contract() -> None:
    assert str(ACCESS_LIST) == (
        "list<item: struct<address: fixed_size_binary[20] not null, "
        "storage_keys: list<item: fixed_size_binary[32] not null> not null>>"
    )
    assert [f"{field.name} {field.type}{'' if field.nullable else ' not null'}" for field in COLUMNS] == [
        "tx_id int64 not null",
        "type uint8 not null",
        "chain_id uint64 not null",
        "to fixed_size_binary[20]",
        "value fixed_size_binary[32] not null",
        "gas_limit uint64 not null",
        "max_fee_per_gas uint64 not null",
        "max_priority_fee_per_gas uint64",
        "data binary not null",
        f"access_list {ACCESS_LIST}",
        "defect uint8 not null",
    ]

"""Where batches end: by rows, by bytes, never inside a row."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from pipeline.assignment.records import StreamRecord
from pipeline.errors import StreamHalted
from pipeline.ethereum.batch import EXTRA_COLUMNS, WIDE, BatchHeader
from pipeline.ethereum.rows import SENDER
from pipeline.ports import ReaderPosition
from pipeline.stages.cut import ROW_OVERHEAD_BYTES, cut, row_bytes
from pipeline.stages.reader import check_position, judged, lane_of
from pipeline.stream import Cursor, Stream
from tests.ethereum_rows import Row, row

STREAM = Stream("payouts", 0)
POSITION = ReaderPosition(5, Cursor(9, 9), "d5", "system")
RECORD = StreamRecord(STREAM, 1, "system", 5, Cursor(9, 9), "d5")


def stored(*rows: Row) -> pa.RecordBatch:
    """As a source gives them."""
    nothing = dict.fromkeys(("sender", *EXTRA_COLUMNS.names))
    return pa.RecordBatch.from_pylist([nothing | made for made in rows], schema=pa.schema([SENDER, *WIDE]))


def sizes(data: list[int], rows_max: int, bytes_max: int) -> list[int]:
    rows = stored(*(row(data=bytes(size)) for size in data))
    return [part.num_rows for part in cut(rows, rows_max, bytes_max)]


def test_rows_bound() -> None:
    assert sizes([0] * 10, 4, 10**9) == [4, 4, 2]


def test_bytes_bound() -> None:
    assert sizes([1_000] * 4, 100, 2 * (1_000 + ROW_OVERHEAD_BYTES)) == [2, 2]


def test_a_row_above_the_bound_is_a_batch_of_its_own() -> None:
    assert sizes([10, 50_000, 10], 100, 1_000) == [1, 1, 1]


def test_access_lists_count() -> None:
    entry = {"address": bytes(20), "storage_keys": [bytes(32)] * 3}
    plain, listed = row_bytes(stored(row(), row(access_list=[entry])))
    assert listed - plain >= 20 + 3 * 32


def test_blob_hashes_and_authorizations_count() -> None:
    signed = {"chain_id": 1, "address": bytes(20), "nonce": 0, "y_parity": 0, "r": bytes(32), "s": bytes(32)}
    extra = {"blob_hashes": [bytes(32)] * 2, "authorization_list": [signed] * 3}
    plain, extended = row_bytes(stored(row(), row(type=3) | extra))
    assert extended - plain >= 2 * 32 + 3 * (20 + 32 + 32 + 17)


def lanes(*made: tuple[bytes | None, int], rows_max: int = 10) -> list[int]:
    rows = stored(*(row(type=kind) | {"sender": sender} for sender, kind in made))
    return [part.num_rows for part in cut(rows, rows_max, 10**9)]


X, Y = bytes(20), b"\1" * 20


def test_a_batch_has_one_sender() -> None:
    assert lanes((X, 2), (X, 0), (Y, 2), (None, 2), (None, 2), (X, 2)) == [2, 1, 2, 1]
    assert lanes(*[(X, 2)] * 5, *[(Y, 2)] * 3, rows_max=2) == [2, 2, 1, 2, 1]
    assert lanes((None, 2), (X, 2)) == [1, 1]
    assert lanes((X, 2)) == [1]


def test_blob_transactions_are_batched_apart() -> None:
    assert lanes((None, 2), (None, 3), (None, 3), (None, 4), (None, 0)) == [1, 2, 2]
    assert lanes((X, 3), (Y, 3), (Y, 2)) == [1, 1, 1]


def test_what_a_batch_of_them_says() -> None:
    header = BatchHeader(STREAM, 1, Cursor(1, 1), Cursor(2, 2), 1, "system")
    plain = lane_of(header, stored(row()))
    assert plain == header
    assert judged(plain, stored(row()), None).header.codec == 1
    pinned = stored(row() | {"sender": Y})
    assert lane_of(header, pinned) == replace(header, wide=True, sender="0x" + Y.hex())
    assert judged(lane_of(header, pinned), pinned, None).header.codec == 3
    for wide in (row(type=3), row(type=4), row() | {"max_fee_per_blob_gas": 1}, row() | {"blob_hashes": []}):
        assert lane_of(header, stored(wide)) == replace(header, wide=True)


def test_a_position_that_fits_is_taken() -> None:
    check_position(STREAM, POSITION, RECORD, "system")


@pytest.mark.parametrize(
    ("position", "record", "system_id"),
    [
        (POSITION, RECORD, "another"),
        (POSITION, StreamRecord(STREAM, 1, "system", 6, Cursor(9, 10), "d6"), "system"),
        (POSITION, StreamRecord(STREAM, 1, "system", 5, Cursor(9, 9), "other"), "system"),
    ],
    ids=["another Postgres", "Kafka behind etcd", "another batch"],
)
def test_a_position_that_cannot_be_right_halts(position: ReaderPosition, record: StreamRecord, system_id: str) -> None:
    with pytest.raises(StreamHalted):
        check_position(STREAM, position, record, system_id)

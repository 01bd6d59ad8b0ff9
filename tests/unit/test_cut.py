"""Where batches end: by rows, by bytes, never inside a row."""

from __future__ import annotations

import pytest

from pipeline.assignment.records import StreamRecord
from pipeline.errors import StreamHalted
from pipeline.ports import ReaderPosition
from pipeline.stages.cut import ROW_OVERHEAD_BYTES, cut, row_bytes
from pipeline.stages.reader import check_position
from pipeline.stream import Cursor, Stream
from tests.ethereum_rows import batch, row

STREAM = Stream("payouts", 0)
POSITION = ReaderPosition(5, Cursor(9, 9), "d5", "system")
RECORD = StreamRecord(STREAM, 1, "system", 5, Cursor(9, 9), "d5")


def sizes(data: list[int], rows_max: int, bytes_max: int) -> list[int]:
    rows = batch([row(data=bytes(size)) for size in data]).rows
    return [part.num_rows for part in cut(rows, rows_max, bytes_max)]


def test_rows_bound() -> None:
    assert sizes([0] * 10, 4, 10**9) == [4, 4, 2]


def test_bytes_bound() -> None:
    assert sizes([1_000] * 4, 100, 2 * (1_000 + ROW_OVERHEAD_BYTES)) == [2, 2]


def test_a_row_above_the_bound_is_a_batch_of_its_own() -> None:
    assert sizes([10, 50_000, 10], 100, 1_000) == [1, 1, 1]


def test_access_lists_count() -> None:
    entry = {"address": bytes(20), "storage_keys": [bytes(32)] * 3}
    plain, listed = row_bytes(batch([row(), row(access_list=[entry])]).rows)
    assert listed - plain >= 20 + 3 * 32


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

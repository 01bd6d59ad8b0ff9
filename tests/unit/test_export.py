"""An export's parts: the join, the order in which Kafka is read, the formats, the draft."""

from __future__ import annotations

import csv
import datetime as dt
import errno
import io
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline.errors import DiskFull, OutputFileError, UsageError, ViolationFound
from pipeline.ethereum.signed import SignedRecord
from pipeline.export import formats
from pipeline.export.columns import COLUMNS
from pipeline.export.draft import draft
from pipeline.export.formats import WRITERS, format_of
from pipeline.export.records import SignedRecords
from pipeline.export.rows import RowCount, exported, runs
from pipeline.ports import Message, Place
from pipeline.testing.batch_log import TwinBatchLog
from tests.published import SECRETS, SIGNED, Publisher

PLACES = ("topic", "partition", "kafka_offset", "shard", "seq")
MOMENT = dt.datetime(2026, 3, 1, 12, 30, 15, 250, dt.UTC)


def outcomes(record: SignedRecord, place: Place, **changed: Any) -> list[dict[str, Any]]:
    """What the verifier writes of a record."""
    header = record.header
    common = {
        "source": header.stream.source, "status": "signed", "chain_id": header.chain_id, "reason": None, "detail": None,
        "sender": bytes.fromhex(header.sender[2:]), "decided_at": MOMENT, "topic": place.topic,
        "partition": place.partition, "kafka_offset": place.offset, "shard": header.stream.shard, "seq": header.seq,
    }  # fmt: skip
    signed = [row for row in record.rows.to_pylist() if row["tx_id"] is not None]
    return [common | {name: row[name] for name in ("tx_id", "nonce", "hash")} | changed for row in signed]


def rejection(tx_id: int) -> dict[str, Any]:
    return {
        "source": "payouts", "tx_id": tx_id, "status": "rejected", "chain_id": 1, "sender": None, "nonce": None,
        "hash": None, "reason": "to_malformed", "detail": 'not "20", bytes', "decided_at": MOMENT,
        "topic": "tx.rejected", "partition": 0, "kafka_offset": tx_id, "shard": 0, "seq": 1,
    }  # fmt: skip


def batch_of(found: Sequence[dict[str, Any]]) -> pa.RecordBatch:
    kinds = {"topic": pa.string(), "partition": pa.int32(), "kafka_offset": pa.int64(), "shard": pa.int16()}
    fields = [(name, COLUMNS.field(name).type) for name in COLUMNS.names if name != "raw"]
    fields += [(name, kinds.get(name, pa.int64())) for name in PLACES]
    return pa.RecordBatch.from_pylist(list(found), schema=pa.schema(fields))


class Listed:
    """Fulfils Decided."""

    def __init__(self, *pieces: Sequence[dict[str, Any]]) -> None:
        self.pieces = pieces

    async def batches(self) -> AsyncGenerator[pa.RecordBatch, None]:
        for piece in self.pieces:
            yield batch_of(piece)


class Watched(TwinBatchLog):
    """Counts seeks."""

    def __init__(self, publisher: Publisher) -> None:
        super().__init__(publisher.broker)
        self.seeks: list[tuple[int, int]] = []

    async def scan(self, topic: str, partition: int, start: int, end: int) -> AsyncGenerator[Message, None]:
        self.seeks.append((partition, start))
        async for message in super().scan(topic, partition, start, end):
            yield message


async def topics() -> list[str]:
    return [SIGNED]


async def export(decided: Listed, log: TwinBatchLog, count: RowCount) -> list[dict[str, Any]]:
    records = SignedRecords(log, topics)
    found = [row async for table in exported(decided, records, count) for row in table.to_pylist()]
    await records.close()
    return found


@pytest.fixture
def publisher() -> Publisher:
    made = Publisher()
    made.stock(60)
    return made


# ── the join ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_each_row_gets_its_own_bytes_and_each_partition_is_read_once(publisher: Publisher) -> None:
    records = [await publisher.honest(shard, 10, SECRETS[shard]) for shard in (0, 0, 1)]
    places = [Place(SIGNED, 0, 0), Place(SIGNED, 0, 2), Place(SIGNED, 1, 0)]  # a commit's marker takes an offset
    found = [outcomes(record, place) for record, place in zip(records, places, strict=True)]
    # Postgres hands rows over in pieces that know nothing of records.
    decided = Listed([rejection(7), *found[0], *found[1][:4]], found[1][4:], found[2])
    log, count = Watched(publisher), RowCount()
    rows = await export(decided, log, count)
    assert (count.signed, count.rejected, count.gone) == (30, 1, 0)
    assert [row["raw"] for row in rows[1:]] == [raw for r in records for raw in r.rows.column("raw").to_pylist()]
    assert rows[0]["raw"] is None
    assert log.seeks == [(0, 0), (1, 0)]


async def test_what_kafka_has_deleted_is_counted(publisher: Publisher) -> None:
    records = [await publisher.honest(0, 5) for _ in range(3)]
    publisher.broker.partition(SIGNED, 0).trim(1)
    found = [outcome for at, record in enumerate(records) for outcome in outcomes(record, Place(SIGNED, 0, 2 * at))]
    elsewhere = outcomes(records[2], Place("before.signed", 0, 2))  # of an earlier topic prefix
    beyond = outcomes(records[2], Place(SIGNED, 0, 99))  # of a topic that was longer
    count = RowCount()
    rows = await export(Listed([*elsewhere, *found, *beyond]), TwinBatchLog(publisher.broker), count)
    assert (count.signed, count.gone) == (25, 15)
    assert [row["raw"] is None for row in rows] == [True] * 10 + [False] * 10 + [True] * 5


class Trimmed(TwinBatchLog):
    """Kafka deletes the oldest records just before they are read."""

    def __init__(self, publisher: Publisher) -> None:
        super().__init__(publisher.broker)
        self._publisher = publisher

    async def scan(self, topic: str, partition: int, start: int, end: int) -> AsyncGenerator[Message, None]:
        self._publisher.broker.partition(topic, partition).trim(1)
        async for message in super().scan(topic, partition, start, end):
            yield message


async def test_what_kafka_deletes_meanwhile_is_counted_too(publisher: Publisher) -> None:
    records = [await publisher.honest(0, 5) for _ in range(2)]
    found = [outcome for at, record in enumerate(records) for outcome in outcomes(record, Place(SIGNED, 0, 2 * at))]
    count = RowCount()
    await export(Listed(found), Trimmed(publisher), count)
    assert (count.signed, count.gone) == (10, 5)


async def test_another_batch_at_the_place_is_another_topic(publisher: Publisher) -> None:
    record = await publisher.honest(0, 5)
    before = outcomes(record, Place(SIGNED, 0, 0), seq=77)
    count = RowCount()
    await export(Listed([*outcomes(record, Place(SIGNED, 0, 0)), *before]), TwinBatchLog(publisher.broker), count)
    assert (count.signed, count.gone) == (10, 5)


@pytest.mark.parametrize("changed", [{"nonce": 999}, {"hash": bytes(32)}, {"tx_id": 12345}])
async def test_bytes_that_the_verifier_did_not_see_are_not_exported(
    publisher: Publisher, changed: dict[str, Any]
) -> None:
    record = await publisher.honest(0, 5)
    found = outcomes(record, Place(SIGNED, 0, 0))
    found[3] |= changed
    with pytest.raises(ViolationFound, match=rf"row {found[3]['tx_id']} of payouts: tx.signed\[0\]@0 has another"):
        await export(Listed(found), TwinBatchLog(publisher.broker), RowCount())


async def test_fillers_are_no_rows(publisher: Publisher) -> None:
    plain = publisher.sign(await publisher.batch(0, 4), SECRETS[0])
    [first, _, *others] = plain.rows.column("tx_id").to_pylist()
    filled = pa.array([first, None, *others], pa.int64())
    record = replace(plain, rows=plain.rows.set_column(0, plain.rows.schema.field(0), filled))
    publisher.publish(record)
    count = RowCount()
    rows = await export(Listed(outcomes(record, Place(SIGNED, 0, 0))), TwinBatchLog(publisher.broker), count)
    assert (count.signed, count.gone) == (3, 0)
    [raw, _, *more] = plain.rows.column("raw").to_pylist()
    assert [row["raw"] for row in rows] == [raw, *more]


def test_no_rows_are_no_runs() -> None:
    assert list(runs(batch_of([]))) == []
    assert [run.num_rows for run in runs(batch_of([rejection(1), rejection(2)]))] == [2]


# ── formats ──────────────────────────────────────────────────────────────────────────────────────────────────────────

ROWS: list[dict[str, Any]] = [
    {
        "source": "payouts", "tx_id": 1, "status": "signed", "chain_id": 1, "sender": b"\x01" * 20,
        "nonce": 2**64 - 1, "hash": b"\xab" * 32, "raw": b"\x02\xff", "reason": None, "detail": None,
        "decided_at": MOMENT,
    },
    {
        "source": "payouts", "tx_id": 2, "status": "rejected", "chain_id": 1, "sender": None, "nonce": None,
        "hash": None, "raw": None, "reason": "to_malformed", "detail": 'not "20", bytes', "decided_at": MOMENT,
    },
]  # fmt: skip
TIME = "2026-03-01T12:30:15.000250Z"


def written(form: str, *tables: Sequence[dict[str, Any]]) -> io.BytesIO:
    sink = io.BytesIO()
    writer = WRITERS[form](sink)
    for table in tables:
        writer.write(pa.Table.from_pylist(list(table), schema=COLUMNS))
    writer.close()
    sink.seek(0)
    return sink


def test_parquet_keeps_the_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "ROW_GROUP_ROWS", 3)
    file = parquet.ParquetFile(written("parquet", ROWS, ROWS, ROWS[:1]))
    assert file.read().to_pylist() == [*ROWS, *ROWS, *ROWS[:1]]
    assert file.schema_arrow.equals(COLUMNS)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [4, 1]


def test_a_large_row_group_is_written_before_it_has_all_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "ROW_GROUP_BYTES", 100)
    assert parquet.ParquetFile(written("parquet", ROWS, ROWS)).num_row_groups == 2


def test_json_lines_are_text_and_numbers() -> None:
    signed, rejected = [json.loads(line) for line in written("jsonl", ROWS)]
    assert signed == ROWS[0] | {
        "sender": "0x" + "01" * 20, "hash": "0x" + "ab" * 32, "raw": "0x02ff", "decided_at": TIME,
    }  # fmt: skip
    assert rejected == ROWS[1] | {"decided_at": TIME}


def test_csv_has_the_same_and_one_header() -> None:
    lines = list(csv.DictReader(io.TextIOWrapper(written("csv", ROWS, ROWS))))
    assert len(lines) == 4
    assert lines[0]["raw"] == "0x02ff"
    assert lines[0]["nonce"] == str(2**64 - 1)
    assert lines[0]["decided_at"] == TIME
    assert (lines[1]["raw"], lines[1]["detail"]) == ("", 'not "20", bytes')


@pytest.mark.parametrize("form", WRITERS)
def test_no_rows_are_a_file_without_rows(form: str) -> None:
    text = written(form).getvalue()
    assert text.count(b"\n") == 1 if form == "csv" else form == "parquet" or text == b""


def test_the_suffix_names_the_format() -> None:
    assert format_of(Path("a.PARQUET"), None) == "parquet"
    assert format_of(Path("a.parquet"), "csv") == "csv"
    for path in ("a.xlsx", "csv", "-"):
        with pytest.raises(UsageError, match="Give --format: parquet, csv, jsonl"):
            format_of(Path(path), None)


# ── the draft ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_has_its_name_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with draft(path, replace=False) as sink:
        sink.write(b"half")
        sink.flush()
        [beside] = tmp_path.iterdir()
        assert beside != path
    assert path.read_bytes() == b"half"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ViolationFound()])
def test_a_file_that_was_not_completed_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "out.csv"

    def interrupted() -> None:
        with draft(path, replace=True) as sink:
            sink.write(b"half")
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("precious")
    with pytest.raises(OutputFileError, match="is there already"), draft(path, replace=False):
        pytest.fail("it was opened")
    with pytest.raises(ViolationFound), draft(path, replace=True):
        raise ViolationFound
    assert path.read_text() == "precious"
    with draft(path, replace=True) as sink:
        sink.write(b"new")
    assert path.read_text() == "new"


def test_a_file_that_came_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with pytest.raises(OutputFileError, match="is there already"), draft(path, replace=False):
        path.write_text("quicker")
    assert path.read_text() == "quicker"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=r"out\.csv.*Nothing was written"), draft(tmp_path / "out.csv", replace=False):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []

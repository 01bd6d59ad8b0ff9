"""Outcomes joined with the signed bytes of their records."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ViolationFound
from pipeline.ethereum.signed import SignedRecord
from pipeline.export.columns import COLUMNS
from pipeline.ports import Place
from pipeline.stream import Stream

SIGNED: Final = "signed"
NOWHERE: Final = -1
RECORD: Final = ("topic", "partition", "kafka_offset", "source", "shard", "seq")
"""What the rows of a record have in common; the place alone, too, unless a topic was made anew."""


class Decided(Protocol):
    """Outcomes, a bounded piece at a time."""

    def batches(self) -> AsyncGenerator[pa.RecordBatch, None]:
        """The columns of COLUMNS but `raw`, and `topic, partition, kafka_offset, shard, seq`; ordered by place.

        Raises DatabaseUnavailable.
        """
        ...


class Records(Protocol):
    """Signed records by their places."""

    async def at(self, place: Place) -> SignedRecord | None:
        """See records.SignedRecords."""
        ...


@dataclass(slots=True)
class RowCount:
    """What was exported. `gone` of the signed rows are without their bytes."""

    signed: int = 0
    rejected: int = 0
    gone: int = 0


async def exported(decided: Decided, records: Records, count: RowCount) -> AsyncGenerator[pa.Table, None]:
    """All rows, at most a Kafka record's at a time. Raises ViolationFound, MalformedBatch, DependencyDown."""
    async for batch in decided.batches():
        for run in runs(batch):
            if run.column("status")[0].as_py() != SIGNED:
                count.rejected += run.num_rows
                yield completed(run, pa.nulls(run.num_rows, pa.binary()))
                continue
            raw = raw_of(run, await records.at(place_of(run)))
            count.signed += run.num_rows
            count.gone += raw.null_count
            yield completed(run, raw)


def runs(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Rows of one signed record each, or rejected rows together."""
    if batch.num_rows == 0:
        return
    signed = np.asarray([status == SIGNED for status in batch.column("status").to_pylist()])
    changes = np.zeros(batch.num_rows - 1, bool)
    for name in RECORD:
        column: Any = batch.column(name)
        numbers = column.dictionary_encode().indices if pa.types.is_string(column.type) else column
        changes |= np.diff(np.where(signed, np.asarray(numbers), NOWHERE)) != 0
    bounds = [0, *(int(index) + 1 for index in np.flatnonzero(changes)), batch.num_rows]
    for start, end in pairwise(bounds):
        yield batch.slice(start, end - start)


def place_of(run: pa.RecordBatch) -> Place:
    """Where the record of a run is."""
    return Place(*(run.column(name)[0].as_py() for name in ("topic", "partition", "kafka_offset")))


def raw_of(run: pa.RecordBatch, record: SignedRecord | None) -> Any:
    """The signed bytes of each row. Raises ViolationFound when the record has others than the verifier saw."""
    stream = Stream(run.column("source")[0].as_py(), run.column("shard")[0].as_py())
    batch = stream, run.column("seq")[0].as_py()
    # Another batch at this place: the topic was made anew, and the row's record went with the old one.
    if record is None or (record.header.stream, record.header.seq) != batch:
        return pa.nulls(run.num_rows, pa.binary())
    index = pc.index_in(run.column("tx_id"), value_set=record.rows.column("tx_id"))
    same = pc.and_(
        pc.equal(run.column("nonce"), record.rows.column("nonce").take(index)),
        pc.equal(run.column("hash"), record.rows.column("hash").take(index)),
    )
    agreed = same.to_pylist()  # null where the record lacks the row
    if not all(agreed):
        tx_id = run.column("tx_id")[next(i for i, ok in enumerate(agreed) if not ok)].as_py()
        raise ViolationFound(
            f"row {tx_id} of {stream.source}: {place_of(run)} has another hash or nonce than the verifier saw there.",
            hint=f"See: oncesign tx {tx_id} --source {stream.source}",
        )
    return record.rows.column("raw").take(index)


def completed(run: pa.RecordBatch, raw: Any) -> pa.Table:
    """The exported columns."""
    return pa.table([raw if name == "raw" else run.column(name) for name in COLUMNS.names], schema=COLUMNS)

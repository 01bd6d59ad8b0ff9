"""The batch reader: committed rows of one stream become numbered batches in Kafka, each row in exactly one.

The order is `(created_xid, id)`, and only rows of transactions older than every running one are read, so that no row
can commit behind the cursor. Batch and cursor are one Kafka transaction: after a crash the next reader fences this one
and goes on from the cursor that was committed with the last batch.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final, Protocol

import pyarrow as pa

from pipeline.assignment.records import StreamRecord
from pipeline.errors import AmbiguousRound, DependencyDown, RoundAborted, StreamHalted
from pipeline.ethereum.batch import Batch, BatchHeader
from pipeline.ethereum.policy import Policy, applied
from pipeline.ethereum.rows import needs_wide
from pipeline.journal import Journal
from pipeline.ports import Clock, ReaderPosition, Source, StreamWriter
from pipeline.settings import ReaderSettings
from pipeline.stages.backoff import Backoff
from pipeline.stages.cut import cut
from pipeline.stream import START, Cursor, Stream
from pipeline.telemetry import BATCH_SECONDS, SILENT, Telemetry
from pipeline.tracing import span

journal = Journal(__name__, "reader")

FETCH_BATCHES: Final = 8
"""Batches per look at Postgres and per Kafka transaction, at the most."""

LAG_LOOK_S: Final = 0.4
"""How often a reader that is too far ahead looks whether the consumers have come closer."""

IDLE_FIRST_S: Final = 0.01
QUIET_AFTER_S: Final = 10.0
QUIET_POLL_S: Final = 2.0
"""Between two looks when nothing has come for so long, unless poll_max_s is longer: a look costs a query."""


class Streams(Protocol):
    """The key manager, as a reader sees it."""

    async def open_stream(self, record: StreamRecord) -> StreamRecord:
        """The stream's record, made if there is none. Raises StreamHalted when it is of another chain or database."""
        ...


@dataclass(slots=True)
class ReaderCount:
    """What a reader has done since it started."""

    rows: int = 0
    batches: int = 0
    seq: int = 0
    cursor: Cursor = START
    held_back: bool = False  #: waits because the consumers are too far behind


class BatchReader:
    """Reads one stream until told to stop."""

    def __init__(  # noqa: PLR0913 - ports, one of them for figures alone
        self,
        stream: Stream,
        chain_id: int,
        source: Source,
        writer: StreamWriter,
        streams: Streams,
        clock: Clock,
        settings: ReaderSettings,
        *,
        policy: Policy | None = None,
        telemetry: Telemetry = SILENT,
    ) -> None:
        """`policy` is what rows of its batches are denied by, if the source has one."""
        self.stream = stream
        self._chain_id = chain_id
        self._source = source
        self._writer = writer
        self.streams = streams
        self._clock = clock
        self._settings = settings
        self._policy = policy
        self._telemetry = telemetry
        self._consumed = 0
        self._page = self._page_max = settings.batch_rows_max * FETCH_BATCHES
        self.count = ReaderCount()

    async def rows_wait(self) -> bool:
        """Whether there is a committed row that no batch holds yet. Raises DatabaseUnavailable."""
        return await self._source.any_after(self.stream.shard, self.count.cursor)

    async def run(self, stop: asyncio.Event) -> None:
        """Raises StreamHalted, ProducerFenced, and DependencyDown after bounded retries."""
        backoff = Backoff(self._clock)
        while not stop.is_set():
            try:
                position = await self._resume()
                backoff.reset()
                await self._follow(position, stop)
            except (RoundAborted, AmbiguousRound) as error:
                journal.failed("resumes from Kafka", stream=self.stream, error=error)
                await backoff.pause(error)
            except DependencyDown as error:
                journal.failed("tries again", stream=self.stream, error=error)
                await backoff.pause(error)

    async def _resume(self) -> ReaderPosition:
        """Fence earlier readers and find the place to go on from. Raises StreamHalted."""
        system_id = await self._source.system_id()
        position = await self._writer.open()
        record = await self.streams.open_stream(StreamRecord(self.stream, self._chain_id, system_id))
        if position is None:
            position = ReaderPosition(record.seq, record.cursor, record.digest, record.system_id)
        check_position(self.stream, position, record, system_id)
        # What was assigned waits for no consumer, also where a topic made anew has no offset that says so.
        self._consumed = max(self._consumed, record.seq)
        self.count.seq, self.count.cursor = position.seq, position.cursor
        return position

    async def _follow(self, position: ReaderPosition, stop: asyncio.Event) -> None:
        idle_s, last_s = IDLE_FIRST_S, self._clock.monotonic_s()
        while not stop.is_set():
            await self._await_consumers(position.seq, stop)
            quiet = self._clock.monotonic_s() - last_s > QUIET_AFTER_S
            # Whether there is any row is asked at a fifth of what asking for all of them costs.
            batches = [] if quiet and not await self.rows_wait() else await self._next_batches(position)
            if not batches:
                await self._clock.sleep(idle_s)
                longest_s = self._settings.poll_max_s
                idle_s = min(idle_s * 2, max(longest_s, QUIET_POLL_S) if quiet else longest_s)
                continue
            idle_s, last_s = IDLE_FIRST_S, self._clock.monotonic_s()
            position = await self._publish(batches)
            if sum(batch.rows.num_rows for batch in batches) < self._settings.batch_rows_max:
                # Pace instead of waiting with rows in hand: the first row after a pause goes out at once.
                await self._clock.sleep(self._settings.linger_s)

    async def _await_consumers(self, seq: int, stop: asyncio.Event) -> None:
        """Hold back while more than lag_records_max batches wait in Kafka."""
        while seq - self._consumed >= self._settings.lag_records_max and not stop.is_set():
            self._consumed = max(self._consumed, await self._writer.consumed())
            self.count.held_back = seq - self._consumed >= self._settings.lag_records_max
            if self.count.held_back:
                await self._clock.sleep(LAG_LOOK_S)

    async def _next_batches(self, position: ReaderPosition) -> list[Batch]:
        table = await self._source.rows_after(self.stream.shard, position.cursor, self._page)
        if not table.num_rows:
            return []
        batches = batches_of(self.stream, self._chain_id, position, table, self._settings, policy=self._policy)
        used = sum(batch.rows.num_rows for batch in batches)
        # Small batches, as where each row names another sender, leave most of a page to be fetched again.
        self._page = min(self._page_max, self._page * 2) if used == table.num_rows else max(FETCH_BATCHES, used * 2)
        return batches

    async def _publish(self, batches: list[Batch]) -> ReaderPosition:
        last, begun_s = batches[-1], self._clock.monotonic_s()
        position = ReaderPosition(last.header.seq, last.header.cursor, last.digest, last.header.system_id)
        with ExitStack() as spans:
            traceparents = [spans.enter_context(span("read", self.stream, batch.header.seq)) for batch in batches]
            await self._writer.publish([batch.encode() for batch in batches], position, traceparents)
        self._telemetry.observe(BATCH_SECONDS, self._clock.monotonic_s() - begun_s, stage="read")
        self.count.rows += sum(batch.rows.num_rows for batch in batches)
        self.count.batches += len(batches)
        self.count.seq, self.count.cursor = position.seq, position.cursor
        return position


def check_position(stream: Stream, position: ReaderPosition, record: StreamRecord, system_id: str) -> None:
    """Refuse to read on from a place that cannot be right. Raises StreamHalted."""
    if position.system_id != system_id:
        raise StreamHalted(
            str(stream),
            f"its cursor belongs to Postgres {position.system_id}, but the source is Postgres {system_id}",
            hint="Point ONCESIGN_POSTGRES__DSN at the database that the stream was read from.",
        )
    if position.seq < record.seq:
        raise StreamHalted(
            str(stream), f"Kafka's cursor is at batch {position.seq}, but batch {record.seq} has been assigned"
        )
    if position.seq == record.seq and position.seq > 0 and position.digest != record.digest:
        raise StreamHalted(str(stream), f"batch {position.seq} in Kafka is not the one that was assigned")


def batches_of(
    stream: Stream,
    chain_id: int,
    position: ReaderPosition,
    table: pa.Table,
    settings: ReaderSettings,
    policy: Policy | None = None,
) -> list[Batch]:
    """Cut rows that follow a position into batches that follow it, with what the policy denies."""
    if table.num_rows == 0:
        return []
    rows = table.combine_chunks().to_batches()[0]
    batches: list[Batch] = []
    seq, prev = position.seq, position.cursor
    for part in cut(rows, settings.batch_rows_max, settings.batch_bytes_max):
        cursor = last_cursor(part)
        seq += 1
        header = BatchHeader(stream, seq, prev, cursor, chain_id, position.system_id)
        batches.append(judged(lane_of(header, part), part, policy))
        prev = cursor
        if len(batches) == FETCH_BATCHES:
            break
    return batches


def lane_of(header: BatchHeader, rows: pa.RecordBatch) -> BatchHeader:
    """The header with what these rows of one lane need: the sender that they name, the columns of newer types."""
    sender = rows.column("sender")[0].as_py()
    return replace(header, wide=needs_wide(rows), sender="0x" + sender.hex() if sender else "")


def judged(header: BatchHeader, rows: pa.RecordBatch, policy: Policy | None) -> Batch:
    """A batch of rows as the source has them, after its policy; its header says which."""
    rows = rows.select(header.schema.names)
    if policy is None:
        return Batch.build(header, rows)
    return Batch.build(replace(header, policy=policy.version), applied(policy, rows))


def last_cursor(rows: pa.RecordBatch) -> Cursor:
    """The cursor of the last row."""
    last = rows.num_rows - 1
    return Cursor(rows.column("created_xid")[last].as_py(), rows.column("id")[last].as_py())

"""A stream's writer: batches and position together or not at all, and one writer at a time."""

from __future__ import annotations

import pytest

from pipeline.errors import ProducerFenced, RoundAborted, SettingError
from pipeline.ethereum.batch import Batch, BatchHeader
from pipeline.ports import Outgoing, Progress, ReaderPosition
from pipeline.stream import START, Cursor, Stream
from tests.bus import Bus, received, scanned, settled
from tests.ethereum_rows import record_batch, row

TOO_LARGE = 5 * 1024 * 1024
"""Bytes, above KafkaSettings.message_max_bytes."""


def position(seq: int) -> ReaderPosition:
    return ReaderPosition(seq, Cursor(700 + seq, -seq), f"{seq:064x}", "7423000000000000001")


def batch(seq: int, shard: int = 0) -> Batch:
    header = BatchHeader(Stream("payouts", shard), seq, START, Cursor(700 + seq, seq), 1, "7423")
    return Batch.build(header, record_batch([row()]))


async def test_there_is_no_position_before_the_first_batch(bus: Bus) -> None:
    assert await bus.stream_writer().open() is None


async def test_the_next_writer_goes_on_where_the_last_one_ended(bus: Bus) -> None:
    first = bus.stream_writer()
    await first.open()
    await first.publish([b"1", b"2"], position(2))
    await first.publish([b"3"], position(3))
    await first.close()
    second = bus.stream_writer()
    assert await second.open() == position(3)
    await second.publish([b"4"], position(4))
    assert await second.open() == position(4)
    assert await scanned(bus.log(), bus.batches, 0) == [b"1", b"2", b"3", b"4"]


async def test_whoever_asks_for_the_position_fences_nobody(bus: Bus) -> None:
    first, asking = bus.stream_writer(), bus.stream_writer()
    assert await asking.position() is None  # type: ignore[attr-defined] # stages.remains.PositionedWriter
    await first.open()
    await first.publish([b"1"], position(1))
    assert await asking.position() == position(1)  # type: ignore[attr-defined]
    await first.publish([b"2"], position(2))
    assert await asking.position() == position(2)  # type: ignore[attr-defined]


async def test_a_second_writer_fences_the_first(bus: Bus) -> None:
    first, second = bus.stream_writer(), bus.stream_writer()
    await first.open()
    await first.publish([b"1"], position(1))
    assert await second.open() == position(1)
    with pytest.raises(ProducerFenced):
        await first.publish([b"zombie"], position(2))
    await second.publish([b"2"], position(2))
    assert await scanned(bus.log(), bus.batches, 0) == [b"1", b"2"]
    assert await bus.stream_writer().open() == position(2)


async def test_a_batch_that_is_too_large_is_refused_and_nothing_else_of_its_transaction_is_seen(bus: Bus) -> None:
    writer = bus.stream_writer()
    await writer.open()
    await writer.publish([b"1"], position(1))
    with pytest.raises(SettingError, match="MESSAGE_MAX_BYTES"):
        await writer.publish([b"2", bytes(TOO_LARGE)], position(3))
    assert await writer.open() == position(1)
    await writer.publish([b"2 again"], position(2))
    assert await scanned(bus.log(), bus.batches, 0) == [b"1", b"2 again"]


async def test_nothing_is_published_before_open_or_after_a_failure(bus: Bus) -> None:
    writer = bus.stream_writer()
    with pytest.raises(RoundAborted):
        await writer.publish([b"1"], position(1))
    await writer.open()
    with pytest.raises(SettingError):
        await writer.publish([bytes(TOO_LARGE)], position(1))
    with pytest.raises(RoundAborted):
        await writer.publish([b"1"], position(1))
    assert await writer.open() is None
    await writer.publish([b"1"], position(1))
    assert await scanned(bus.log(), bus.batches, 0) == [b"1"]


async def test_open_settles_what_a_writer_left_in_the_middle(bus: Bus) -> None:
    await bus.begin([Outgoing(bus.batches, 0, b"", b"half")], "reader-payouts-0")
    log = bus.log()
    assert (await log.ends(bus.batches))[0] < (await log.ends(bus.batches, committed=False))[0]
    writer = bus.stream_writer()
    assert await writer.open() is None
    assert await log.ends(bus.batches) == await log.ends(bus.batches, committed=False)
    await writer.publish([b"1"], position(1))
    assert await scanned(log, bus.batches, 0) == [b"1"]


async def test_streams_have_writers_of_their_own(bus: Bus) -> None:
    one, other = bus.stream_writer(0), bus.stream_writer(1)
    await one.open()
    await other.open()
    await one.publish([b"a"], position(1))
    await other.publish([b"b", b"c"], position(2))
    assert await one.open() == position(1)
    assert await other.open() == position(2)


async def test_without_its_offset_the_last_batch_tells_the_position(bus: Bus) -> None:
    first = bus.stream_writer(1)
    await first.open()
    await first.publish([batch(seq, 1).encode() for seq in (1, 2, 3)], position(3))
    await first.close()
    await bus.forget_reader(1)
    last = batch(3, 1)
    assert await bus.stream_writer(1).open() == ReaderPosition(3, last.header.cursor, last.digest, "7423")


async def test_consumed_is_what_the_consumers_committed(bus: Bus) -> None:
    writer, consumers = bus.stream_writer(1), bus.round_writer()
    assert await writer.consumed() == 0
    await bus.set_offsets(bus.batches, {1: 0})
    assert await writer.consumed() == 0
    await bus.append(bus.batches, 1, b"batch")
    await consumers.open()
    member = bus.subscription()
    await settled(member, 1)
    [message] = await received(member, 1)
    await consumers.commit([], {(bus.batches, 1): Progress(17, 9)}, message.generation)
    assert await writer.consumed() == 9

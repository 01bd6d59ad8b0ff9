"""A round: records and offsets together or not at all, by one producer at a time, for a member that still is one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.errors import ProducerFenced, RoundAborted, SettingError
from pipeline.ports import BatchSubscription, Outgoing, Progress, RoundWriter
from tests.bus import SHARDS, Bus, polled, received, scanned, settled, stable

MIB = 1024 * 1024
TOO_LARGE = 5 * MIB


def outgoing(bus: Bus, value: bytes, partition: int = 0) -> Outgoing:
    return Outgoing(bus.signed, partition, b"key", value)


async def opened(bus: Bus, name: str = "consumer-0") -> RoundWriter:
    writer = bus.round_writer(name)
    await writer.open()
    return writer


async def begun(bus: Bus) -> None:
    """Every partition has a batch, and the group an offset."""
    for shard in range(SHARDS):
        await bus.append(bus.batches, shard, b"batch")
    await bus.set_offsets(bus.batches, dict.fromkeys(range(SHARDS), 0))


async def joined(bus: Bus) -> tuple[BatchSubscription, Any]:
    """A member with all partitions, and its generation."""
    await begun(bus)
    member = bus.subscription()
    await settled(member, SHARDS)
    return member, (await received(member, SHARDS))[-1].generation


async def test_records_and_offsets_are_committed_together(bus: Bus) -> None:
    writer, (_, generation) = await opened(bus), await joined(bus)
    records = [outgoing(bus, b"a"), outgoing(bus, b"b", 1), outgoing(bus, b"c")]
    progress = {(bus.batches, 0): Progress(1, 1), (bus.batches, 2): Progress(1, 1)}
    assert await writer.commit(records, progress, generation) is True
    log = bus.log()
    assert await scanned(log, bus.signed, 0) == [b"a", b"c"]
    assert await scanned(log, bus.signed, 1) == [b"b"]
    assert await log.progress(bus.batches) == {0: Progress(1, 1), 1: Progress(0, 0), 2: Progress(1, 1)}


async def test_one_producer_commits_many_rounds(bus: Bus) -> None:
    writer, (_, generation) = await opened(bus), await joined(bus)
    for seq in range(1, 6):
        progress = {(bus.batches, 0): Progress(2 * seq, seq)}
        assert await writer.commit([outgoing(bus, b"%d" % seq)], progress, generation) is True
    assert await scanned(bus.log(), bus.signed, 0) == [b"1", b"2", b"3", b"4", b"5"]
    assert (await bus.log().progress(bus.batches))[0] == Progress(10, 5)


async def test_offsets_alone_are_a_round_and_records_alone_too(bus: Bus) -> None:
    writer, (_, generation) = await opened(bus), await joined(bus)
    assert await writer.commit([], {(bus.batches, 1): Progress(1, 1)}, generation) is True
    assert await writer.commit([outgoing(bus, b"again")], {}, None) is True
    assert (await bus.log().progress(bus.batches))[1] == Progress(1, 1)
    assert await scanned(bus.log(), bus.signed, 0) == [b"again"]


async def test_the_next_holder_of_the_name_fences_the_last(bus: Bus) -> None:
    first, (_, generation) = await opened(bus), await joined(bus)
    second = await opened(bus)
    with pytest.raises(ProducerFenced):
        await first.commit([outgoing(bus, b"zombie")], {(bus.batches, 0): Progress(1, 1)}, generation)
    assert await second.commit([outgoing(bus, b"good")], {(bus.batches, 0): Progress(1, 1)}, generation) is True
    assert await scanned(bus.log(), bus.signed, 0) == [b"good"]


async def test_other_names_are_not_fenced(bus: Bus) -> None:
    one, other = await opened(bus, "consumer-0"), await opened(bus, "consumer-1")
    assert await one.commit([outgoing(bus, b"a")], {}, None) is True
    assert await other.commit([outgoing(bus, b"b")], {}, None) is True
    assert await scanned(bus.log(), bus.signed, 0) == [b"a", b"b"]


async def test_a_stale_generation_cannot_commit(bus: Bus) -> None:
    writer, (member, stale) = await opened(bus), await joined(bus)
    other = bus.subscription()
    await polled(member, lambda: 0 < len(member.assigned()) < SHARDS and bool(other.assigned()), other)
    kept = next(iter(member.assigned()))
    with pytest.raises(RoundAborted):
        await writer.commit([outgoing(bus, b"stale")], {kept: Progress(1, 1)}, stale)
    log = bus.log()
    await writer.open()
    assert await scanned(log, bus.signed, 0) == []
    assert (await log.progress(bus.batches))[kept[1]] == Progress(0, 0)
    await member.rewind(member.assigned())
    fresh = (await received(member, 1))[0]
    partition = fresh.place.topic, fresh.place.partition
    assert await writer.commit([outgoing(bus, b"fresh")], {partition: Progress(1, 1)}, fresh.generation) is True
    assert await scanned(log, bus.signed, 0) == [b"fresh"]


async def test_a_member_that_left_cannot_commit(bus: Bus) -> None:
    writer, (member, generation) = await opened(bus), await joined(bus)
    await member.close()
    other = bus.subscription()
    await polled(other, lambda: len(other.assigned()) == SHARDS)
    with pytest.raises(RoundAborted):
        await writer.commit([outgoing(bus, b"late")], {(bus.batches, 0): Progress(1, 1)}, generation)
    await writer.open()
    assert await scanned(bus.log(), bus.signed, 0) == []
    assert (await bus.log().progress(bus.batches))[0] == Progress(0, 0)


async def test_a_record_that_is_too_large_is_refused_with_its_round(bus: Bus) -> None:
    writer, (_, generation) = await opened(bus), await joined(bus)
    records = [outgoing(bus, b"small"), outgoing(bus, bytes(TOO_LARGE))]
    with pytest.raises(SettingError, match="MESSAGE_MAX_BYTES"):
        await writer.commit(records, {(bus.batches, 0): Progress(1, 1)}, generation)
    with pytest.raises(RoundAborted, match="not opened"):
        await writer.commit(records[:1], {(bus.batches, 0): Progress(1, 1)}, generation)
    await writer.open()
    assert await scanned(bus.log(), bus.signed, 0) == []
    assert (await bus.log().progress(bus.batches))[0] == Progress(0, 0)
    assert await writer.commit(records[:1], {(bus.batches, 0): Progress(1, 1)}, generation) is True


async def test_a_topics_own_bound_counts_too(bus: Bus) -> None:
    narrow = f"{bus.signed}.narrow"
    await bus.create(narrow, 1, MIB)
    writer = await opened(bus)
    with pytest.raises(SettingError, match="MESSAGE_MAX_BYTES"):
        await writer.commit([outgoing(bus, b"small"), Outgoing(narrow, 0, b"", bytes(2 * MIB))], {}, None)
    await writer.open()
    assert await scanned(bus.log(), bus.signed, 0) == []
    assert await scanned(bus.log(), narrow, 0) == []


async def test_open_settles_what_the_last_holder_left(bus: Bus) -> None:
    await bus.begin([outgoing(bus, b"half")], "consumer-0")
    log = bus.log()
    assert await log.ends(bus.signed) != await log.ends(bus.signed, committed=False)
    writer = await opened(bus)
    assert await log.ends(bus.signed) == await log.ends(bus.signed, committed=False)
    assert await writer.commit([outgoing(bus, b"whole")], {}, None) is True
    assert await scanned(log, bus.signed, 0) == [b"whole"]


async def test_a_round_needs_an_open_writer(bus: Bus) -> None:
    writer = bus.round_writer()
    with pytest.raises(RoundAborted, match="not opened"):
        await writer.commit([outgoing(bus, b"a")], {}, None)
    await writer.open()
    assert await writer.commit([outgoing(bus, b"a")], {}, None) is True


async def test_a_record_keeps_its_place_in_a_trace(bus: Bus) -> None:
    writer, log = bus.round_writer(), bus.log()
    await writer.open()
    told = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    await writer.commit([replace(outgoing(bus, b"traced"), traceparent=told), outgoing(bus, b"not")], {}, None)
    [end, *_] = await stable(log, bus.signed)
    assert [m.traceparent async for m in log.scan(bus.signed, 0, 0, end)] == [told, ""]

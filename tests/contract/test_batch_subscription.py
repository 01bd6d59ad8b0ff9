"""A member of the consumer group: what it is given, what it is not, and what it is told."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.adapters import batch_subscription
from pipeline.ports import BatchSubscription, Message, Outgoing, Progress
from tests.bus import SHARDS, Bus, polled, received, settled

ALL = range(SHARDS)
FEW_POLLS = 5
SOON_S = 0.3


async def filled(bus: Bus, count: int = 1) -> None:
    """Batches on every partition, and an offset before the first of them."""
    for shard in ALL:
        for i in range(count):
            await bus.append(bus.batches, shard, f"{shard}.{i}".encode())
    await bus.set_offsets(bus.batches, dict.fromkeys(ALL, 0))


def values(messages: list[Message], shard: int | None = None) -> list[bytes]:
    return [m.value for m in messages if shard is None or m.place.partition == shard]


async def quiet(member: BatchSubscription) -> list[Message]:
    """What still comes when nothing should."""
    return [message for _ in range(FEW_POLLS) for message in await member.poll(16, 0.1)]


async def test_a_member_gets_all_partitions_each_in_order(bus: Bus) -> None:
    await filled(bus, 3)
    member = bus.subscription()
    got: list[Message] = []
    while len(got) < 3 * SHARDS:
        some = await member.poll(2, 0.2)
        assert len(some) <= 2  # no more than were asked for
        got += some
    for shard in ALL:
        assert values(got, shard) == [f"{shard}.{i}".encode() for i in range(3)]
    assert member.assigned() == {(bus.batches, shard) for shard in ALL}
    assert member.halted() == {}
    assert [m.place.offset for m in got if m.place.partition == 0] == [0, 2, 4]
    assert await quiet(member) == []


async def test_what_has_no_offset_or_lost_it_to_retention_is_halted_not_skipped(bus: Bus) -> None:
    await filled(bus, 2)
    await bus.trim(bus.batches, 1, 2)
    unheard = f"{bus.batches}2"
    await bus.create(unheard, 1)
    await bus.append(unheard, 0, b"unheard")
    member = bus.subscription(bus.batches, unheard)
    got = await received(member, 4)
    assert sorted(values(got)) == [b"0.0", b"0.1", b"2.0", b"2.1"]
    await polled(member, lambda: len(member.halted()) == 2)
    assert member.halted().keys() == {(bus.batches, 1), (unheard, 0)}
    assert "no offset" in member.halted()[unheard, 0]
    assert "gone" in member.halted()[bus.batches, 1]
    assert (unheard, 0) not in member.assigned()
    await bus.append(bus.batches, 0, b"0.2")
    assert values(await received(member, 1)) == [b"0.2"]
    assert await quiet(member) == []


async def test_only_committed_batches_are_seen(bus: Bus) -> None:
    await filled(bus)
    aborted = await bus.begin([Outgoing(bus.batches, 0, b"", b"never")], "one")
    opened = await bus.begin([Outgoing(bus.batches, 1, b"", b"maybe")], "two")
    await aborted.end(commit=False)
    member = bus.subscription()
    assert sorted(values(await received(member, SHARDS))) == [b"0.0", b"1.0", b"2.0"]
    assert await quiet(member) == []
    await opened.end(commit=True)
    assert values(await received(member, 1)) == [b"maybe"]


async def test_two_members_share_under_a_new_generation_and_the_last_one_gets_all_again(bus: Bus) -> None:
    await filled(bus)
    everything = frozenset((bus.batches, shard) for shard in ALL)
    one = bus.subscription()
    await settled(one, SHARDS)
    before = {m.generation for m in await received(one, SHARDS)}
    await one.rewind(one.assigned())
    assert {m.generation for m in await received(one, SHARDS)} == before
    other = bus.subscription()

    def shared() -> bool:
        both = one.assigned(), other.assigned()
        assert not both[0] & both[1], "one partition, two members"
        return all(both) and both[0] | both[1] == everything

    await polled(one, shared, other)
    await other.rewind(other.assigned())
    theirs = await received(other, len(other.assigned()))
    assert {(m.place.topic, m.place.partition) for m in theirs} == other.assigned()
    await one.rewind(one.assigned())
    after = {m.generation for m in await received(one, len(one.assigned()))}
    assert (len(before), before & after) == (1, set())
    kept = one.assigned()
    await other.close()
    await polled(one, lambda: one.assigned() == everything)
    await one.rewind(one.assigned())
    again = await received(one, SHARDS)
    assert {(m.place.topic, m.place.partition) for m in again} == everything > kept


async def test_rewind_goes_back_to_the_committed_offset(bus: Bus) -> None:
    await filled(bus, 3)
    member, writer = bus.subscription(), bus.round_writer()
    await settled(member, SHARDS)
    got = await received(member, 3 * SHARDS)
    await writer.open()
    assert await writer.commit([], {(bus.batches, 1): Progress(3, 2)}, got[-1].generation)
    zero, one = (bus.batches, 0), (bus.batches, 1)
    assert await member.rewind(frozenset({zero, one})) == {zero: 0, one: 3}
    again = await received(member, 4)
    assert values(again, 0) == [b"0.0", b"0.1", b"0.2"]
    assert values(again, 1) == [b"1.2"]
    assert await member.rewind(frozenset()) == {}
    assert await member.rewind(frozenset({("elsewhere", 7)})) == {}
    assert await quiet(member) == []


async def test_a_paused_partition_delivers_nothing_and_loses_nothing(bus: Bus) -> None:
    await filled(bus)
    member = bus.subscription()
    await received(member, SHARDS)
    zero, one = (bus.batches, 0), (bus.batches, 1)
    await member.pause(frozenset({zero, one}))
    for shard in ALL:
        await bus.append(bus.batches, shard, f"{shard}.1".encode())
    assert values(await received(member, 1)) == [b"2.1"]
    assert await quiet(member) == []
    await member.pause(frozenset({one}))
    assert values(await received(member, 1)) == [b"0.1"]
    assert await quiet(member) == []
    assert await member.rewind(frozenset({one})) == {one: 0}
    assert await quiet(member) == []
    await member.pause(frozenset())
    assert values(await received(member, 2)) == [b"1.0", b"1.1"]


async def test_a_partition_that_went_away_paused_comes_back_delivering(bus: Bus) -> None:
    await filled(bus)
    one = bus.subscription()
    await settled(one, SHARDS)
    await received(one, SHARDS)
    await one.pause(one.assigned())
    other = bus.subscription()
    await polled(one, lambda: bool(other.assigned()) and len(one.assigned()) < SHARDS, other)
    moved = frozenset((bus.batches, shard) for shard in ALL) - one.assigned()
    await other.close()
    await polled(one, lambda: len(one.assigned()) == SHARDS)
    await one.pause(one.assigned() - moved)
    await one.rewind(one.assigned())
    got = await received(one, len(moved))
    assert {(m.place.topic, m.place.partition) for m in got} == moved


async def test_a_deleted_topic_is_reported_and_others_go_on(bus: Bus) -> None:
    await filled(bus)
    second = f"{bus.batches}2"
    await bus.create(second, 1)
    await bus.set_offsets(second, {0: 0})
    member = bus.subscription(bus.batches, second)
    await settled(member, SHARDS + 1)
    await received(member, SHARDS)
    await bus.delete(second)
    await polled(member, lambda: any(topic == second for topic, _ in member.halted()))
    assert {topic for topic, _ in member.halted()} == {second}
    assert "gone" in member.halted()[second, 0]
    await bus.append(bus.batches, 0, b"0.1")
    assert values(await received(member, 1)) == [b"0.1"]


async def test_an_offset_that_an_open_transaction_changes_is_waited_for(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_subscription, "FIRST_OFFSETS_S", SOON_S)
    await filled(bus, 2)
    opened = await bus.begin_offset(bus.batches, 1, 2)
    member = bus.subscription()
    waiting = asyncio.create_task(received(member, 2 * SHARDS - 1))
    await asyncio.sleep(4 * SOON_S)
    assert not waiting.done()
    await opened.end(commit=True)
    got = await waiting
    assert values(got, 1) == [b"1.1"]
    assert values(got, 0) == [b"0.0", b"0.1"]
    assert member.halted() == {}
    assert await quiet(member) == []


async def test_a_stream_of_which_retention_took_all_is_halted_even_though_only_a_marker_is_missing(bus: Bus) -> None:
    """Why topics of batches are bounded by size: age would take an idle stream's marker, and with it its offset."""
    await filled(bus)
    member, writer = bus.subscription(), bus.round_writer()
    await settled(member, SHARDS)
    generation = (await received(member, SHARDS))[-1].generation
    await writer.open()
    await writer.commit([], {(bus.batches, 0): Progress(1, 1)}, generation)
    await bus.trim(bus.batches, 0, 2)
    await member.rewind(member.assigned())
    await polled(member, lambda: bool(member.halted()))
    assert member.halted().keys() == {(bus.batches, 0)}


async def test_the_members_of_the_group_are_counted_from_outside(bus: Bus) -> None:
    log = bus.log()
    assert await log.members() == 0  # type: ignore[attr-defined] # stages.remains.GroupLog
    await filled(bus)
    member = bus.subscription()
    await received(member, SHARDS)
    assert await log.members() == 1  # type: ignore[attr-defined]
    await member.close()
    assert await log.members() == 0  # type: ignore[attr-defined]

"""The key manager on twins: the normal course, and who waits for a key."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from pipeline.assignment.manager import QUEUE_MAX
from pipeline.assignment.records import KeyState, StreamRecord
from pipeline.errors import (
    StreamHalted,
    UsageError,
)
from pipeline.ports import Assigned, AssignReply, AssignRequest, Published, Waiting
from pipeline.stream import Stream
from pipeline.testing.clock import settle
from tests.unit.assignment_records import CHAIN, PATHS, SYSTEM, A, B, address, request
from tests.unit.manager_world import DEADLINE_S, Node, World

# ── the normal course ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_batch_is_assigned_and_released(world: World) -> None:
    node = await world.opened()
    [made] = await world.assigned(node, request(A, 1))
    assert (made.address, made.first_nonce) == (address(1), 0)
    assert world.key(1).state is KeyState.LOCKED
    assert await node.manager.list_assignments() == [made]
    await world.publish(node, made)
    assert world.key(1).state is KeyState.FREE
    assert world.key(1).next_nonce == 10
    assert await node.manager.list_assignments() == []
    assert await world.assign(node, request(A, 1)) == [Published()]


async def test_requests_at_once_share_transactions(world: World) -> None:
    node = await world.opened(keys=8)
    before = world.etcd.applied
    calls = [node.manager.assign([request(stream, seq) for seq in (1, 2)], DEADLINE_S) for stream in (A, B)]
    replies = await world.clock.until(asyncio.gather(*calls))
    assert all(isinstance(reply, Assigned) for call in replies for reply in call)
    assert world.etcd.applied - before == 1


async def test_a_call_larger_than_a_transaction_is_answered_and_the_writer_goes_on(world: World) -> None:
    node = await world.opened(keys=60)
    replies = await world.assign(node, *(request(A, seq) for seq in range(1, 61)))
    served = sum(isinstance(reply, Assigned) for reply in replies)
    assert 30 < served < 60
    assert all(isinstance(reply, Waiting) for reply in replies[served:])
    rest = await world.assigned(node, *(request(A, seq) for seq in range(served + 1, 61)))
    assert len(rest) == 60 - served


async def test_nothing_is_asked_for(world: World) -> None:
    node = await world.opened()
    assert await world.assign(node) == []


async def test_keys_are_listed_as_they_will_be_lent(world: World) -> None:
    node = await world.opened(keys=3)
    [first] = await world.assigned(node, request(A, 1))
    await world.clock.advance(1)
    await world.publish(node, first)
    assert [key.address for key in await node.manager.list_keys()] == [address(2), address(3), address(1)]


async def test_a_key_that_is_in_the_pool_is_not_imported_again_by_two_at_once(world: World) -> None:
    node = await world.opened(keys=0)
    both = [node.manager.import_keys([(CHAIN, address(1), b"sealed", nonce)]) for nonce in (0, 500)]
    results = await world.clock.until(asyncio.gather(*both, return_exceptions=True))
    assert [type(result) for result in results] == [type(None), UsageError]
    assert world.key(1).next_nonce == 0


async def test_a_key_may_serve_a_second_chain_under_its_first_seal(world: World) -> None:
    node = await world.opened(keys=1)
    await world.clock.until(node.manager.import_keys([(5, address(1), b"sealed anew", 3)]))
    sealed = world.etcd.get(PATHS.sealed(address(1)))
    assert sealed is not None
    assert sealed.value == b"sealed"
    assert [key.chain_id for key in await node.manager.list_keys()] == [CHAIN, 5]


async def test_one_that_stops_leaves_nothing_running(world: World) -> None:
    before = asyncio.all_tasks()
    node = await world.opened()
    await world.clock.advance(1.0)
    await world.clock.until(node.manager.stop())
    await settle()
    assert asyncio.all_tasks() == before


async def test_a_stream_of_another_chain_or_postgres_is_refused(world: World) -> None:
    node = await world.opened()
    for other in (StreamRecord(A, 5, SYSTEM), StreamRecord(A, CHAIN, "other")):
        with pytest.raises(StreamHalted):
            await world.clock.until(node.manager.open_stream(other))


async def test_disabled_keys_are_not_lent(world: World) -> None:
    node = await world.opened(keys=1)
    await world.clock.until(node.manager.disable(CHAIN, address(1)))
    assert await world.assign(node, request(A, 1)) == [Waiting()]
    await world.clock.until(node.manager.enable(CHAIN, address(1)))
    await world.assigned(node, request(A, 1))
    with pytest.raises(UsageError):
        await world.clock.until(node.manager.disable(CHAIN, address(9)))


# ── waiting ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_no_key_means_waiting_until_the_deadline(world: World) -> None:
    node = await world.opened(keys=0)
    started_s = world.clock.monotonic_s()
    call = asyncio.ensure_future(node.manager.assign([request(A, 1)], 2.0))
    await world.clock.advance(1.0)
    assert not call.done()
    assert node.manager.status()["queue"] == 1
    assert node.manager.status()["queue_oldest_s"] == 1.0
    assert node.manager.status()["no_keys"] == [CHAIN]
    assert await world.clock.until(call) == [Waiting()]
    assert 2.0 <= world.clock.monotonic_s() - started_s < 3.0
    assert node.manager.status()["queue"] == 0


async def test_a_freed_key_goes_to_who_waited_longest(world: World) -> None:
    streams = [Stream("payouts", shard) for shard in range(4)]
    node = await world.opened(keys=1, streams=streams)
    [held] = await world.assigned(node, request(streams[0], 1))
    calls = []
    for stream in streams[1:]:
        calls.append(asyncio.ensure_future(node.manager.assign([request(stream, 1)], 60.0)))
        await world.clock.advance(0.1)
    for turn, call in enumerate(calls):
        await world.publish(node, held)
        [reply] = await world.clock.until(call)
        assert isinstance(reply, Assigned)
        held = reply.assignment
        assert held.stream == streams[turn + 1]
        assert not any(later.done() for later in calls[turn + 1 :])


async def test_what_is_assigned_does_not_wait_for_what_is_not(world: World) -> None:
    node = await world.opened(keys=1)
    replies = await world.assign(node, request(A, 1), request(B, 1), deadline_s=60.0)
    assert [type(reply) for reply in replies] == [Assigned, Waiting]
    assert world.clock.monotonic_s() < 5
    assert node.manager.status()["queue"] == 0


async def test_a_waiter_answered_early_while_another_group_is_written_harms_nobody(world: World) -> None:
    node = await world.opened(keys=1)
    first = asyncio.ensure_future(node.manager.assign([request(A, 1), request(B, 1)], 60.0))
    second = asyncio.ensure_future(_later(world, node, request(A, 2, count=0)))
    assert [type(reply) for reply in await world.clock.until(first)] == [Assigned, Waiting]
    assert [type(reply) for reply in await world.clock.until(second)] == [Assigned]
    await world.assigned(node, request(A, 3, count=0))
    assert not node.fence_lost


async def _later(world: World, node: Node, wanted: AssignRequest) -> Sequence[AssignReply]:
    await world.written(PATHS.assignment(A, 1))  # and the first group's answer is on its way
    return await node.manager.assign([wanted], 60.0)


async def test_the_queue_is_bounded(world: World) -> None:
    node = await world.opened(keys=0)
    filler = asyncio.ensure_future(node.manager.assign([request(A, 1)] * QUEUE_MAX, 30.0))
    await world.clock.advance(0.1)
    assert node.manager.status()["queue"] == QUEUE_MAX
    assert await world.assign(node, request(B, 1), deadline_s=30.0) == [Waiting()]
    assert world.clock.monotonic_s() < 5, "it is told at once"
    assert not filler.done()
    assert set(await world.clock.until(filler)) == {Waiting()}


async def test_a_caller_that_goes_away_leaves_the_line(world: World) -> None:
    node = await world.opened(keys=0)
    call = asyncio.ensure_future(node.manager.assign([request(A, 1)], 60.0))
    await world.clock.advance(0.1)
    call.cancel()
    await world.clock.advance(0.5)
    assert node.manager.status()["queue"] == 0
    await world.clock.until(node.manager.import_keys([(CHAIN, address(1), b"sealed", 0)]))
    await world.clock.advance(0.5)
    assert world.key(1).state is KeyState.FREE


async def test_a_caller_that_goes_away_while_it_is_served_is_inherited_from(world: World) -> None:
    node = await world.opened()
    call = asyncio.ensure_future(node.manager.assign([request(A, 1)], 60.0))
    await world.written(PATHS.assignment(A, 1))
    call.cancel()
    await settle()
    [made] = await world.assigned(node, request(A, 1, worker="consumer-1.9"))
    assert (made.address, made.first_nonce, made.worker) == (address(1), 0, "consumer-1.9")
    assert world.key(1).next_nonce == 10

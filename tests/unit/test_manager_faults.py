"""The key manager on twins: lost answers and lost leaders."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.assignment.records import StreamRecord
from pipeline.assignment.writing import RESEND_DEADLINE_S
from pipeline.errors import (
    DatabaseUnavailable,
    NotLeader,
    StoreUnavailable,
)
from pipeline.ports import Assigned, Published
from pipeline.stream import Stream
from pipeline.testing.clock import settle
from pipeline.testing.store import Fault
from tests.unit.assignment_records import CHAIN, PATHS, SYSTEM, A, B, address, request
from tests.unit.manager_world import DEADLINE_S, World

# ── answers that get lost ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "faults",
    [
        [Fault.LOST_REPLY],
        [Fault.LOST_REQUEST],
        [Fault.NOT_SENT],
        [Fault.LATE],
        [Fault.LOST_REPLY, Fault.LOST_REPLY, Fault.NOT_SENT],
        [Fault.LOST_REQUEST, Fault.LOST_REPLY, Fault.LOST_REQUEST],
        [Fault.LATE, Fault.LOST_REPLY],
    ],
    ids=lambda faults: "+".join(fault.name for fault in faults),
)
async def test_a_lost_answer_never_lends_nonces_twice(world: World, faults: list[Fault]) -> None:
    node = await world.opened(keys=3)
    node.store.faults.extend(faults)
    sent = len(node.store.sent)
    made = await world.assigned(node, request(A, 1), request(B, 1))
    transactions = node.store.sent[sent:]
    assert len(transactions) == len(faults) + 1
    assert len(set(transactions)) == 1, "the identical transaction is sent again"
    world.etcd.deliver()
    node.store.faults.extend(faults)
    await world.publish(node, *made)
    world.etcd.deliver()
    following = await world.assigned(node, request(A, 2), request(B, 2), request(A, 3))
    ranges = {(a.address, a.first_nonce) for a in [*made, *following]}
    assert len(ranges) == 5
    for number in (1, 2, 3):
        lent = sorted(a.first_nonce for a in [*made, *following] if a.address == address(number))
        assert lent == [10 * i for i in range(len(lent))]
        assert world.key(number).next_nonce == 10 * len(lent)


async def test_no_answer_for_long_is_told_and_the_late_write_is_inherited(world: World) -> None:
    node = await world.opened()
    node.store.faults.extend([Fault.LATE, *[Fault.LOST_REQUEST] * 200])
    with pytest.raises(StoreUnavailable, match="no answer"):
        await world.assign(node, request(A, 1))
    assert world.clock.monotonic_s() > RESEND_DEADLINE_S
    node.store.faults.clear()
    await world.clock.advance(1.0)
    world.etcd.deliver()
    [made] = await world.assigned(node, request(A, 1, worker="consumer-1.9"))
    assert (made.first_nonce, made.worker) == (0, "consumer-1.9")
    assert world.key(1).next_nonce + world.key(2).next_nonce == 10


async def test_etcd_away_and_back(world: World) -> None:
    node = await world.opened()
    node.store.down = True
    with pytest.raises(StoreUnavailable):
        await world.assign(node, request(A, 1))
    node.store.down = False
    # The lease ran out meanwhile; whether it did is etcd's to say, and then nothing is written any more.
    with pytest.raises(NotLeader):
        await world.assign(node, request(A, 1))
    assert node.fence_lost == [True]
    assert world.etcd.get(PATHS.assignment(A, 1)) is None


async def test_a_short_absence_of_etcd_costs_nothing(world: World) -> None:
    node = await world.opened()
    call = asyncio.ensure_future(node.manager.assign([request(A, 1)], 60.0))
    node.store.down = True
    await world.clock.advance(3.0)
    node.store.down = False
    [reply] = await world.clock.until(call)
    assert isinstance(reply, Assigned)
    assert not node.fence_lost


async def test_the_ledger_away_is_told(world: World) -> None:
    node = await world.opened()
    [made] = await world.assigned(node, request(A, 1))
    await world.publish(node, made)
    world.ledger.database.down = True
    with pytest.raises(DatabaseUnavailable):
        await world.assign(node, request(A, 1))
    world.ledger.database.down = False
    await world.clock.advance(1.0)
    assert await world.assign(node, request(A, 1)) == [Published()]
    assert not node.fence_lost


async def test_a_writer_that_breaks_ends_the_key_manager(world: World, caplog: pytest.LogCaptureFixture) -> None:
    node = await world.opened()

    async def broken(_stream: Stream, _seq: int) -> None:
        raise ValueError("a defect")

    [made] = await world.assigned(node, request(A, 1))
    await world.publish(node, made)
    world.ledger.entry = broken  # type: ignore[assignment] # the defect
    with pytest.raises(NotLeader):
        await world.assign(node, request(A, 1))
    assert node.fence_lost == [True]
    assert "a defect" in caplog.text


# ── leaders ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_second_key_manager_is_told_who_leads(world: World) -> None:
    await world.opened()
    second = world.node()
    with pytest.raises(NotLeader, match="on node-0"):
        await world.clock.until(second.manager.start())
    with pytest.raises(NotLeader):
        await second.manager.assign([request(A, 1)], DEADLINE_S)


async def test_a_second_key_manager_takes_over_from_a_dead_one(world: World) -> None:
    first = await world.opened()
    [made] = await world.assigned(first, request(A, 1))
    await world.kill(first)
    died_s = world.clock.monotonic_s()
    second = await world.started()
    assert world.clock.monotonic_s() - died_s < 10
    [inherited] = await world.assigned(second, request(A, 1))
    assert inherited == made
    [after] = await world.assigned(second, request(A, 2))
    assert after.address == address(2)
    assert after.fence > made.fence


async def test_one_that_stops_gives_way_at_once(world: World) -> None:
    first = await world.opened()
    await world.clock.until(first.manager.stop())
    with pytest.raises(NotLeader):
        await first.manager.assign([request(A, 1)], DEADLINE_S)
    stopped_s = world.clock.monotonic_s()
    await world.started()
    assert world.clock.monotonic_s() - stopped_s < 1


async def test_a_zombie_can_write_nothing(world: World) -> None:
    zombie = await world.opened(keys=3)
    [made] = await world.assigned(zombie, request(A, 1))
    zombie.manager._tasks[0].cancel()  # it is paused: its lease runs out, and it does not know
    second = await world.started()
    before = dict(world.etcd.stored)
    attempts = [
        zombie.manager.assign([request(B, 1)], DEADLINE_S),
        zombie.manager.release([(A, 1)], "zombie"),
    ]
    for result in await world.clock.until(asyncio.gather(*attempts, return_exceptions=True)):
        assert isinstance(result, NotLeader)
    assert zombie.fence_lost == [True]
    assert world.etcd.stored == before
    for attempt in (zombie.manager.halt(B, "no"), zombie.manager.import_keys([(CHAIN, address(9), b"", 0)])):
        with pytest.raises(NotLeader):
            await world.clock.until(attempt)
    assert world.etcd.stored == before
    [inherited] = await world.assigned(second, request(A, 1))
    assert inherited == made


@pytest.mark.parametrize("stream", [A, B], ids=["assigned, as far as it knows", "unknown to it"])
async def test_a_zombie_answers_nothing_from_its_memory(world: World, stream: Stream) -> None:
    zombie = await world.opened(streams=[A])
    [made] = await world.assigned(zombie, request(A, 1))
    world.etcd.revoke(max(world.etcd.leases))
    successor = await world.started()
    await world.clock.until(successor.manager.open_stream(StreamRecord(B, CHAIN, SYSTEM)))
    await world.publish(successor, made)
    with pytest.raises(NotLeader):
        await world.assign(zombie, request(stream, 1))


async def test_what_a_zombie_sent_before_arrives_too_late(world: World) -> None:
    first = await world.opened(keys=3)
    first.store.faults.extend([Fault.LATE, *[Fault.LOST_REQUEST] * 200])
    call = asyncio.ensure_future(first.manager.assign([request(A, 1)], 60.0))
    await settle()
    await world.kill(first)
    call.cancel()
    second = await world.started()
    [made] = await world.assigned(second, request(A, 1))
    before = dict(world.etcd.stored)
    assert [result.succeeded for result in world.etcd.deliver()] == [False]
    assert world.etcd.stored == before
    assert made.fence == second.manager.status()["fence"]


async def test_a_lost_lease_ends_the_key_manager(world: World) -> None:
    node = await world.opened(keys=0)
    call = asyncio.ensure_future(node.manager.assign([request(A, 1)], 60.0))
    await settle()
    for lease in list(world.etcd.leases):
        world.etcd.revoke(lease)
    with pytest.raises(NotLeader):
        await world.clock.until(call)
    assert node.fence_lost == [True]


async def test_a_leader_that_is_lost_while_it_writes_is_lost_once(world: World) -> None:
    node = await world.opened()
    node.store.faults.extend([Fault.LOST_REQUEST] * 30)
    call = asyncio.ensure_future(node.manager.assign([request(A, 1)], 60.0))
    await settle()
    for lease in list(world.etcd.leases):
        world.etcd.revoke(lease)
    with pytest.raises(NotLeader):
        await world.clock.until(call)
    await world.clock.advance(5.0)
    assert node.fence_lost == [True]
    assert world.etcd.get(PATHS.assignment(A, 1)) is None


async def test_a_lost_answer_to_the_claim_itself(world: World) -> None:
    node = world.node()
    node.store.faults.extend([Fault.LOST_REPLY, None, Fault.LOST_REPLY])
    await world.clock.until(node.manager.start())
    leader, genesis = world.etcd.get(PATHS.leader), world.etcd.get(PATHS.genesis)
    assert leader is not None
    assert genesis is not None
    assert node.manager.status()["fence"] == leader.create_revision
    await world.clock.until(node.manager.open_stream(StreamRecord(A, CHAIN, SYSTEM)))

"""The broadcaster before a node whose pool forgets: all is mined, once, in order, whatever happens between."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from pipeline.custody.generation import address_of
from pipeline.errors import NodeUnavailable
from pipeline.settings import BroadcastSettings
from pipeline.stages.violation import Violation, ViolationKind
from tests.unit.broadcast_world import CHAIN, STREAM, World, secret


def in_order(mined: list[tuple[str, int]], rows: dict[int, int]) -> bool:
    by_sender: dict[str, list[int]] = {}
    for sender, nonce in mined:
        by_sender.setdefault(sender, []).append(nonce)
    return by_sender == {address_of(secret(sender)): list(range(count)) for sender, count in rows.items()}


async def test_all_that_is_verified_is_mined_in_the_order_of_nonces() -> None:
    world = World()
    for sender in (1, 2, 3):
        for _ in range(3):
            await world.sign(sender, 20)
    await world.until_mined()
    assert in_order(world.mined(), {1: 60, 2: 60, 3: 60})
    assert world.statuses() == {"sent": 0, "mined": 180, "failed": 0}
    count = world.broadcaster.count
    assert (count.sent, count.mined, count.sent_again, count.failed) == (180, 180, 0, 0)
    assert await world.broadcaster.undecided() == 0
    assert world.node.offered == 180


async def test_the_bounds_are_what_keeps_a_pool_from_forgetting() -> None:
    """Without them a pool of the same size loses what the node has answered "success" to."""
    sizes = {"account_slots": 16, "global_slots": 64}
    careless = World(
        BroadcastSettings(confirmations=0, in_flight_per_sender=64, in_flight_max=10_000, resend_after_s=3)
    )
    careful = World(BroadcastSettings(confirmations=0, in_flight_per_sender=16, in_flight_max=64, resend_after_s=3))
    for world in (careless, careful):
        world.node.account_slots, world.node.global_slots = sizes["account_slots"], sizes["global_slots"]
        for sender in range(1, 9):
            await world.sign(sender, 64)
        await world.until_mined()
        assert in_order(world.mined(), dict.fromkeys(range(1, 9), 64))
    assert careless.broadcaster.count.sent_again > 0
    assert careful.broadcaster.count.sent_again == 0


async def test_what_is_in_flight_is_bounded() -> None:
    world = World(BroadcastSettings(confirmations=0, in_flight_per_sender=4, in_flight_max=10))
    for sender in range(1, 6):
        await world.sign(sender, 20)
    most: Counter[str] = Counter()
    total = 0
    while len(world.mined()) < 100:
        await world.tick(mine=False)
        pool = {sender: len(waiting) for sender, waiting in world.node.pool.items()}
        total = max(total, sum(pool.values()))
        most |= Counter(pool)
        assert world.broadcaster.count.in_flight == sum(pool.values())
        world.node.mine()
    assert total == 10
    assert max(most.values()) == 4


async def test_a_delegated_account_has_one_in_flight_beside_others_that_have_more() -> None:
    world = World()
    for sender in (1, 2, 3):
        await world.sign(sender, 20)
        await world.sign(sender, 5)
    world.node.delegates.add(address_of(secret(2)))
    most: Counter[str] = Counter()
    while len(world.mined()) < 75:
        await world.tick(mine=False)
        most |= Counter({sender: len(waiting) for sender, waiting in world.node.pool.items()})
        world.node.mine()
    await world.until_mined()
    assert most == {address_of(secret(1)): 16, address_of(secret(2)): 1, address_of(secret(3)): 16}
    assert in_order(world.mined(), {1: 25, 2: 25, 3: 25})
    assert world.statuses() == {"sent": 0, "mined": 75, "failed": 0}
    assert world.node.offered == 75, "the node never had to say that it has no room"


async def test_an_account_that_becomes_delegated_goes_on_with_one_in_flight() -> None:
    world = World()
    for sender in (1, 2):
        await world.sign(sender, 50)
    await world.tick()
    world.node.delegates.add(address_of(secret(1)))
    world.node.mine()
    await world.tick(8, mine=False)  # a block takes longer than a pause after the node had no room
    most = 0
    for _ in range(60):
        await world.tick(mine=False)
        most = max(most, len(world.node.pool[address_of(secret(1))]))
        world.node.mine()
    await world.until_mined()
    assert in_order(world.mined(), {1: 50, 2: 50})
    assert most == 1
    assert world.node.offered == 100 + 15, "once, the node would not take what followed the first"
    assert world.statuses() == {"sent": 0, "mined": 100, "failed": 0}


async def test_an_account_becomes_delegated_before_a_node_that_does_not_say_that_it_has_no_room() -> None:
    world = World(BroadcastSettings(confirmations=0, resend_after_s=3))
    await world.sign(1, 50)
    await world.tick()
    world.node.mute = True
    world.node.delegates.add(address_of(secret(1)))
    await world.tick(4, mine=False)
    offered = world.node.offered
    await world.until_mined()
    assert in_order(world.mined(), {1: 50})
    assert world.statuses() == {"sent": 0, "mined": 50, "failed": 0}
    assert world.node.offered < offered + 50 + 10


async def test_what_vanished_of_an_account_that_became_delegated_is_offered_one_by_one() -> None:
    world = World(BroadcastSettings(confirmations=0, resend_after_s=3))
    await world.sign(1, 20)
    await world.tick(mine=False)
    world.node.delegates.add(address_of(secret(1)))
    world.node.pool.clear()
    await world.tick(12, mine=False)
    assert 16 + 16 < world.node.offered <= 16 + 16 + 4, "all once, then only the next one"
    await world.until_mined()
    assert in_order(world.mined(), {1: 20})
    assert world.statuses() == {"sent": 0, "mined": 20, "failed": 0}


async def test_what_vanished_is_sent_again() -> None:
    world = World()
    await world.sign(1, 40)
    await world.tick(mine=False)
    world.node.pool.clear()
    await world.tick(20)
    assert in_order(world.mined(), {1: 40})
    assert world.broadcaster.count.sent_again == 16


async def test_what_the_node_still_has_is_not_counted_as_sent_again() -> None:
    world = World(BroadcastSettings(confirmations=0, resend_after_s=2))
    await world.sign(1, 5)
    await world.tick(10, mine=False)
    assert (world.broadcaster.count.sent, world.broadcaster.count.sent_again) == (5, 0)
    assert world.node.offered > 5


@pytest.mark.parametrize("blocks", range(6))
async def test_another_broadcaster_goes_on_without_a_gap(blocks: int) -> None:
    world = World()
    for sender in (1, 2):
        await world.sign(sender, 40)
        await world.sign(sender, 10)
    await world.tick(blocks)
    world.started()
    await world.until_mined()
    assert in_order(world.mined(), {1: 50, 2: 50})
    assert world.statuses() == {"sent": 0, "mined": 100, "failed": 0}
    assert await world.broadcaster.undecided() == 0


async def test_only_what_was_verified_is_sent() -> None:
    world = World()
    first = await world.sign(1, 3)
    second = await world.sign(1, 3, verified=False)
    await world.sign(1, 3)
    await world.until_mined()
    assert in_order(world.mined(), {1: 3})
    assert await world.broadcaster.undecided() == 6
    await world.verify(second)
    await world.tick(3)
    assert in_order(world.mined(), {1: 9})
    assert first.header.first_nonce == 0


async def test_a_batch_with_a_violation_is_not_sent() -> None:
    world = World()
    seen = await world.sign(1, 3, verified=False)
    await world.verify(seen, violations=[Violation(ViolationKind.NONCE_TWICE, "why", STREAM, seen.header.seq)])
    await world.until_mined()
    assert world.node.offered == 0


async def test_a_nonce_that_another_transaction_used_is_lost_and_told() -> None:
    world = World()
    await world.sign(1, 3)
    stranger = World()
    await stranger.sign(2, 1)
    await stranger.sign(1, 1)  # the same key somewhere else, another transaction
    await stranger.until_mined()
    world.node.blocks = stranger.node.blocks
    await world.until_mined()
    assert world.statuses() == {"sent": 0, "mined": 2, "failed": 1}
    assert world.broadcaster.count.failed == 1
    [lost] = [fate for fate in world.broadcasts.fates.values() if fate.reason]
    assert (lost.transaction.nonce, lost.reason) == (0, "the nonce was used by another transaction")


async def test_a_refusal_stops_its_sender_alone_and_ends_the_wait() -> None:
    world = World()
    await world.sign(1, 30)
    await world.sign(2, 30)
    world.node.refuses[world.hashes[1][5]] = "insufficient funds for gas * price + value"
    await world.until_mined()
    assert in_order(world.mined(), {1: 5, 2: 30})
    assert world.broadcaster.refusals() == {
        address_of(secret(1)): "nonce 5: insufficient funds for gas * price + value"
    }
    assert world.statuses()["failed"] == 1
    world.node.refuses.clear()
    await world.tick(60)
    assert in_order(world.mined(), {1: 30, 2: 30})
    assert world.statuses() == {"sent": 0, "mined": 60, "failed": 0}


async def test_nonces_that_the_chain_does_not_expect_are_not_sent() -> None:
    world = World()
    await world.sign(1, 3)
    world.broadcasts.next_nonces[CHAIN, address_of(secret(1))] = 3
    await world.sign(1, 3)
    await world.until_mined()
    assert world.node.offered == 0
    [reason] = world.broadcaster.refusals().values()
    assert reason == "nonce 3: the chain expects nonce 0, the first that was signed is 3"


async def test_a_record_that_kafka_no_longer_keeps_is_told() -> None:
    world = World()
    seen = await world.sign(1, 3)
    partition = world.broker.partition(seen.place.topic, seen.place.partition)
    partition.start = seen.place.offset + 1
    await world.until_mined()
    [reason] = world.broadcaster.refusals().values()
    assert "no longer keeps" in reason


async def test_reverted_is_mined() -> None:
    world = World()
    await world.sign(1, 3)
    world.node.reverts.add(world.hashes[1][1])
    await world.until_mined()
    assert (world.broadcaster.count.mined, world.broadcaster.count.reverted) == (3, 1)


async def test_confirmations_outlast_a_reorganisation() -> None:
    world = World(BroadcastSettings(confirmations=2))
    await world.sign(1, 40)
    await world.tick(2)
    assert world.broadcaster.count.mined == 0
    world.node.reorganise(2)
    world.node.pool.clear()
    await world.until_mined()
    assert in_order(world.mined(), {1: 40})
    assert world.statuses() == {"sent": 0, "mined": 40, "failed": 0}


async def test_a_node_that_is_away_is_asked_again_and_named_in_the_end() -> None:
    world = World()
    await world.sign(1, 3)
    world.node.down = True
    runs = asyncio.create_task(world.broadcaster.run(asyncio.Event(), until_mined=True))
    await world.clock.advance(60)
    assert not runs.done()
    await world.clock.advance(120)
    with pytest.raises(NodeUnavailable, match="connection refused"):
        await runs


async def test_more_senders_than_places_take_turns() -> None:
    world = World(BroadcastSettings(confirmations=0, in_flight_per_sender=2, in_flight_max=4))
    for sender in range(1, 20):
        await world.sign(sender, 6)
    await world.until_mined()
    assert in_order(world.mined(), dict.fromkeys(range(1, 20), 6))

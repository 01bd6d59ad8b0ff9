"""Transactions with blobs through the broadcaster: in their network form, and in one of a node's pools at a time."""

from __future__ import annotations

import numpy as np
import pytest
from eth_account import Account
from sha3 import keccak_256

from pipeline.custody.generation import address_of
from pipeline.ethereum.sidecar import Blob, network_bytes, network_form, versioned_hash
from pipeline.ethereum.signed import SignedColumns
from pipeline.settings import BroadcastSettings
from pipeline.stages.account import BLOBS_RESEND_FACTOR
from pipeline.stages.request import SEND_BYTES_MAX
from tests.blob_transactions import data_of, signed_blobs
from tests.unit.broadcast_world import CHAIN, World, secret

PLAIN = {
    "type": 2, "chainId": CHAIN, "to": "0x" + "35" * 20, "value": 1, "gas": 21_000,
    "maxFeePerGas": 20 * 10**9, "maxPriorityFeePerGas": 10**9,
}  # fmt: skip


def blob_of(number: int) -> Blob:
    return Blob(data_of(number), bytes([number]) * 48, (bytes([number]) * 48,))


def hash_of(number: int) -> bytes:
    return versioned_hash(blob_of(number).commitment)


def plain(sender: int, nonce: int) -> bytes:
    return bytes(Account.sign_transaction(PLAIN | {"nonce": nonce}, secret(sender)).raw_transaction)


async def sign(world: World, sender: int, blobs: str, each: int = 1) -> list[bytes]:
    """A letter of `blobs` for each transaction: - has none, others have as many as `each` says."""
    first = world.next_nonce(sender)
    raws = []
    for nonce, kind in enumerate(blobs, first):
        raw = plain(sender, nonce)
        if kind != "-":
            hashes = [hash_of(ord(kind) - number) for number in range(each)]
            raw = signed_blobs(secret(sender), hashes, nonce=nonce)
        raws.append(raw)
    count = len(raws)
    await world.publish(
        sender,
        SignedColumns(
            np.arange(count, dtype=np.int64),
            np.ones(count, np.uint8),
            np.arange(first, first + count, dtype=np.uint64),
            np.frombuffer(b"".join(keccak_256(raw).digest() for raw in raws), np.uint8).reshape(count, 32),
            np.cumsum([0, *map(len, raws)]).astype(np.int32),
            np.frombuffer(b"".join(raws), np.uint8),
            np.zeros(count, np.uint8),
        ),
    )
    return raws


def have(world: World, *letters: str) -> None:
    for letter in letters:
        world.blobs.blobs[hash_of(ord(letter))] = blob_of(ord(letter))


async def test_a_node_gets_blobs_and_what_is_kept_is_the_form_without() -> None:
    world = World()
    have(world, "a", "b")
    [first, second] = await sign(world, 1, "ab")
    sent: list[bytes] = []
    offer = world.node.send

    async def send(raw: list[bytes]) -> object:
        sent.extend(raw)
        return await offer(raw)

    world.node.send = send  # type: ignore[method-assign,assignment]
    await world.until_mined()
    assert sent == [network_form(first, [blob_of(ord("a"))]), network_form(second, [blob_of(ord("b"))])]
    assert world.statuses() == {"sent": 0, "mined": 2, "failed": 0}
    assert [fate.transaction.hash for fate in world.broadcasts.fates.values()] == [
        keccak_256(raw).digest() for raw in (first, second)
    ]


async def test_an_account_is_in_one_pool_at_a_time() -> None:
    world = World()
    have(world, "a", "b", "c")
    await sign(world, 1, "--ab---c-")
    await world.sign(2, 20)
    blocks = []
    while len(world.mined()) < 29:
        await world.tick(mine=False)
        blocks.append([tx.type for tx in world.node.mine() if tx.sender == address_of(secret(1))])
    await world.until_mined()
    assert [block for block in blocks if block] == [[2, 2], [3, 3], [2, 2, 2], [3], [2]]
    assert world.node.offered == 29, "the node never had to say that the account is reserved"
    assert world.statuses() == {"sent": 0, "mined": 29, "failed": 0}


@pytest.mark.parametrize("blocks", range(5))
async def test_another_broadcaster_goes_on_between_the_pools(blocks: int) -> None:
    world = World()
    have(world, "a", "b", "c")
    await sign(world, 1, "--ab---c-")
    await world.tick(blocks, mine=False)
    for _ in range(blocks):
        world.node.mine()
    world.started()
    await world.until_mined()
    assert world.statuses() == {"sent": 0, "mined": 9, "failed": 0}


async def test_a_missing_blob_stops_its_sender_alone_until_it_is_there() -> None:
    world = World()
    have(world, "a", "c")
    await sign(world, 1, "abc-")
    await world.sign(2, 30)
    await world.until_mined()
    reason = f"0x{hash_of(ord('b')).hex()}.json: No such file or directory"
    assert world.broadcaster.refusals() == {address_of(secret(1)): f"nonce 1: {reason}"}
    assert world.statuses() == {"sent": 0, "mined": 31, "failed": 1}
    assert world.node.offered == 31, "what follows was not offered"
    have(world, "b")
    await world.tick(60)
    assert world.statuses() == {"sent": 0, "mined": 34, "failed": 0}
    assert world.broadcaster.refusals() == {}


async def test_requests_are_bounded_with_the_blobs_in_them() -> None:
    world = World()
    have(world, *"abcdefgh")
    for sender in range(1, 5):
        await sign(world, sender, "h" * 10, each=6)
    sizes: list[int] = []
    offer = world.node.send

    async def send(raw: list[bytes]) -> object:
        sizes.append(sum(map(len, raw)))
        return await offer(raw)

    world.node.send = send  # type: ignore[method-assign,assignment]
    await world.tick(mine=False)
    assert len(sizes) == 40
    assert SEND_BYTES_MAX // 2 < max(sizes) <= SEND_BYTES_MAX
    assert world.broadcaster.count.in_flight == 40, "what did not fit follows at once"
    await world.until_mined()
    assert world.statuses() == {"sent": 0, "mined": 40, "failed": 0}


async def test_one_transaction_above_the_bound_goes_alone() -> None:
    world = World()
    have(world, *"abcdefghij")
    for sender in (1, 2):
        [raw] = await sign(world, sender, "j", each=9)
        assert network_bytes(raw) > SEND_BYTES_MAX
    await world.until_mined()
    assert world.statuses() == {"sent": 0, "mined": 2, "failed": 0}


async def test_blobs_are_offered_again_more_rarely() -> None:
    world = World(BroadcastSettings(confirmations=0, resend_after_s=2))
    have(world, "a")
    await sign(world, 1, "a")
    await world.tick(2 * BLOBS_RESEND_FACTOR - 1, mine=False)
    assert world.node.offered == 1
    await world.tick(3, mine=False)
    assert world.node.offered == 2
    world.node.pool.clear()
    await world.tick(2 * BLOBS_RESEND_FACTOR + 2)
    assert (world.node.offered, world.broadcaster.count.sent_again, world.broadcaster.count.mined) == (3, 1, 1)


async def test_the_node_of_the_tests_refuses_what_a_node_refuses() -> None:
    world = World()
    raws = await sign(world, 1, "a-")
    form = network_form(raws[0], [blob_of(ord("a"))])
    answers = await world.node.send([raws[0], form, raws[1]])
    assert [answer.reason for answer in answers] == [
        "missing sidecar in blob transaction", "", "address already reserved",
    ]  # fmt: skip

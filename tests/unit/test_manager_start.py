"""The key manager on twins: restarts, restored backups, halts."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from pipeline.assignment.key_life import GROUP_MAX
from pipeline.assignment.records import KeyRecord, KeyState, StreamRecord
from pipeline.errors import (
    DeploymentHalted,
    OncesignError,
)
from pipeline.ports import Refused
from tests.unit.assignment_records import CHAIN, PATHS, A, B, address, digest, request
from tests.unit.manager_world import World

# ── fail closed ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_restart_finds_everything_as_it_was(world: World) -> None:
    first = await world.opened(keys=3)
    made = await world.assigned(first, request(A, 1), request(B, 1), request(A, 2, count=0))
    await world.publish(first, made[0])
    keys = await first.manager.list_keys()
    await world.clock.until(first.manager.stop())
    second = await world.started()
    assert await second.manager.list_keys() == keys
    assert {(a.stream, a.seq) for a in await second.manager.list_assignments()} == {(B, 1), (A, 2)}
    assert [s.seq for s in await second.manager.list_streams()] == [2, 1]
    await world.publish(second, *made[1:])
    assert await second.manager.list_assignments() == []


async def test_a_restored_backup_is_refused(world: World) -> None:
    first = await world.opened()
    [early] = await world.assigned(first, request(A, 1))
    await world.publish(first, early)
    backup = world.etcd.backup()
    [late] = await world.assigned(first, request(A, 2))
    await world.publish(first, late)
    await world.clock.until(first.manager.stop())
    world.etcd.restore(backup)
    with pytest.raises(DeploymentHalted, match="etcd and the ledger disagree"):
        await world.started()
    assert world.etcd.get(PATHS.leader) is None, "it does not stay in the way"


async def test_an_empty_etcd_is_refused_when_the_ledger_has_rows(world: World) -> None:
    first = await world.opened()
    [made] = await world.assigned(first, request(A, 1))
    await world.publish(first, made)
    await world.clock.until(first.manager.stop())
    world.etcd.stored.clear()
    with pytest.raises(DeploymentHalted, match="holds nothing"):
        await world.started()
    assert world.etcd.get(PATHS.genesis) is None


async def test_each_way_of_being_behind_is_found(world: World) -> None:
    first = await world.opened()
    [made] = await world.assigned(first, request(A, 1))
    await world.sign(made)
    await world.clock.until(first.manager.stop())
    sound = dict(world.etcd.stored)
    stream, key = PATHS.stream(A), PATHS.key(CHAIN, address(1))
    locked, assignment = world.key(1), PATHS.assignment(A, 1)
    defects: dict[str, tuple[str, object]] = {
        "would lend 3": (key, replace(locked, next_nonce=3)),
        "does not know the key": (key, None),
        "etcd has come to batch 0": (stream, replace(world.stream(A), seq=0)),
        "which has no assignment": (assignment, None),
        "not locked for it": (key, replace(locked, state=KeyState.FREE, holder=None)),
        "would lend another": (key, replace(locked, next_nonce=11)),
    }
    for reason, (path, record) in defects.items():
        world.etcd.stored = dict(sound)
        if record is None:
            del world.etcd.stored[path]
        else:
            stored = world.etcd.stored[path]
            assert isinstance(record, KeyRecord | StreamRecord)
            world.etcd.stored[path] = replace(stored, kv=replace(stored.kv, value=record.to_json()))
        with pytest.raises(DeploymentHalted, match=reason):
            await world.started()
    world.etcd.stored = dict(sound)
    await world.started()


async def test_a_genesis_that_is_changed_under_it_stops_everything(world: World) -> None:
    node = await world.opened()
    stored = world.etcd.stored[PATHS.genesis]
    world.etcd.stored[PATHS.genesis] = replace(stored, kv=replace(stored.kv, value=b"{}"))
    with pytest.raises(DeploymentHalted, match="genesis"):
        await world.assign(node, request(A, 1))
    assert world.etcd.get(PATHS.assignment(A, 1)) is None


async def test_a_stranger_who_writes_is_noticed_and_never_overwritten(world: World) -> None:
    node = await world.opened(keys=1)
    stored = world.etcd.stored[PATHS.key(CHAIN, address(1))]
    world.etcd.revision += 1
    changed = replace(stored.kv, value=replace(world.key(1), next_nonce=77).to_json(), mod_revision=world.etcd.revision)
    world.etcd.stored[PATHS.key(CHAIN, address(1))] = replace(stored, kv=changed)
    [made] = await world.assigned(node, request(A, 1))
    assert made.first_nonce == 77


@pytest.mark.parametrize("how", ["digest", "ledger", "signer"])
async def test_one_stream_halts_for_good_and_others_go_on(world: World, how: str) -> None:
    node = await world.opened(keys=4)
    [made] = await world.assigned(node, request(A, 1))
    if how == "digest":
        [reply] = await world.assign(node, request(A, 1, digest="ff" * 32))
        assert isinstance(reply, Refused)
    elif how == "ledger":
        await world.publish(node, made)
        [reply] = await world.assign(node, request(A, 1, digest="ff" * 32))
        assert isinstance(reply, Refused)
    else:
        await world.clock.until(node.manager.halt(A, "the ledger refused it"))
    assert world.stream(A).halted
    assert list(node.manager.status()["halted"]) == [str(A)]
    assert isinstance((await world.assign(node, request(A, 2)))[0], Refused)
    await world.assigned(node, request(B, 1))
    await world.clock.until(node.manager.stop())
    second = await world.started()
    assert isinstance((await world.assign(second, request(A, 2)))[0], Refused)
    await world.clock.until(second.manager.unhalt(A))
    await world.assigned(second, request(A, 2))


async def test_many_releases_go_in_parts(world: World) -> None:
    count = GROUP_MAX + 8
    node = await world.opened(keys=count)
    made = [a for seq in range(1, count + 1) for a in await world.assigned(node, request(A, seq))]
    await world.publish(node, *made)
    await world.publish(node)
    assert {key.state for key in await node.manager.list_keys()} == {KeyState.FREE}


async def test_every_error_is_one_of_ours(world: World) -> None:
    node = await world.opened()
    node.store.down = True
    results = await world.clock.until(
        asyncio.gather(
            node.manager.assign([request(A, 1), request(B, 1)], 60.0),
            node.manager.release([(A, 1)], "w"),
            node.manager.halt(A, "why"),
            return_exceptions=True,
        )
    )
    assert all(isinstance(result, OncesignError) or result is None for result in results)
    assert isinstance(results[0], OncesignError)


def test_the_digest_of_the_tests_differs_by_batch() -> None:
    assert len({digest(stream, seq) for stream in (A, B) for seq in range(5)}) == 10

"""The key manager and its pool over a key's life: whose it is, sealed anew, drained, retired, destroyed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.assignment.administration import Resealed
from pipeline.assignment.archive import KeptKey
from pipeline.assignment.manager import KeyManager
from pipeline.assignment.paths import Paths
from pipeline.assignment.records import KeyRecord, KeyState, Owner
from pipeline.errors import DatabaseUnavailable, DeploymentHalted, KeyNotInPool, StoreUnavailable, UsageError
from pipeline.settings import Settings
from pipeline.testing.store import Fault, TwinStore
from tests.unit.assignment_records import CHAIN, PATHS, A, address, request
from tests.unit.manager_world import Node, World

OTHER_CHAIN = 17_000


def owner(world: World, number: int) -> Owner | None:
    kv = world.etcd.get(PATHS.owner(address(number)))
    return Owner.from_json(kv.value) if kv else None


async def retire(world: World, node: Node, number: int, *, destroy: bool = False, chain_id: int = CHAIN) -> None:
    await world.clock.until(node.manager.retire(chain_id, address(number), destroy=destroy))


async def disabled(world: World, keys: int = 1) -> Node:
    node = await world.opened(keys=keys)
    for number in range(1, keys + 1):
        await world.clock.until(node.manager.disable(CHAIN, address(number)))
    return node


# ── owners ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def second_deployment(world: World) -> KeyManager:
    manager = KeyManager(TwinStore(world.etcd), world.ledger.client(), world.clock, Settings(deployment="second"))
    await world.clock.until(manager.start())
    return manager


async def test_a_key_belongs_to_one_deployment(world: World) -> None:
    node = await world.opened(keys=1)
    made = owner(world, 1)
    assert made is not None
    assert (made.address, made.deployment) == (address(1), PATHS.deployment)
    second = await second_deployment(world)
    for keys in ([1], [2, 1]):
        with pytest.raises(UsageError, match=f"{address(1)} belongs to the deployment {PATHS.deployment}"):
            await world.clock.until(second.import_keys([(CHAIN, address(n), b"sealed", 0) for n in keys]))
    assert not second.view().keys
    assert owner(world, 2) is None
    await world.clock.until(second.import_keys([(CHAIN, address(2), b"sealed", 0)]))
    with pytest.raises(UsageError, match="belongs to the deployment second"):
        await world.clock.until(node.manager.import_keys([(CHAIN, address(2), b"sealed", 0)]))


async def test_an_owner_that_comes_meanwhile_is_seen(world: World) -> None:
    node = await world.opened(keys=0)
    second = await second_deployment(world)  # each has its view from before the other's import
    await world.clock.until(second.import_keys([(CHAIN, address(1), b"sealed", 0)]))
    with pytest.raises(UsageError, match="belongs to the deployment second"):
        await world.clock.until(node.manager.import_keys([(CHAIN, address(1), b"sealed", 0)]))
    assert world.etcd.get(PATHS.key(CHAIN, address(1))) is None


async def test_keys_from_before_there_were_owners_get_theirs(world: World) -> None:
    node = await world.opened(keys=40)
    await world.clock.until(node.manager.stop())
    for number in range(1, 41):
        del world.etcd.stored[PATHS.owner(address(number))]
    await world.started()
    assert all(owner(world, number) for number in range(1, 41))


async def test_a_key_of_two_deployments_halts_the_one_that_starts(world: World) -> None:
    node = await world.opened(keys=1)
    await world.clock.until(node.manager.stop())
    stored = world.etcd.stored[PATHS.owner(address(1))]
    foreign = Owner(address(1), "second", 0).to_json()
    world.etcd.stored[PATHS.owner(address(1))] = replace(stored, kv=replace(stored.kv, value=foreign))
    with pytest.raises(DeploymentHalted, match="belongs to the deployment second, and is in this pool too"):
        await world.started()


async def test_one_key_on_two_chains_has_one_owner(world: World) -> None:
    node = await world.opened(keys=1)
    await world.clock.until(node.manager.import_keys([(OTHER_CHAIN, address(1), b"sealed", 0)]))
    await world.clock.until(node.manager.disable(CHAIN, address(1)))
    await retire(world, node, 1)
    assert owner(world, 1) is not None
    await world.clock.until(node.manager.disable(OTHER_CHAIN, address(1)))
    await retire(world, node, 1, chain_id=OTHER_CHAIN)
    assert owner(world, 1) is None


def test_no_deployment_can_have_the_owners_for_its_own() -> None:
    assert Paths("x").owners.startswith("/oncesign/_")
    with pytest.raises(ValueError, match="deployment"):
        Settings(deployment="_owners")


# ── sealed anew ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_sealed_bytes_are_replaced_where_they_are_as_before(world: World) -> None:
    node = await world.opened(keys=2)
    keys = [Resealed(address(1), b"sealed", b"anew"), Resealed(address(2), b"other", b"anew")]
    await world.clock.until(node.manager.reseal(keys))
    found = [world.etcd.get(PATHS.sealed(address(n))) for n in (1, 2)]
    assert [kv.value for kv in found if kv] == [b"anew", b"sealed"]
    assert node.manager.view().sealed == {address(1): b"anew", address(2): b"sealed"}
    assert KeptKey(CHAIN, address(1), b"anew", 0) in world.ledger.tables.kept


async def test_postgres_has_the_new_bytes_before_etcd(world: World) -> None:
    node = await world.opened(keys=1)
    world.ledger.database.down = True
    with pytest.raises(DatabaseUnavailable):
        await world.clock.until(node.manager.reseal([Resealed(address(1), b"sealed", b"anew")]))
    assert node.manager.view().sealed[address(1)] == b"sealed"


@pytest.mark.parametrize("fault", [Fault.LOST_REPLY, Fault.LOST_REQUEST])
async def test_a_lost_answer_changes_nothing_of_it(world: World, fault: Fault) -> None:
    node = await world.opened(keys=3)
    node.store.faults.append(fault)
    await world.clock.until(node.manager.reseal([Resealed(address(n), b"sealed", b"anew") for n in (1, 2, 3)]))
    assert set(node.manager.view().sealed.values()) == {b"anew"}
    await world.clock.until(node.manager.reseal([Resealed(address(n), b"anew", b"again") for n in (1, 2, 3)]))
    assert set(node.manager.view().sealed.values()) == {b"again"}


async def test_many_keys_are_sealed_anew_in_groups(world: World) -> None:
    node = await world.opened(keys=100)
    await world.clock.until(node.manager.reseal([Resealed(address(n), b"sealed", b"anew") for n in range(1, 101)]))
    assert len(node.manager.view().sealed) == 100
    assert set(node.manager.view().sealed.values()) == {b"anew"}


async def test_a_key_that_is_lent_keeps_its_first_nonce_in_its_copy(world: World) -> None:
    node = await world.opened(keys=1)
    [made] = await world.assigned(node, request(A, 1))
    await world.clock.until(node.manager.reseal([Resealed(address(1), b"sealed", b"anew")]))
    assert world.ledger.tables.kept[-1] == KeptKey(CHAIN, address(1), b"anew", made.first_nonce)
    await world.publish(node, made)
    assert world.key(1).state is KeyState.FREE


# ── retired ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_retired_key_is_never_lent_again(world: World) -> None:
    node = await world.opened(keys=2)
    [made] = await world.assigned(node, request(A, 1))
    await world.publish(node, made)
    used = 1 if made.address == address(1) else 2
    await world.clock.until(node.manager.disable(CHAIN, address(used)))
    await retire(world, node, used)
    assert (world.key(used).state, world.key(used).next_nonce) == (KeyState.RETIRED, 10)
    assert owner(world, used) is None
    for change in (node.manager.enable, node.manager.disable):
        with pytest.raises(UsageError, match="was retired"):
            await world.clock.until(change(CHAIN, address(used)))
    with pytest.raises(UsageError, match="was retired on chain"):
        await world.clock.until(node.manager.import_keys([(CHAIN, address(used), b"sealed", 0)]))
    for seq in (2, 3):
        [made] = await world.assigned(node, request(A, seq))
        assert made.address != address(used)
        await world.publish(node, made)
    await retire(world, node, used)  # again is nothing
    await world.clock.until(node.manager.stop())
    await world.started()


@pytest.mark.parametrize("state", [KeyState.FREE, KeyState.LOCKED])
async def test_a_key_in_use_is_not_retired(world: World, state: KeyState) -> None:
    node = await world.opened(keys=1)
    if state is KeyState.LOCKED:
        await world.assigned(node, request(A, 1))
    with pytest.raises(UsageError, match=f"is {state.value}") as caught:
        await retire(world, node, 1)
    assert f"oncesign keys drain {address(1)}" in str(caught.value)
    assert not world.ledger.tables.retired
    with pytest.raises(KeyNotInPool):
        await retire(world, node, 9)


async def test_a_destroyed_key_is_nowhere(world: World) -> None:
    node = await disabled(world, keys=2)
    await retire(world, node, 1, destroy=True)
    assert world.etcd.get(PATHS.sealed(address(1))) is None
    assert [key.address for key in world.ledger.tables.kept] == [address(2)]
    assert address(1) not in node.manager.view().sealed
    await retire(world, node, 1, destroy=True)  # again is nothing
    await retire(world, node, 2)
    assert world.etcd.get(PATHS.sealed(address(2))) is not None
    await retire(world, node, 2, destroy=True)  # later, too
    assert world.etcd.get(PATHS.sealed(address(2))) is None
    assert not world.ledger.tables.kept
    await world.clock.until(node.manager.stop())
    await world.started()


async def test_a_key_that_another_chain_needs_is_not_destroyed(world: World) -> None:
    node = await disabled(world)
    await world.clock.until(node.manager.import_keys([(OTHER_CHAIN, address(1), b"sealed", 0)]))
    with pytest.raises(UsageError, match=f"is in the pool of chain {OTHER_CHAIN} too"):
        await retire(world, node, 1, destroy=True)
    assert not world.ledger.tables.retired


async def test_a_retirement_that_was_interrupted_goes_on(world: World) -> None:
    node = await disabled(world)
    node.store.faults += [Fault.NOT_SENT] * 1000
    with pytest.raises(StoreUnavailable):
        await retire(world, node, 1, destroy=True)
    node.store.faults.clear()
    assert world.key(1).state is KeyState.DISABLED
    assert world.ledger.tables.retired == {(CHAIN, address(1))}
    with pytest.raises(UsageError, match="was retired"):
        await world.clock.until(node.manager.enable(CHAIN, address(1)))
    await world.clock.until(node.manager.stop())
    second = await world.started()
    await retire(world, second, 1, destroy=True)
    assert (world.key(1).state, world.etcd.get(PATHS.sealed(address(1)))) == (KeyState.RETIRED, None)


async def test_an_etcd_from_before_a_retirement_halts_it(world: World) -> None:
    node = await world.opened(keys=1)
    backup = world.etcd.stored[PATHS.key(CHAIN, address(1))]
    await world.clock.until(node.manager.disable(CHAIN, address(1)))
    await retire(world, node, 1)
    await world.clock.until(node.manager.stop())
    world.etcd.stored[PATHS.key(CHAIN, address(1))] = backup
    with pytest.raises(DeploymentHalted, match="was retired on chain"):
        await world.started()


def test_a_retired_key_says_so_in_etcd() -> None:
    record = KeyRecord(CHAIN, address(1), KeyState.RETIRED, 7, 0, 3)
    assert b'"state":"retired"' in record.to_json()
    assert KeyRecord.from_json(record.to_json()) == record

"""The key manager and the second copy of its keys; what it refuses to start with after a recovery that did not end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.assignment.archive import KeptKey
from pipeline.assignment.records import KeyState
from pipeline.assignment.view import GENERATION_SHIFT
from pipeline.errors import DatabaseUnavailable, DeploymentHalted, UsageError
from tests.unit.assignment_records import CHAIN, PATHS, A, address, request
from tests.unit.manager_world import World


async def test_a_key_is_kept_before_etcd_has_it(world: World) -> None:
    node = await world.opened(keys=0)
    world.ledger.database.down = True
    with pytest.raises(DatabaseUnavailable):
        await world.clock.until(node.manager.import_keys([(CHAIN, address(1), b"sealed", 3)]))
    assert world.etcd.get(PATHS.sealed(address(1))) is None
    world.ledger.database.down = False
    await world.clock.until(node.manager.import_keys([(CHAIN, address(1), b"sealed", 3)]))
    assert world.ledger.tables.kept == [KeptKey(CHAIN, address(1), b"sealed", 3)]
    assert world.key(1).next_nonce == 3


async def test_keys_of_an_older_deployment_are_kept_when_it_starts(world: World) -> None:
    first = await world.opened(keys=2)
    await world.assigned(first, request(A, 1))
    await world.clock.until(first.manager.stop())
    world.ledger.tables.kept.clear()
    await world.started()
    assert world.ledger.tables.kept == [KeptKey(CHAIN, address(n), b"sealed", 0) for n in (1, 2)]


async def test_a_lost_private_key_is_imported_again_and_keeps_its_nonces(world: World) -> None:
    first = await world.opened(keys=1)
    [made] = await world.assigned(first, request(A, 1))
    await world.publish(first, made)
    await world.clock.until(first.manager.stop())
    del world.etcd.stored[PATHS.sealed(address(1))]
    stored = world.etcd.stored[PATHS.key(CHAIN, address(1))]
    disabled = replace(world.key(1), state=KeyState.DISABLED)
    world.etcd.stored[PATHS.key(CHAIN, address(1))] = replace(stored, kv=replace(stored.kv, value=disabled.to_json()))
    second = await world.started()
    with pytest.raises(UsageError, match="was lost"):
        await second.manager.enable(CHAIN, address(1))
    await world.clock.until(second.manager.import_keys([(CHAIN, address(1), b"sealed anew", 0)]))
    await world.clock.until(second.manager.enable(CHAIN, address(1)))
    assert (world.key(1).state, world.key(1).next_nonce) == (KeyState.FREE, 10)
    with pytest.raises(UsageError, match="already"):
        await world.clock.until(second.manager.import_keys([(CHAIN, address(1), b"sealed anew", 0)]))
    [again] = await world.assigned(second, request(A, 2))
    assert again.first_nonce == 10


async def test_a_ledger_that_has_lost_rows_halts_it(world: World) -> None:
    first = await world.opened(keys=1)
    for seq in (1, 2):
        await world.publish(first, *await world.assigned(first, request(A, seq)))
    await world.clock.until(first.manager.stop())
    del world.ledger.rows[A, 2]
    world.ledger.next_nonces[CHAIN, address(1)] = 10
    with pytest.raises(DeploymentHalted, match="it has signed only up to 9"):
        await world.started()


async def test_a_recovery_that_began_and_did_not_end_halts_it(world: World) -> None:
    """What was assigned before and not sworn would wait for ever: the ledger takes it no more."""
    first = await world.opened(keys=2)
    sworn, waiting = await world.assigned(first, request(A, 1), request(A, 2))
    await world.sign(sworn)
    await world.clock.until(first.manager.stop())
    await world.ledger.begin_generation("here")
    with pytest.raises(DeploymentHalted, match=r"batch 2 .* before the last recovery, and never signed"):
        await world.started()
    stored = world.etcd.stored[PATHS.assignment(A, 2)]
    renewed = replace(waiting, fence=(1 << GENERATION_SHIFT) + waiting.fence)
    world.etcd.stored[PATHS.assignment(A, 2)] = replace(stored, kv=replace(stored.kv, value=renewed.to_json()))
    second = await world.started()
    await world.publish(second, sworn, renewed)
    [made] = await world.assigned(second, request(A, 3))
    assert made.fence >> GENERATION_SHIFT == 1

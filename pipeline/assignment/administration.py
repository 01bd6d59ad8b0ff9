"""What an operator, a reader or a signer may change beside assignments: keys, streams, halts. Pure, like the rules."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from pipeline.assignment.archive import Key
from pipeline.assignment.plan import Plan
from pipeline.assignment.records import NOWHERE, Assignment, KeyRecord, KeyState, Owner, StreamRecord
from pipeline.assignment.view import Guard, View
from pipeline.errors import DeploymentHalted, KeyNotInPool, UsageError
from pipeline.stream import Stream

LOST_MAX: Final = 100
"""Assignments changed in one transaction, within etcd's 128 operations."""


@dataclass(frozen=True, slots=True)
class Resealed:
    """A sealed private key, and what takes its place."""

    address: str
    before: bytes = field(repr=False)
    after: bytes = field(repr=False)


def plan_open(view: View, guard: Guard, record: StreamRecord) -> Plan:
    """Make a stream's record unless there is one."""
    plan = Plan(guard, view)
    if plan.stream(record.stream) is None:
        plan.put(record)
    else:
        plan.rely_on_stream(record.stream)
    return plan


def plan_halt(view: View, guard: Guard, stream: Stream, reason: str) -> Plan:
    """Halt a stream, the first reason stays; or let it go on, with no reason."""
    plan = Plan(guard, view)
    record = plan.stream(stream)
    if record is not None and record.halted != reason and not (record.halted and reason):
        plan.put(replace(record, halted=reason))
    return plan


def plan_lost(view: View, guard: Guard, stream: Stream, end: int) -> Plan:
    """The partition of a stream, made anew, ends at `end`: what was assigned from there on is in Kafka no more."""
    plan = Plan(guard, view)
    for lost in lost_of(view, stream, end)[:LOST_MAX]:
        plan.put(replace(lost, batch_offset=NOWHERE))
    return plan


def lost_of(view: View, stream: Stream, end: int) -> list[Assignment]:
    """Assignments of a stream whose batch cannot be on its partition, and that do not say so yet."""
    records = [held.record for held in view.assignments.values()]
    return [a for a in records if a.stream == stream and a.batch_offset >= end]


def require_importable(
    view: View, keys: Sequence[tuple[int, str, bytes, int]], deployment: str, retired: Collection[Key]
) -> None:
    """Raises UsageError for a key that is there, was retired, or is another deployment's."""
    for chain_id, address, _sealed, _nonce in keys:
        held = view.keys.get((chain_id, address))
        if (chain_id, address) in retired:
            raise UsageError(f"{address} was retired on chain {chain_id}.", hint="Nothing was imported.")
        if held is not None and can_sign(view, address):
            raise UsageError(f"{address} is in the pool of chain {chain_id} already.", hint="Nothing was imported.")
        _require_own(view, address, deployment)


def plan_import(view: View, guard: Guard, keys: Sequence[tuple[int, str, bytes, int]], now_ms: int) -> Plan:
    """(chain id, address, sealed key, start nonce) each. Raises UsageError for a key that is there, or another's.

    One whose private key was lost with an etcd gets it back, and keeps its nonces.
    """
    plan = Plan(guard, view)
    for chain_id, address, sealed, nonce in keys:
        _own(plan, address, now_ms)
        if plan.key(chain_id, address) is not None:
            # Imported since, or named twice: its nonces must not go back.
            if can_sign(view, address) or guard.paths.sealed(address) in plan.raw_puts:
                raise UsageError(f"{address} is in the pool of chain {chain_id} already.")
            plan.raw_puts[guard.paths.sealed(address)] = sealed
            continue
        plan.put(KeyRecord(chain_id, address, KeyState.FREE, nonce, max(now_ms, view.latest_ms), 0))
        if address not in view.sealed:
            plan.raw_puts[guard.paths.sealed(address)] = sealed
    return plan


def _own(plan: Plan, address: str, now_ms: int) -> None:
    """Say whose key it is, if nothing does. Raises UsageError for another deployment's."""
    _require_own(plan.view, address, plan.guard.paths.deployment)
    if address not in plan.view.owners:
        plan.put(Owner(address, plan.guard.paths.deployment, now_ms))


def _require_own(view: View, address: str, deployment: str) -> None:
    owner = view.owners.get(address)
    if owner is not None and owner.record.deployment != deployment:
        raise UsageError(_foreign(owner.record), hint="Nothing was imported. Retire it there first.")


def _foreign(owner: Owner) -> str:
    return f"{owner.address} belongs to the deployment {owner.deployment}."


def unowned(view: View, deployment: str) -> list[str]:
    """Keys in use of which nothing says whose they are. Raises DeploymentHalted for one that is another's."""
    found = sorted({held.record.address for held in view.keys.values() if held.record.state is not KeyState.RETIRED})
    for address in found:
        owner = view.owners.get(address)
        if owner is not None and owner.record.deployment != deployment:
            raise DeploymentHalted(
                f"{_foreign(owner.record)[:-1]}, and is in this pool too.",
                hint="Two pools with one key give its nonces out twice: retire it in one of them.",
            )
    return [address for address in found if address not in view.owners]


def plan_own(view: View, guard: Guard, addresses: Sequence[str], now_ms: int) -> Plan:
    """Say of keys of this pool that they are this deployment's."""
    plan = Plan(guard, view)
    for address in addresses:
        _own(plan, address, now_ms)
    return plan


def plan_reseal(view: View, guard: Guard, keys: Sequence[Resealed]) -> Plan:
    """Put other sealed bytes where etcd still has those from before."""
    plan = Plan(guard, view)
    for key in keys:
        if view.sealed.get(key.address) == key.before:
            plan.raw_puts[guard.paths.sealed(key.address)] = key.after
    return plan


def require_retirable(view: View, chain_id: int, address: str, *, destroy: bool) -> None:
    """Raises KeyNotInPool, and UsageError for a key that may still be lent, or is to be destroyed and is needed."""
    held = view.keys.get((chain_id, address))
    if held is None:
        raise KeyNotInPool(chain_id, address)
    if held.record.state not in (KeyState.DISABLED, KeyState.RETIRED):
        raise UsageError(f"{address} is {held.record.state.value}.", hint=f"Run: oncesign keys drain {address}")
    if destroy and (others := _used_on(view, address) - {chain_id}):
        chains = ", ".join(map(str, sorted(others)))
        raise UsageError(f"{address} is in the pool of chain {chains} too.", hint="Retire it there first.")


def plan_retire(view: View, guard: Guard, chain_id: int, address: str, *, destroy: bool, now_ms: int) -> Plan:
    """Never lend a key again; its nonces stay known. Raises what require_retirable raises."""
    require_retirable(view, chain_id, address, destroy=destroy)
    plan = Plan(guard, view)
    key = view.keys[chain_id, address].record
    if key.state is not KeyState.RETIRED:
        plan.put(replace(key, state=KeyState.RETIRED, since_unix_ms=max(now_ms, view.latest_ms)))
    if not _used_on(view, address) - {chain_id} and address in view.owners:
        plan.disown(address)
    if destroy and address in view.sealed:
        plan.destroy(address)
    return plan


def _used_on(view: View, address: str) -> set[int]:
    """Chains where it is in the pool, and not retired."""
    records = [held.record for held in view.keys.values()]
    return {key.chain_id for key in records if key.address == address and key.state is not KeyState.RETIRED}


def plan_change(
    view: View, guard: Guard, chain_id: int, address: str, change: Callable[[KeyRecord], KeyRecord], now_ms: int
) -> Plan:
    """`disabled` or `enabled` for one key. Raises KeyNotInPool."""
    plan = Plan(guard, view)
    key = plan.key(chain_id, address)
    if key is None:
        raise KeyNotInPool(chain_id, address)
    changed = change(key)
    if changed.state is not key.state:
        changed = replace(changed, since_unix_ms=max(now_ms, view.latest_ms))
    if changed != key:
        plan.put(changed)
    return plan


def can_sign(view: View, address: str) -> bool:
    """Whether etcd has the private key; of one that `oncesign recover` could not bring back it has not."""
    return address in view.sealed


def disabled(key: KeyRecord) -> KeyRecord:
    """Lent no more; a locked one, after its release. Raises UsageError for a retired one."""
    _require_not_retired(key)
    if key.state is KeyState.LOCKED:
        return replace(key, disable_on_release=True)
    return replace(key, state=KeyState.DISABLED)


def enabled(key: KeyRecord) -> KeyRecord:
    """Lent again. Raises UsageError for a retired one."""
    _require_not_retired(key)
    if key.state is KeyState.LOCKED:
        return replace(key, disable_on_release=False)
    return replace(key, state=KeyState.FREE)


def placed_apart(key: KeyRecord, *, apart: bool) -> KeyRecord:
    """For blob transactions alone, or for all others alone. Raises UsageError for a retired one."""
    _require_not_retired(key)
    return replace(key, set_apart=apart)


def _require_not_retired(key: KeyRecord) -> None:
    if key.state is KeyState.RETIRED:
        raise retired_error(key.address)


def retired_error(address: str) -> UsageError:
    """Of a key that somebody wants lent again."""
    return UsageError(f"{address} was retired.", hint="A retired key is never lent again.")

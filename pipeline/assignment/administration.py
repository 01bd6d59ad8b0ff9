"""What an operator, a reader or a signer may change beside assignments: keys, streams, halts. Pure, like the rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from pipeline.assignment.plan import Plan
from pipeline.assignment.records import NOWHERE, Assignment, KeyRecord, KeyState, StreamRecord
from pipeline.assignment.view import Guard, View
from pipeline.errors import KeyNotInPool, UsageError
from pipeline.stream import Stream

LOST_MAX: Final = 100
"""Assignments changed in one transaction, within etcd's 128 operations."""


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


def plan_import(view: View, guard: Guard, keys: Sequence[tuple[int, str, bytes, int]], now_ms: int) -> Plan:
    """(chain id, address, sealed key, start nonce) each. Raises UsageError for a key that is there.

    One whose private key was lost with an etcd gets it back, and keeps its nonces.
    """
    plan = Plan(guard, view)
    for chain_id, address, sealed, nonce in keys:
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
    """Lent no more; a locked one, after its release."""
    if key.state is KeyState.LOCKED:
        return replace(key, disable_on_release=True)
    return replace(key, state=KeyState.DISABLED)


def enabled(key: KeyRecord) -> KeyRecord:
    """Lent again."""
    if key.state is KeyState.LOCKED:
        return replace(key, disable_on_release=False)
    return replace(key, state=KeyState.FREE)

"""The rules of assignment: each guard has a case that only it stops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from pipeline.assignment.administration import disabled, enabled, plan_change, plan_halt, plan_import, plan_open
from pipeline.assignment.plan import Plan
from pipeline.assignment.records import Holder, KeyState, StreamRecord
from pipeline.assignment.rules import NONCE_END, WRITES_MAX, Assigning, Batch, plan_release
from pipeline.assignment.view import View
from pipeline.errors import UsageError
from pipeline.ports import Assigned, AssignReply, AssignRequest, Compare, Published, Refused, Waiting
from pipeline.stream import Cursor, Stream
from tests.unit.assignment_records import (
    CHAIN,
    FENCE,
    GUARD,
    NOW_MS,
    PATHS,
    SYSTEM,
    A,
    B,
    address,
    assignments,
    cursor,
    digest,
    key,
    request,
    view,
)


def assign(
    held: View, *requests: AssignRequest, ledger: Mapping[Batch, str | None] | None = None, now_ms: int = NOW_MS
) -> tuple[list[AssignReply], Plan]:
    assigning = Assigning(held, GUARD, now_ms, ledger or {})
    return assigning.replies(requests), assigning.plan


def carried_out(held: View, *requests: AssignRequest, revision: int = 50, now_ms: int = NOW_MS) -> list[AssignReply]:
    replies, plan = assign(held, *requests, now_ms=now_ms)
    plan.apply(revision)
    return replies


def assigned(reply: AssignReply) -> Assigned:
    assert isinstance(reply, Assigned)
    return reply


def refused(reply: AssignReply) -> str:
    assert isinstance(reply, Refused)
    return reply.reason


# ── a new batch ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_gets_key_and_nonces() -> None:
    held = view(key(1, next_nonce=7, uses=3))
    [reply], plan = assign(held, request(A, 1, count=10))
    assignment = assigned(reply).assignment
    assert (assignment.address, assignment.first_nonce, assignment.count) == (address(1), 7, 10)
    assert assigned(reply).sealed == b"sealed " + address(1).encode()
    assert assignment.fence == FENCE
    locked = plan.key(CHAIN, address(1))
    assert locked is not None
    assert (locked.state, locked.next_nonce, locked.uses) == (KeyState.LOCKED, 17, 3)
    assert locked.holder == Holder(A, 1, "consumer-0.1", "here", FENCE)
    stream = plan.stream(A)
    assert stream is not None
    assert (stream.seq, stream.cursor, stream.digest) == (1, cursor(1), digest(A, 1))


def test_the_transaction_compares_leader_genesis_stream_key_and_assignment() -> None:
    held = view(key(1))
    _, plan = assign(held, request(A, 1))
    txn = plan.txn()
    assert set(txn.compares) == {
        Compare(PATHS.leader, create_revision=FENCE),
        Compare(PATHS.leader, value=GUARD.leader_value),
        Compare(PATHS.genesis, value=GUARD.genesis_value),
        Compare(PATHS.key(CHAIN, address(1)), mod_revision=held.keys[CHAIN, address(1)].mod_revision),
        Compare(PATHS.stream(A), mod_revision=held.streams[A].mod_revision),
        Compare(PATHS.assignment(A, 1), mod_revision=0),
    }
    paths = {PATHS.key(CHAIN, address(1)), PATHS.stream(A), PATHS.assignment(A, 1)}
    assert {path for path, _ in txn.puts} == paths
    assert set(txn.gets) == {PATHS.leader, PATHS.genesis, *paths}
    assert txn.lease == 0  # a key lock belongs to the assignment, not to a process


def test_the_view_does_not_change_before_the_plan_is_applied() -> None:
    held = view(key(1))
    assign(held, request(A, 1))
    assert held.keys[CHAIN, address(1)].record.state is KeyState.FREE
    assert held.streams[A].record.seq == 0
    assert not held.assignments


def test_batches_of_several_streams_share_a_transaction_and_a_chain_stays_in_order() -> None:
    held = view(key(1), key(2), key(3))
    replies, plan = assign(held, request(A, 1), request(A, 2), request(B, 1))
    addresses = [assigned(reply).assignment.address for reply in replies]
    assert sorted(addresses) == [address(1), address(2), address(3)]
    stream = plan.stream(A)
    assert stream is not None
    assert (stream.seq, stream.digest) == (2, digest(A, 2))
    paths = [path for path, _ in plan.txn().puts]
    assert len(set(paths)) == len(paths) == 3 + 3 + 2


def test_a_full_transaction_leaves_the_rest_for_the_next() -> None:
    held = view(*(key(i) for i in range(1, 60)))
    requests = [request(A, seq) for seq in range(1, 60)]
    replies, plan = assign(held, *requests)
    assert 30 < len(replies) < 60
    txn = plan.txn()
    assert max(len(txn.compares), len(txn.puts) + len(txn.deletes), len(txn.gets)) <= 128
    assert plan.size() <= WRITES_MAX
    plan.apply(50)
    assert len(carried_out(held, *requests[len(replies) :])) == 59 - len(replies)


def test_a_batch_without_signable_rows_takes_no_key() -> None:
    held = view(key(1))
    [reply] = carried_out(held, request(A, 1, count=0))
    assignment = assigned(reply).assignment
    assert (assignment.address, assignment.count, assigned(reply).sealed) == ("", 0, b"")
    assert held.keys[CHAIN, address(1)].record.state is KeyState.FREE
    assert held.streams[A].record.seq == 1
    assert (A, 1) in held.assignments


# ── which key ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        ([key(1, since=NOW_MS - 1), key(2, since=NOW_MS - 2)], 2),
        ([key(1, uses=5), key(2, uses=4)], 2),
        ([key(2), key(1)], 1),
        ([key(1, since=1, state=KeyState.DISABLED), key(2)], 2),
        ([key(1, since=1, state=KeyState.LOCKED), key(2)], 2),
        ([key(1, since=1, chain_id=5), key(2)], 2),
        ([key(1, since=1, next_nonce=NONCE_END - 9), key(2)], 2),
    ],
    ids=["oldest", "fewest uses", "address", "enabled", "free", "chain", "nonces left"],
)
def test_the_key_whose_turn_it_is(keys: list[object], chosen: int) -> None:
    [reply], _ = assign(view(*keys), request(A, 1, count=10))  # type: ignore[arg-type] # KeyRecords
    assert assigned(reply).assignment.address == address(chosen)


def test_the_last_nonce_is_below_2_to_the_64_minus_1() -> None:
    last = key(1, next_nonce=NONCE_END - 10)
    [reply], _ = assign(view(last), request(A, 1, count=10))
    assert assigned(reply).assignment.first_nonce + 10 == 2**64 - 1
    [reply], plan = assign(view(last), request(A, 1, count=11))
    assert isinstance(reply, Waiting)
    assert plan.writes_nothing()


def test_since_never_goes_back() -> None:
    held = view(key(1), key(2, since=NOW_MS))
    carried_out(held, request(A, 1), now_ms=NOW_MS - 50_000)
    assert held.keys[CHAIN, address(1)].record.since_unix_ms == NOW_MS
    plan = plan_release(held, GUARD, [(A, 1)], NOW_MS - 60_000)
    plan.apply(51)
    assert held.keys[CHAIN, address(1)].record.since_unix_ms == NOW_MS


# ── no key ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nobody_overtakes_who_waits_for_a_key_of_the_same_chain() -> None:
    held = view(key(1, next_nonce=NONCE_END - 5))  # enough for the second request only
    replies, plan = assign(held, request(A, 1, count=10), request(B, 1, count=5))
    assert [type(reply) for reply in replies] == [Waiting, Waiting]
    assert plan.writes_nothing()


def test_a_stream_waits_as_a_whole_and_others_go_on() -> None:
    held = view(key(1))
    replies, _ = assign(held, request(B, 1), request(A, 1), request(A, 2, count=0), request(B, 2, count=0))
    assert [type(reply) for reply in replies] == [Assigned, Waiting, Waiting, Assigned]


def test_another_chain_does_not_wait() -> None:
    other = Stream("base", 0)
    held = view(key(1, chain_id=5))
    held.put(StreamRecord(other, 5, SYSTEM), 30)
    replies, _ = assign(held, request(A, 1), request(other, 1, chain_id=5))
    assert [type(reply) for reply in replies] == [Waiting, Assigned]


# ── the same batch again ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_batch_again_has_the_same_answer_and_writes_nothing() -> None:
    held = view(key(1), key(2))
    [first] = carried_out(held, request(A, 1))
    [again], plan = assign(held, request(A, 1), now_ms=NOW_MS + 5000)
    assert again == first
    assert plan.writes_nothing()


def test_another_worker_inherits_key_and_nonces() -> None:
    held = view(key(1), key(2))
    [first] = carried_out(held, request(A, 1))
    taken_over = replace(GUARD, fence=99)
    assigning = Assigning(held, taken_over, NOW_MS + 5000, {})
    [again] = assigning.replies([request(A, 1, worker="consumer-1.7", node="there")])
    before, after = assigned(first).assignment, assigned(again).assignment
    assert after == replace(before, worker="consumer-1.7", node="there")
    assert after.fence == FENCE  # under which it was made
    locked = assigning.plan.key(CHAIN, after.address)
    assert locked is not None
    assert locked.holder == Holder(A, 1, "consumer-1.7", "there", 99)
    assert locked.next_nonce == before.first_nonce + before.count
    compares = assigning.plan.txn().compares
    assert Compare(PATHS.assignment(A, 1), mod_revision=50) in compares
    assert Compare(PATHS.key(CHAIN, after.address), mod_revision=50) in compares


def test_the_same_batch_twice_in_one_group_is_assigned_once() -> None:
    held = view(key(1), key(2))
    replies, plan = assign(held, request(A, 1), request(A, 1, worker="consumer-1.7"))
    first, second = (assigned(reply).assignment for reply in replies)
    assert second == replace(first, worker="consumer-1.7")
    assert assignments(plan) == [second]
    assert plan.key(CHAIN, address(2)) == key(2)


def test_a_batch_that_waits_does_not_stop_a_redelivery_behind_it() -> None:
    held = view(key(1))
    carried_out(held, request(A, 1))
    replies, _ = assign(held, request(B, 1), request(A, 1))
    assert [type(reply) for reply in replies] == [Waiting, Assigned]


# ── published before ─────────────────────────────────────────────────────────────────────────────────────────────────


def published(seq: int = 1) -> View:
    held = view(key(1))
    for number in range(1, seq + 1):
        carried_out(held, request(A, number))
        plan_release(held, GUARD, [(A, number)], NOW_MS).apply(60 + number)
    return held


def test_a_published_batch_is_skipped() -> None:
    [reply], plan = assign(published(), request(A, 1), ledger={(A, 1): digest(A, 1)})
    assert reply == Published()
    assert plan.writes_nothing()


@pytest.mark.parametrize(("found", "reason"), [("ff" * 32, "another digest"), (None, "no row")])
def test_a_published_batch_that_the_ledger_does_not_know_halts(found: str | None, reason: str) -> None:
    [reply], plan = assign(published(), request(A, 1), ledger={(A, 1): found})
    assert reason in refused(reply)
    stream = plan.stream(A)
    assert stream is not None
    assert stream.halted == refused(reply)


def test_a_batch_of_which_the_ledger_was_not_asked_waits() -> None:
    replies, plan = assign(published(), request(A, 1), request(A, 2))
    assert [type(reply) for reply in replies] == [Waiting, Waiting]
    assert plan.writes_nothing()


# ── what halts a stream ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (request(A, 3, prev=cursor(1)), "the stream has come to batch 1"),
        (request(A, 2, prev=Cursor(1, 1)), "starts after 1:1"),
        (request(A, 2, chain_id=5), "chain 5"),
        (request(A, 2, system_id="other"), "Postgres other"),
        (request(A, 1, digest="ff" * 32), "another digest"),
    ],
    ids=["gap in seq", "gap in rows", "chain id", "system id", "digest"],
)
def test_what_does_not_continue_its_stream_halts_it(wrong: AssignRequest, reason: str) -> None:
    held = view(key(1), key(2), key(3))
    carried_out(held, request(A, 1))
    replies, plan = assign(held, wrong, request(A, 2), request(B, 1))
    assert reason in refused(replies[0])
    assert refused(replies[1]) == refused(replies[0])
    assert isinstance(replies[2], Assigned), "other streams go on"
    halted = plan.stream(A)
    assert halted is not None
    assert (halted.seq, halted.halted) == (1, refused(replies[0]))
    assert (PATHS.stream(A), halted.to_json()) in plan.txn().puts, "it stays halted over a restart"


def test_a_key_that_is_not_locked_for_its_batch_halts() -> None:
    held = view(key(1))
    carried_out(held, request(A, 1))
    locked = held.keys[CHAIN, address(1)].record
    for broken in (
        replace(locked, state=KeyState.FREE),
        replace(locked, holder=None),
        replace(locked, holder=Holder(B, 1, "", "", FENCE)),
    ):
        held.put(broken, 70)
        [reply], _ = assign(held, request(A, 1))
        assert "not locked for it" in refused(reply)


def test_a_halted_stream_assigns_nothing_not_even_again() -> None:
    held = view(key(1), key(2))
    carried_out(held, request(A, 1))
    plan_halt(held, GUARD, A, "because").apply(51)
    replies, plan = assign(held, request(A, 1), request(A, 2))
    assert replies == [Refused("because"), Refused("because")]
    assert plan.writes_nothing()


def test_an_unknown_stream_is_refused() -> None:
    [reply], plan = assign(view(key(1)), request(Stream("elsewhere", 0), 1))
    assert "unknown" in refused(reply)
    assert plan.writes_nothing()


# ── release ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_release_frees_the_key_and_forgets_the_assignment() -> None:
    held = view(key(1, uses=4))
    carried_out(held, request(A, 1))
    plan = plan_release(held, GUARD, [(A, 1)], NOW_MS + 10)
    txn = plan.txn()
    assert txn.deletes == (PATHS.assignment(A, 1),)
    assert Compare(PATHS.assignment(A, 1), mod_revision=50) in txn.compares
    assert Compare(PATHS.key(CHAIN, address(1)), mod_revision=50) in txn.compares
    assert set(GUARD.compares()) < set(txn.compares)
    plan.apply(51)
    assert not held.assignments
    assert held.keys[CHAIN, address(1)].record == key(1, since=NOW_MS + 10, next_nonce=10, uses=5)


def test_a_release_again_writes_nothing() -> None:
    held = view(key(1))
    carried_out(held, request(A, 1))
    plan = plan_release(held, GUARD, [(A, 1), (A, 1), (B, 9)], NOW_MS)
    assert plan.size() == 2
    plan.apply(51)
    assert not plan_release(held, GUARD, [(A, 1)], NOW_MS)


def test_a_release_frees_no_key_of_another_batch() -> None:
    held = view(key(1))
    carried_out(held, request(A, 1))
    other = replace(held.keys[CHAIN, address(1)].record, holder=Holder(B, 1, "", "", FENCE))
    held.put(other, 70)
    plan_release(held, GUARD, [(A, 1)], NOW_MS).apply(71)
    assert held.keys[CHAIN, address(1)].record == other


def test_a_key_disabled_while_locked_is_not_lent_after_its_release() -> None:
    held = view(key(1))
    carried_out(held, request(A, 1))
    plan_change(held, GUARD, CHAIN, address(1), disabled, NOW_MS).apply(51)
    assert held.keys[CHAIN, address(1)].record.state is KeyState.LOCKED
    plan_release(held, GUARD, [(A, 1)], NOW_MS).apply(52)
    assert held.keys[CHAIN, address(1)].record.state is KeyState.DISABLED
    assert isinstance(assign(held, request(A, 2))[0][0], Waiting)
    plan_change(held, GUARD, CHAIN, address(1), enabled, NOW_MS).apply(53)
    assert isinstance(assign(held, request(A, 2))[0][0], Assigned)


# ── keys and streams ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_is_imported_once() -> None:
    held = view()
    keys = [(CHAIN, address(1), b"sealed", 5), (2, address(1), b"sealed", 0)]
    plan = plan_import(held, GUARD, keys, NOW_MS)
    assert Compare(PATHS.sealed(address(1)), mod_revision=0) in plan.txn().compares
    assert Compare(PATHS.key(CHAIN, address(1)), mod_revision=0) in plan.txn().compares
    plan.apply(50)
    assert held.keys[CHAIN, address(1)].record.next_nonce == 5
    assert held.sealed == {address(1): b"sealed"}
    for again in (keys[:1], [(CHAIN, address(2), b"", 0), (CHAIN, address(2), b"", 0)]):
        with pytest.raises(UsageError, match="already"):
            plan_import(held, GUARD, again, NOW_MS)


def test_a_new_key_waits_for_its_turn_even_when_the_clock_went_back() -> None:
    held = view(key(1))
    plan_import(held, GUARD, [(CHAIN, address(2), b"sealed", 0)], NOW_MS - 90_000).apply(50)
    assert [k.address for k in held.oldest_first()] == [address(1), address(2)]


def test_a_key_that_is_not_there_cannot_be_disabled() -> None:
    with pytest.raises(UsageError, match="not in the pool"):
        plan_change(view(), GUARD, CHAIN, address(1), disabled, NOW_MS)


def test_a_stream_is_opened_once_and_its_first_halt_stays() -> None:
    held = view(streams=())
    plan_open(held, GUARD, StreamRecord(A, CHAIN, SYSTEM)).apply(50)
    assert plan_open(held, GUARD, StreamRecord(A, CHAIN, SYSTEM, seq=7)).writes_nothing()
    plan_halt(held, GUARD, A, "first").apply(51)
    assert not plan_halt(held, GUARD, A, "second")
    plan_halt(held, GUARD, A, "").apply(52)
    assert held.streams[A].record.halted == ""
    assert not plan_halt(held, GUARD, B, "unknown")

"""A row that names its sender is signed by that key or by none."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from pipeline.assignment.rebuilding import rebuild
from pipeline.assignment.records import KeyState
from pipeline.assignment.rules import NONCE_END, Assigning
from pipeline.assignment.view import View
from pipeline.custody.generation import address_of
from pipeline.errors import SigningRefused
from pipeline.ethereum.rejected import Rejection
from pipeline.ethereum.signed import SignedRecord
from pipeline.ethereum.validity import rules_version
from pipeline.ports import Assigned, AssignReply, AssignRequest, Compare, Waiting
from pipeline.stages.signer import check_job
from pipeline.stages.violation import ViolationKind
from pipeline.stock.mix import Mix
from pipeline.stock.row import Row
from tests.published import Publisher, findings, kinds
from tests.unit.assignment_records import CHAIN, GUARD, NOW_MS, PATHS, A, B, address, key, request, view
from tests.unit.flow_world import BATCHES, REJECTED, SECRETS, Flow
from tests.unit.test_rebuilding import NEW_FENCE, facts, lent, locked, row, stream, view_of
from tests.unit.test_sweeper import passed_over, unpublished

SENDERS = [address_of(secret) for secret in SECRETS]


def assign(held: View, *requests: AssignRequest) -> list[AssignReply]:
    assigning = Assigning(held, GUARD, NOW_MS, {})
    replies = assigning.replies(requests)
    assigning.plan.apply(50)
    return replies


def pinned(number: int, count: int = 10, **fields: object) -> AssignRequest:
    return request(A, 1, count, sender=address(number), **fields)


def outcome(reply: AssignReply) -> str:
    if isinstance(reply, Assigned):
        return reply.assignment.denied or reply.assignment.address
    return "waits" if isinstance(reply, Waiting) else "refused"


# ── which key ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_named_key_is_lent_whoever_has_waited_for_longer() -> None:
    held = view(key(1, since=1), key(2, since=2), key(3, since=3))
    assert outcome(assign(held, pinned(3))[0]) == address(3)


def test_a_locked_one_is_waited_for_and_holds_up_no_other() -> None:
    held = view(key(1), key(2))
    replies = assign(held, request(B, 1, sender=address(1)), pinned(1), request(A, 2), request(B, 2))
    assert [outcome(reply) for reply in replies] == [address(1), "waits", "waits", address(2)]


def test_a_key_that_is_pinned_and_one_that_is_chosen_are_two_in_one_group() -> None:
    held = view(key(1, since=1), key(2, since=2))
    replies = assign(held, request(B, 1), pinned(2), request(B, 2))
    assert [outcome(reply) for reply in replies] == [address(1), address(2), "waits"]
    held = view(key(1, since=1), key(2, since=2))
    replies = assign(held, pinned(1), request(B, 1))
    assert [outcome(reply) for reply in replies] == [address(1), address(2)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"state": KeyState.DISABLED}, "sender_disabled"),
        ({"state": KeyState.RETIRED}, "sender_disabled"),
        ({"state": KeyState.LOCKED, "disable_on_release": True}, "sender_disabled"),
        ({"next_nonce": NONCE_END - 9}, "sender_disabled"),
        ({"set_apart": True}, "sender_set_apart"),
    ],
)
def test_a_key_that_will_not_be_lent_denies_the_batch(fields: dict[str, Any], expected: str) -> None:
    held = view(key(1, **fields), key(2))
    [reply, after] = assign(held, pinned(1), request(A, 2))
    assert outcome(reply) == expected
    assert isinstance(reply, Assigned)
    assert (reply.assignment.address, reply.assignment.count, reply.sealed) == ("", 0, b"")
    assert outcome(after) == address(2)  # the stream goes on


def test_a_sender_of_no_pool_denies_the_batch() -> None:
    assert outcome(assign(view(key(1)), pinned(9))[0]) == "sender_unknown"


def test_what_a_denial_rests_on_is_compared() -> None:
    held = view(key(1, state=KeyState.DISABLED))
    assigning = Assigning(held, GUARD, NOW_MS, {})
    assigning.replies([pinned(1), request(B, 1, sender=address(9))])
    compares = assigning.plan.txn().compares
    at = held.keys[CHAIN, address(1)].mod_revision
    assert Compare(PATHS.key(CHAIN, address(1)), mod_revision=at) in compares
    assert Compare(PATHS.key(CHAIN, address(9)), mod_revision=0) in compares


def test_a_denied_batch_stays_denied_when_the_key_is_lent_again() -> None:
    held = view(key(1, state=KeyState.DISABLED))
    [first] = assign(held, pinned(1))
    held.put(key(1), 60)
    [again] = assign(held, pinned(1, worker="consumer-1.2"))
    assert outcome(first) == outcome(again) == "sender_disabled"


def test_a_batch_without_a_signable_row_needs_no_sender() -> None:
    [reply] = assign(view(), pinned(9, count=0))
    assert isinstance(reply, Assigned)
    assert (reply.assignment.denied, reply.assignment.count) == ("", 0)


def test_keys_set_apart_sign_blobs_and_nothing_else() -> None:
    held = view(key(1, since=1, set_apart=True), key(2, since=2))
    replies = assign(held, request(A, 1, blobs=True), request(B, 1))
    assert [outcome(reply) for reply in replies] == [address(1), address(2)]
    assert [outcome(r) for r in assign(view(key(1)), request(A, 1, blobs=True), request(B, 1))] == ["waits", address(1)]
    assert outcome(assign(view(key(1)), pinned(1, blobs=True))[0]) == "sender_set_apart"
    assert outcome(assign(view(key(1, set_apart=True)), pinned(1, blobs=True))[0]) == address(1)


# ── after etcd was lost ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_that_the_ledger_has_as_denied_is_denied_again() -> None:
    entry = row(A, 1, count=0)
    known = {(A, 1): request(A, 1, sender=address(9))}
    made = rebuild(View(), facts(entry, unpublished={(A, 1): entry}, batches=known), NEW_FENCE, "here", NOW_MS)
    assert made.problems == []
    assert (made.assignments[A, 1].denied, made.assignments[A, 1].count) == ("sender_unknown", 0)
    known = {(A, 1): request(A, 1, sender=address(1))}  # which could be lent now
    made = rebuild(View(), facts(entry, unpublished={(A, 1): entry}, batches=known), NEW_FENCE, "here", NOW_MS)
    assert made.assignments[A, 1].denied == "sender_disabled"


def test_a_hole_gets_the_sender_that_it_names() -> None:
    known = facts(row(A, 2, 1), holes=frozenset({(A, 1)}), batches={(A, 1): request(A, 1, sender=address(3))})
    assert rebuild(View(), known, NEW_FENCE, "here", NOW_MS).assignments[A, 1].address == address(3)
    unknown = replace(known, batches={(A, 1): request(A, 1, sender=address(9))})
    assert rebuild(View(), unknown, NEW_FENCE, "here", NOW_MS).assignments[A, 1].denied == "sender_unknown"
    waiting = lent(B, 1, 3)
    held = view_of(locked(3, waiting), stream(B, 1), waiting)
    problems = rebuild(held, known, NEW_FENCE, "here", NOW_MS).problems
    assert any(f"needs {address(3)}, which is not free" in problem for problem in problems)


def test_keys_set_apart_come_back_so() -> None:
    found = facts(apart=frozenset({(CHAIN, address(2))}))
    made = rebuild(view_of(key(1, set_apart=True)), found, NEW_FENCE, "here", NOW_MS)
    assert [number for number in (1, 2, 3) if made.keys[CHAIN, address(number)].set_apart] == [2]
    known = facts(holes=frozenset({(A, 1)}), batches={(A, 1): request(A, 1, blobs=True)}, apart=found.apart)
    assert rebuild(View(), known, NEW_FENCE, "here", NOW_MS).assignments[A, 1].address == address(2)


# ── through the stages ───────────────────────────────────────────────────────────────────────────────────────────────


def rows(*senders: bytes | None) -> list[Row]:
    return [row._replace(sender=sender) for row, sender in zip(Mix(1, CHAIN).rows(len(senders)), senders, strict=True)]


def named(number: int) -> bytes:
    return bytes.fromhex(SENDERS[number][2:])


async def test_each_row_is_signed_by_its_sender_or_rejected(flow: Flow) -> None:
    senders = [named(0)] * 8 + [None] * 6 + [named(1)] * 8 + [bytes(20)] * 4 + [named(0)] * 2
    ids = flow.source.insert(*rows(*senders))
    flow.read()
    flow.consume()
    await flow.until(lambda: len(flow.signed_ids()) == 24 and len(flow.seen(REJECTED)) == 4)
    pinned_to = dict(zip(ids, senders, strict=True))
    for record in flow.signed():
        for row_ in record.rows.to_pylist():
            assert pinned_to[row_["tx_id"]] in (None, bytes.fromhex(record.header.sender[2:]))
    rejected = [Rejection.from_json(message.value) for message in flow.seen(REJECTED)]
    assert {each.reason for each in rejected} == {"sender_unknown"}
    assert {pinned_to[each.tx_id] for each in rejected} == {bytes(20)}
    assert "0x" + "00" * 20 in rejected[0].detail
    await flow.check_once()
    assert {key.state for key in await flow.keys()} == {KeyState.FREE}


async def test_a_batch_has_one_sender_and_keeps_the_order_of_its_stream(flow: Flow) -> None:
    flow.source.insert(*rows(*[named(0), named(0), named(1), named(1)] * 9))
    flow.read(A)
    await flow.until(lambda: len(flow.batches(A)) == 18)
    batches = flow.batches(A)
    assert [batch.header.sender for batch in batches] == [SENDERS[0], SENDERS[1]] * 9
    assert [batch.header.seq for batch in batches] == list(range(1, 19))
    assert all(ahead.header.prev == behind.header.cursor for behind, ahead in pairwise(batches))
    assert [tx for batch in batches for tx in batch.columns.tx_id] == sorted(flow.source.rows)[1::2]


async def test_a_pinned_batch_is_built_again_from_postgres(flow: Flow) -> None:
    flow.ids = flow.source.insert(*rows(*[named(1), named(0)] * 10))
    flow.read()
    await flow.until(lambda: len(flow.seen(BATCHES)) == 2)
    await unpublished(flow)
    passed_over(flow)
    for shard in (0, 1):
        flow.broker.partition(BATCHES, shard).trim(10**6)
    assert (await flow.sweep()).count.signed_again == 2
    found = {record.header.stream: record.header.sender for record in flow.signed()}
    assert found == {A: SENDERS[0], B: SENDERS[1]}


async def test_a_signer_signs_for_no_other_sender(flow: Flow) -> None:
    flow.source.insert(*rows(*[named(0)] * 4))
    flow.read(A)
    await flow.until(lambda: flow.batches(A))
    [batch] = flow.batches(A)
    header = batch.header
    asked = replace(
        request(A, 1, count=2, rows=2, rules_version=rules_version(batch), digest=batch.digest),
        prev=header.prev,
        cursor=header.cursor,
    )
    held = view(replace(key(1), address=SENDERS[0]), replace(key(2), address=SENDERS[1], since_unix_ms=1))
    [right] = assign(held, replace(asked, sender=header.sender))
    assert isinstance(right, Assigned)
    check_job(batch, right.assignment, 2)
    [wrong] = assign(view(replace(key(2), address=SENDERS[1])), asked)
    assert isinstance(wrong, Assigned)
    with pytest.raises(SigningRefused, match="pinned sender"):
        check_job(batch, wrong.assignment, 2)
    for denied in ("fee_out_of_range", "sender_gone"):
        with pytest.raises(SigningRefused, match="cannot be denied"):
            check_job(batch, replace(right.assignment, denied=denied, count=0, address=""), 2)


# ── the verifier ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def found(sender: bytes | None, secret: bytes, reason: str = "") -> set[ViolationKind]:
    """What the verifier says of two rows with this sender that were signed with this secret, or rejected."""
    publisher = Publisher()
    publisher.source.insert(*rows(sender, None, None, None))
    batch = await publisher.batch(1, 1)
    record = publisher.sign(batch, secret)
    if reason:
        record = SignedRecord(replace(record.header, sender="", first_nonce=0, count=0), record.rows.slice(0, 0))
        made = Rejection(int(batch.columns.tx_id[0]), "payouts", 1, 1, CHAIN, reason, "", rules_version(batch), 1)
        publisher.broker.append(REJECTED, 0, b"", made.to_json())
    await publisher.swear(record)
    publisher.publish(record)
    publisher.next_nonce.clear()
    await publisher.honest(0, 2, OTHER)
    await publisher.honest(1, 1, OTHER)
    return kinds(await findings(publisher))


OTHER = bytes([0x48]) * 32


async def test_what_the_verifier_says_of_senders() -> None:
    mine = named(0)
    assert await found(mine, SECRETS[0]) == set()
    assert await found(mine, SECRETS[1]) == {ViolationKind.WRONG_SENDER}
    assert await found(mine, SECRETS[0], "sender_disabled") == set()
    assert await found(None, SECRETS[0], "sender_disabled") == {ViolationKind.WRONG_VERDICT}
    assert await found(mine, SECRETS[0], "fee_out_of_range") == {ViolationKind.WRONG_VERDICT}

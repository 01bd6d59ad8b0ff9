"""What etcd must hold, from what the ledger, Kafka and Postgres hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.assignment.archive import KeptKey
from pipeline.assignment.kept import kept_of
from pipeline.assignment.rebuilding import Facts, Rebuilt, rebuild
from pipeline.assignment.records import Assignment, Holder, KeyRecord, KeyState, StreamRecord
from pipeline.assignment.view import GENERATION_SHIFT, View
from pipeline.ports import LedgerEntry
from pipeline.stream import START, Stream
from tests.unit.assignment_records import CHAIN, FENCE, NOW_MS, SYSTEM, A, B, address, cursor, digest, key, request

NEW_FENCE = (1 << GENERATION_SHIFT) + 3
ONE, TWO, THREE = ((CHAIN, address(n)) for n in (1, 2, 3))


def row(stream: Stream, seq: int, number: int = 1, first: int = 0, count: int = 10) -> LedgerEntry:
    sender = address(number) if count else ""
    return LedgerEntry(stream, seq, digest(stream, seq), CHAIN, sender, first, count, FENCE, "signer-0")


def lent(stream: Stream, seq: int, number: int = 1, first: int = 0, count: int = 10) -> Assignment:
    r = request(stream, seq, count)
    return Assignment(
        stream, seq, r.prev, r.cursor, r.digest, CHAIN, address(number) if count else "", first, count, r.rows, 1,
        FENCE, "consumer-0.1", "here", NOW_MS - 5, seq, (0, 0),
    )  # fmt: skip


def facts(*rows: LedgerEntry, **fields: Any) -> Facts:
    """Of a ledger with these rows in order; nothing is unpublished unless it is named."""
    heads = {row.stream: row for row in sorted(rows, key=lambda row: row.seq)}
    marks = {(row.chain_id, row.sender): row.first_nonce + row.count for row in rows if row.count}
    made = Facts(
        watermarks=marks,
        kept={(CHAIN, address(n)): KeptKey(CHAIN, address(n), b"sealed %d" % n, 0) for n in (1, 2, 3)},
        heads=heads,
        unpublished={},
        sworn=frozenset(),
        holes=frozenset(),
        batches={(s, seq): request(s, seq) for s in (A, B) for seq in range(1, 9)},
        cursors={stream: cursor(head.seq) for stream, head in heads.items()},
        chains={A: (CHAIN, SYSTEM), B: (CHAIN, SYSTEM)},
    )
    return replace(made, **fields)


def view_of(*records: KeyRecord | StreamRecord | Assignment, sealed: tuple[int, ...] = (1, 2, 3)) -> View:
    made = View()
    for revision, record in enumerate(records, start=20):
        made.put(record, revision)
    made.sealed = {address(n): b"sealed %d" % n for n in sealed}
    return made


def stream(name: Stream, seq: int, **fields: Any) -> StreamRecord:
    made = StreamRecord(name, CHAIN, SYSTEM, seq, cursor(seq), digest(name, seq) if seq else "")
    return replace(made, **fields)


def locked(number: int, batch: Assignment) -> KeyRecord:
    holder = Holder(batch.stream, batch.seq, batch.worker, batch.node, FENCE)
    return key(number, state=KeyState.LOCKED, next_nonce=batch.first_nonce + batch.count, holder=holder)


def rebuilt(view: View, found: Facts) -> Rebuilt:
    return rebuild(view, found, NEW_FENCE, "here", NOW_MS)


def test_what_is_as_it_must_be_stays() -> None:
    under_way, waiting = lent(A, 3, 1, 10), lent(B, 1, 2)
    held = view_of(locked(1, under_way), locked(2, waiting), key(3), stream(A, 3), stream(B, 1), under_way, waiting)
    entry = row(A, 3, 1, 10)
    found = facts(row(A, 2), entry, unpublished={(A, 3): entry}, sworn=frozenset({(A, 3)}))
    made = rebuild(held, found, None, "here", NOW_MS)
    assert (made.differences, made.problems) == ([], [])
    assert made.assignments == {(A, 3): under_way, (B, 1): waiting}
    again = rebuilt(held, found)
    assert [d.name for d in again.differences] == [f"{B} batch 1"], "only what was never sworn gets the new fence"
    assert again.assignments[B, 1] == replace(waiting, fence=NEW_FENCE)


def test_a_lost_etcd_comes_back_from_the_ledger() -> None:
    entry = row(A, 4, 1, 10)
    made = rebuilt(View(), facts(row(A, 3, 1), row(B, 1, 2), entry, unpublished={(A, 4): entry}))
    assert made.problems == []
    assert made.streams == {A: stream(A, 4), B: stream(B, 1)}
    assert set(made.assignments) == {(A, 4)}
    back = made.assignments[A, 4]
    assert (back.address, back.first_nonce, back.count, back.fence) == (address(1), 10, 10, FENCE)
    assert (back.prev, back.cursor, back.digest) == (cursor(3), cursor(4), digest(A, 4))
    states = {k: (record.state, record.next_nonce) for k, record in made.keys.items()}
    assert states == {ONE: (KeyState.LOCKED, 20), TWO: (KeyState.FREE, 10), THREE: (KeyState.FREE, 0)}
    assert made.sealed == {address(n): b"sealed %d" % n for n in (1, 2, 3)}


def test_an_older_etcd_is_brought_up_to_the_ledger() -> None:
    """Batch 2 has been published since, and its key was lent again, to one that is not published."""
    old = lent(A, 2, 1, 0)
    entry = row(A, 5, 1, 10)
    held = view_of(locked(1, old), key(2), stream(A, 2), old)
    made = rebuilt(held, facts(row(A, 2), row(A, 4, 2), entry, unpublished={(A, 5): entry}, sworn=frozenset({(A, 2)})))
    assert made.problems == []
    assert set(made.assignments) == {(A, 5)}
    holder = made.keys[ONE].holder
    assert holder is not None
    assert (holder.seq, made.keys[ONE].next_nonce) == (5, 20)
    assert (made.keys[TWO].state, made.keys[TWO].next_nonce) == (KeyState.FREE, 10)
    assert made.streams[A] == stream(A, 5)


def test_a_hole_gets_the_key_whose_turn_it_is() -> None:
    entry = row(A, 3, 1, 10)
    found = facts(row(A, 1, 1), entry, unpublished={(A, 3): entry}, holes=frozenset({(A, 2)}))
    held = view_of(key(1), key(2, since=NOW_MS - 10), key(3, since=NOW_MS - 20), stream(A, 1))
    made = rebuilt(held, found)
    assert made.problems == []
    hole = made.assignments[A, 2]
    assert (hole.address, hole.first_nonce, hole.fence) == (address(3), 0, NEW_FENCE)
    assert (made.keys[THREE].state, made.keys[THREE].next_nonce) == (KeyState.LOCKED, 10)


def test_a_hole_keeps_the_assignment_that_a_restored_etcd_has_of_it() -> None:
    waiting, entry = lent(A, 2, 2), row(A, 3, 1, 10)
    found = facts(row(A, 1, 1), entry, unpublished={(A, 3): entry}, holes=frozenset({(A, 2)}))
    made = rebuilt(view_of(key(1, next_nonce=10), locked(2, waiting), stream(A, 2), waiting), found)
    assert made.assignments[A, 2] == replace(waiting, fence=NEW_FENCE)
    assert made.streams[A] == stream(A, 3)


def test_a_hole_without_a_free_key_is_a_problem() -> None:
    found = facts(row(A, 1, 1), row(A, 3, 1, 10), holes=frozenset({(A, 2)}), kept={})
    held = view_of(key(1, state=KeyState.DISABLED, next_nonce=20), stream(A, 1))
    assert any("needs a key, and none" in problem for problem in rebuilt(held, found).problems)


def test_what_was_never_sworn_and_does_not_fit_is_dropped_and_its_nonces_with_it() -> None:
    for change in ({"digest": "ff" * 32}, {"seq": 4, "digest": digest(A, 4)}):  # another batch; one after a gap
        waiting = replace(lent(A, 2, 2, 5), **change)
        held = view_of(key(1, next_nonce=10), locked(2, waiting), stream(A, waiting.seq), waiting)
        made = rebuilt(held, facts(row(A, 1, 1), row(B, 1, 2, 0, 5)))
        assert made.assignments == {}
        assert (made.keys[TWO].state, made.keys[TWO].next_nonce) == (KeyState.FREE, 5)
        assert made.streams[A] == stream(A, 1), "it goes back, to be assigned anew"


def test_a_lock_without_an_assignment_is_taken_off() -> None:
    orphan = replace(locked(1, lent(A, 7, 1, 10)), disable_on_release=True)
    made = rebuilt(view_of(orphan, stream(A, 1)), facts(row(A, 1, 1)))
    assert (made.keys[ONE].state, made.keys[ONE].next_nonce) == (KeyState.DISABLED, 10)
    assert (made.keys[ONE].holder, made.keys[ONE].disable_on_release) == (None, False)


def test_disabled_keys_and_halted_streams_stay_so() -> None:
    entry = row(A, 2, 1, 10)
    disabled = key(1, state=KeyState.DISABLED, next_nonce=10)
    held = view_of(disabled, key(2, state=KeyState.DISABLED), stream(A, 1, halted="why"))
    made = rebuilt(held, facts(row(A, 1), entry, unpublished={(A, 2): entry}))
    assert (made.keys[ONE].state, made.keys[ONE].disable_on_release) == (KeyState.LOCKED, True)
    assert made.keys[TWO].state is KeyState.DISABLED
    assert made.streams[A].halted == "why"


def test_a_ledger_that_has_lost_rows_is_not_believed() -> None:
    held = view_of(key(1, next_nonce=30), stream(A, 3))
    assert any("it has lost rows" in problem for problem in rebuilt(held, facts(row(A, 1))).problems)
    kept = view_of(key(2, next_nonce=5))  # lent before, as it started at 0
    assert any("it has lost rows" in problem for problem in rebuilt(kept, facts()).problems)


def test_a_key_without_its_private_key_comes_back_disabled() -> None:
    made = rebuilt(View(), facts(row(A, 1, 1), kept={}))
    assert made.problems == []
    assert (made.keys[ONE].state, made.keys[ONE].next_nonce) == (KeyState.DISABLED, 10)
    entry = row(A, 1, 1)
    needed = rebuilt(View(), facts(entry, kept={}, unpublished={(A, 1): entry}))
    assert any("neither in etcd nor in Postgres" in problem for problem in needed.problems)


def test_what_cannot_be_told_is_a_problem() -> None:
    entry = row(A, 2, 1)
    under_way = facts(entry, unpublished={(A, 2): entry})
    another = request(A, 2, digest="ff" * 32)
    cases = {
        "not on its topic any more": replace(under_way, batches={}),
        "with another digest": replace(under_way, batches={(A, 2): another}),
        "by this version's rules": replace(under_way, batches={(A, 2): request(A, 2, count=9)}),
        "nothing says where batch 2": facts(entry, cursors={}),
        "no source of the settings": facts(entry, chains={}),
        "the settings on 5": facts(entry, chains={A: (5, SYSTEM)}),
        "was never signed, and is not on": facts(entry, holes=frozenset({(A, 1)}), batches={}),
        "said by others": facts(entry, problems=("said by others",)),
    }
    for said, found in cases.items():
        assert any(said in problem for problem in rebuilt(View(), found).problems), said


def test_a_batch_without_a_key_goes_its_way_without_one() -> None:
    entry = row(A, 1, count=0)
    made = rebuilt(View(), facts(entry, unpublished={(A, 1): entry}, batches={(A, 1): request(A, 1, count=0)}))
    assert made.problems == []
    assert made.assignments[A, 1].address == ""
    assert {record.state for record in made.keys.values()} == {KeyState.FREE}


def test_what_was_assigned_before_a_recovery_that_did_not_end_is_told_by_a_look() -> None:
    waiting = lent(B, 1, 2)
    held = view_of(locked(2, waiting), key(1), key(3), stream(B, 1), waiting)
    assert rebuild(held, facts(), None, "here", NOW_MS).differences == []
    [told] = rebuild(held, facts(generation=2), None, "here", NOW_MS).differences
    assert (told.what, told.name) == ("assignment", f"{B} batch 1")


def test_the_copies_of_keys_start_where_nothing_is_signed_yet() -> None:
    waiting = lent(A, 1, 1, first=7)
    held = view_of(locked(1, waiting), key(2, next_nonce=4), key(3), waiting, sealed=(1, 2))
    assert kept_of(held) == [
        KeptKey(CHAIN, address(1), b"sealed 1", 7),
        KeptKey(CHAIN, address(2), b"sealed 2", 4),
    ]
    assert "sealed 1" not in repr(kept_of(held))


def test_a_stream_of_which_nothing_is_left_begins_anew() -> None:
    waiting = replace(lent(A, 2, 1), digest="ff" * 32)
    made = rebuilt(view_of(locked(1, waiting), stream(A, 2), waiting), facts())
    assert made.streams[A] == StreamRecord(A, CHAIN, SYSTEM, 0, START, "")

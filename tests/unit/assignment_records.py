"""A small deployment in memory, for the tests of the rules and of the key manager."""

from __future__ import annotations

from dataclasses import replace

from pipeline.assignment.paths import Paths
from pipeline.assignment.plan import Plan
from pipeline.assignment.records import Assignment, Genesis, KeyRecord, KeyState, Leader, StreamRecord
from pipeline.assignment.view import Guard, View
from pipeline.ports import AssignRequest
from pipeline.stream import START, Cursor, Stream

CHAIN = 1
SYSTEM = "7400000000000000001"
NOW_MS = 1_700_000_000_000
FENCE = 10
PATHS = Paths("local")
A, B = Stream("payouts", 0), Stream("payouts", 1)
GUARD = Guard(PATHS, FENCE, Leader("me", "here", 1, NOW_MS).to_json(), Genesis("this", NOW_MS).to_json())


def address(number: int) -> str:
    return f"0x{number:040x}"


def key(number: int, since: int = NOW_MS - 1000, **fields: object) -> KeyRecord:
    made = KeyRecord(CHAIN, address(number), KeyState.FREE, 0, since, 0)
    return replace(made, **fields)  # type: ignore[arg-type] # the fields of a KeyRecord


def cursor(seq: int) -> Cursor:
    return Cursor(100 + seq, seq) if seq else START


def digest(stream: Stream, seq: int) -> str:
    return f"{stream.shard:02x}{seq:062x}"


def request(stream: Stream, seq: int, count: int = 10, **fields: object) -> AssignRequest:
    made = AssignRequest(
        stream=stream,
        seq=seq,
        prev=cursor(seq - 1),
        cursor=cursor(seq),
        digest=digest(stream, seq),
        chain_id=CHAIN,
        system_id=SYSTEM,
        rows=max(count, 1),
        count=count,
        rules_version=1,
        worker="consumer-0.1",
        node="here",
        batch_offset=seq,
        signed_from=(0, 0),
    )
    return replace(made, **fields)  # type: ignore[arg-type] # the fields of an AssignRequest


def view(*keys: KeyRecord, streams: tuple[Stream, ...] = (A, B)) -> View:
    """Every record at a revision of its own."""
    made = View()
    for revision, record in enumerate([*keys, *(StreamRecord(s, CHAIN, SYSTEM) for s in streams)], start=FENCE + 1):
        made.put(record, revision)
    made.sealed = {k.address: b"sealed " + k.address.encode() for k in keys}
    return made


def written(plan: Plan) -> list[object]:
    """The records that a plan would put, by path."""
    return [plan.puts[path] for path in sorted(plan.puts)]


def assignments(plan: Plan) -> list[Assignment]:
    return [record for record in written(plan) if isinstance(record, Assignment)]

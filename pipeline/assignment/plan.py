"""A write that is thought out but not yet done: one etcd transaction and what it means if it succeeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.assignment.records import Assignment, KeyRecord, Record, StreamRecord
from pipeline.assignment.view import Guard, View
from pipeline.ports import Compare, KeyValue, Txn
from pipeline.stream import Stream


@dataclass(slots=True)
class Plan:
    """Records to write over the view, compared by revision; empty when nothing is written or relied on."""

    guard: Guard
    view: View
    puts: dict[str, Record] = field(default_factory=dict)
    raw_puts: dict[str, bytes] = field(default_factory=dict)
    deletes: dict[str, tuple[Stream, int]] = field(default_factory=dict)
    relied: dict[str, int] = field(default_factory=dict)  #: path → revision (0 = absent) that a reply rests on

    # ── reading through what was planned so far ──────────────────────────────────────────────────────────────────────

    def key(self, chain_id: int, address: str) -> KeyRecord | None:
        """As it will be."""
        planned = self.puts.get(self.guard.paths.key(chain_id, address))
        held = self.view.keys.get((chain_id, address))
        return planned if isinstance(planned, KeyRecord) else held.record if held else None

    def stream(self, stream: Stream) -> StreamRecord | None:
        """As it will be."""
        planned = self.puts.get(self.guard.paths.stream(stream))
        held = self.view.streams.get(stream)
        return planned if isinstance(planned, StreamRecord) else held.record if held else None

    def assignment(self, stream: Stream, seq: int) -> Assignment | None:
        """As it will be."""
        path = self.guard.paths.assignment(stream, seq)
        if path in self.deletes:
            return None
        planned = self.puts.get(path)
        held = self.view.assignments.get((stream, seq))
        return planned if isinstance(planned, Assignment) else held.record if held else None

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def put(self, record: Record) -> None:
        """Write a record."""
        self.puts[self._path(record)] = record

    def delete(self, assignment: Assignment) -> None:
        """Forget an assignment."""
        path = self.guard.paths.assignment(assignment.stream, assignment.seq)
        self.puts.pop(path, None)
        self.deletes[path] = (assignment.stream, assignment.seq)

    def rely_on_stream(self, stream: Stream) -> None:
        """A reply that writes nothing holds only while this record is as the view has it, and we lead."""
        held = self.view.streams.get(stream)
        self.relied[self.guard.paths.stream(stream)] = held.mod_revision if held else 0

    def rely_on_assignment(self, stream: Stream, seq: int) -> None:
        """The same of an assignment."""
        held = self.view.assignments.get((stream, seq))
        self.relied[self.guard.paths.assignment(stream, seq)] = held.mod_revision if held else 0

    def size(self) -> int:
        """How many records it writes or relies on."""
        return len(self.puts) + len(self.raw_puts) + len(self.deletes) + len(self.relied)

    def writes_nothing(self) -> bool:
        """Whether it only asks etcd whether what it relies on still holds."""
        return not (self.puts or self.raw_puts or self.deletes)

    def __bool__(self) -> bool:
        return self.size() > 0

    def txn(self) -> Txn:
        """`IF` we lead and nothing that we write or rely on has changed `THEN` write `ELSE` read all of it."""
        touched = [*self.puts, *self.raw_puts, *self.deletes]
        revisions = self.relied | {path: self._revision(path) for path in touched}
        return Txn(
            compares=(*self.guard.compares(), *(Compare(path, mod_revision=at) for path, at in revisions.items())),
            puts=tuple(self._values().items()),
            deletes=tuple(self.deletes),
            gets=(self.guard.paths.leader, self.guard.paths.genesis, *revisions),
        )

    def is_applied(self, reads: Mapping[str, KeyValue | None]) -> bool:
        """Whether an ELSE branch shows that this very plan was written before (its answer was lost)."""
        if self.writes_nothing():
            return False
        written = all(
            (kv := reads.get(path)) is not None and kv.value == value for path, value in self._values().items()
        )
        return written and all(reads.get(path) is None for path in self.deletes)

    def apply(self, revision: int, reads: Mapping[str, KeyValue | None] | None = None) -> None:
        """Bring the view up to date with what was written at a revision."""
        for path, record in self.puts.items():
            kv = reads.get(path) if reads else None
            self.view.put(record, kv.mod_revision if kv else revision)
        for path, value in self.raw_puts.items():
            self.view.sealed[path.removeprefix(self.guard.paths.sealed_keys)] = value
        for stream, seq in self.deletes.values():
            self.view.forget(stream, seq)

    def _values(self) -> dict[str, bytes]:
        return {path: record.to_json() for path, record in self.puts.items()} | self.raw_puts

    def _revision(self, path: str) -> int:
        """The revision that the view knows; 0 = the path must be absent."""
        record = self.puts.get(path)
        match record:
            case KeyRecord():
                held = self.view.keys.get((record.chain_id, record.address))
                return held.mod_revision if held else 0
            case StreamRecord():
                known = self.view.streams.get(record.stream)
                return known.mod_revision if known else 0
            case Assignment():
                known_assignment = self.view.assignments.get((record.stream, record.seq))
                return known_assignment.mod_revision if known_assignment else 0
        if path in self.deletes:
            return self.view.assignments[self.deletes[path]].mod_revision
        return 0  # a sealed key is written once

    def _path(self, record: Record) -> str:
        match record:
            case KeyRecord():
                return self.guard.paths.key(record.chain_id, record.address)
            case StreamRecord():
                return self.guard.paths.stream(record.stream)
            case Assignment():
                return self.guard.paths.assignment(record.stream, record.seq)
        raise TypeError(f"a plan does not write a {type(record).__name__}")

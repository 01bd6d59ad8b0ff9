"""A write that is thought out but not yet done: one etcd transaction and what it means if it succeeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.assignment.records import Assignment, KeyRecord, Owner, Record, StreamRecord
from pipeline.assignment.view import Guard, Held, View
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
    disowned: dict[str, str] = field(default_factory=dict)  #: paths of owners to delete, with their addresses
    destroyed: dict[str, str] = field(default_factory=dict)  #: the same of sealed keys
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

    def disown(self, address: str) -> None:
        """Forget whose key it is."""
        self.disowned[self.guard.paths.owner(address)] = address

    def destroy(self, address: str) -> None:
        """Forget a sealed private key."""
        self.destroyed[self.guard.paths.sealed(address)] = address

    def rely_on_stream(self, stream: Stream) -> None:
        """A reply that writes nothing holds only while this record is as the view has it, and we lead."""
        held = self.view.streams.get(stream)
        self.relied[self.guard.paths.stream(stream)] = held.mod_revision if held else 0

    def rely_on_assignment(self, stream: Stream, seq: int) -> None:
        """The same of an assignment."""
        held = self.view.assignments.get((stream, seq))
        self.relied[self.guard.paths.assignment(stream, seq)] = held.mod_revision if held else 0

    def rely_on_key(self, chain_id: int, address: str) -> None:
        """The same of a key."""
        held = self.view.keys.get((chain_id, address))
        self.relied[self.guard.paths.key(chain_id, address)] = held.mod_revision if held else 0

    def size(self) -> int:
        """How many records it writes or relies on."""
        return len(self.puts) + len(self.raw_puts) + len(self._deleted()) + len(self.relied)

    def writes_nothing(self) -> bool:
        """Whether it only asks etcd whether what it relies on still holds."""
        return not (self.puts or self.raw_puts or self._deleted())

    def __bool__(self) -> bool:
        return self.size() > 0

    def txn(self) -> Txn:
        """`IF` we lead and nothing that we write or rely on has changed `THEN` write `ELSE` read all of it."""
        touched = [*self.puts, *self.raw_puts, *self._deleted()]
        revisions = self.relied | {path: self._revision(path) for path in touched}
        return Txn(
            compares=(*self.guard.compares(), *(Compare(path, mod_revision=at) for path, at in revisions.items())),
            puts=tuple(self._values().items()),
            deletes=self._deleted(),
            gets=(self.guard.paths.leader, self.guard.paths.genesis, *revisions),
        )

    def is_applied(self, reads: Mapping[str, KeyValue | None]) -> bool:
        """Whether an ELSE branch shows that this very plan was written before (its answer was lost)."""
        if self.writes_nothing():
            return False
        written = all(
            (kv := reads.get(path)) is not None and kv.value == value for path, value in self._values().items()
        )
        return written and all(reads.get(path) is None for path in self._deleted())

    def apply(self, revision: int, reads: Mapping[str, KeyValue | None] | None = None) -> None:
        """Bring the view up to date with what was written at a revision."""
        for path, record in self.puts.items():
            kv = reads.get(path) if reads else None
            self.view.put(record, kv.mod_revision if kv else revision)
        for path, value in self.raw_puts.items():
            kv = reads.get(path) if reads else None
            self.view.put_sealed(self._address(path), value, kv.mod_revision if kv else revision)
        for stream, seq in self.deletes.values():
            self.view.forget(stream, seq)
        for address in self.disowned.values():
            self.view.disown(address)
        for address in self.destroyed.values():
            self.view.destroy(address)

    def _deleted(self) -> tuple[str, ...]:
        return (*self.deletes, *self.disowned, *self.destroyed)

    def _values(self) -> dict[str, bytes]:
        return {path: record.to_json() for path, record in self.puts.items()} | self.raw_puts

    def _revision(self, path: str) -> int:
        """The revision that the view knows; 0 = the path must be absent."""
        if path in self.puts:
            held = self._held(self.puts[path])
            return held.mod_revision if held else 0
        if path in self.deletes:
            return self.view.assignments[self.deletes[path]].mod_revision
        if path in self.disowned:
            return self.view.owners[self.disowned[path]].mod_revision
        return self.view.sealed_at.get(self._address(path), 0)

    def _held(self, record: Record) -> Held[Any] | None:
        match record:
            case KeyRecord():
                return self.view.keys.get((record.chain_id, record.address))
            case StreamRecord():
                return self.view.streams.get(record.stream)
            case Assignment():
                return self.view.assignments.get((record.stream, record.seq))
            case Owner():
                return self.view.owners.get(record.address)
        return None

    def _address(self, path: str) -> str:
        """Of the sealed key at a path."""
        return path.removeprefix(self.guard.paths.sealed_keys)

    def _path(self, record: Record) -> str:
        match record:
            case KeyRecord():
                return self.guard.paths.key(record.chain_id, record.address)
            case StreamRecord():
                return self.guard.paths.stream(record.stream)
            case Assignment():
                return self.guard.paths.assignment(record.stream, record.seq)
            case Owner():
                return self.guard.paths.owner(record.address)
        raise TypeError(f"a plan does not write a {type(record).__name__}")

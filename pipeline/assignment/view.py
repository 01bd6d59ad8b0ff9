"""What the key manager believes etcd holds. Never the ground of a decision alone: every write compares revisions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from pipeline.assignment.paths import Paths
from pipeline.assignment.records import Assignment, KeyRecord, KeyState, Owner, Record, StreamRecord
from pipeline.errors import DeploymentHalted, NotLeader
from pipeline.ports import Compare, KeyValue
from pipeline.stream import Stream

R = TypeVar("R", bound=Record)

GENERATION_SHIFT: Final = 40
"""Bits of a fence that are etcd's revision; as in the ledger's own check."""


@dataclass(frozen=True, slots=True)
class Held(Generic[R]):
    """A record as etcd held it at a revision."""

    record: R
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Guard:
    """What every write of a key manager compares: it leads, under this fence, the deployment that it knows."""

    paths: Paths
    fence: int
    leader_value: bytes
    genesis_value: bytes
    generation: int = 0  #: of the ledger; it grows with each recovery of etcd

    @property
    def lasting_fence(self) -> int:
        """What assignments and the ledger have of the fence: it grows even when etcd's revisions begin anew."""
        return (self.generation << GENERATION_SHIFT) + self.fence

    def compares(self) -> tuple[Compare, ...]:
        """Design rule 4."""
        return (
            Compare(self.paths.leader, create_revision=self.fence),
            Compare(self.paths.leader, value=self.leader_value),
            Compare(self.paths.genesis, value=self.genesis_value),
        )

    def check(self, reads: Mapping[str, KeyValue | None]) -> None:
        """Of a transaction that failed: raises NotLeader or DeploymentHalted when no other one can succeed either."""
        leader, genesis = reads[self.paths.leader], reads[self.paths.genesis]
        if leader is None or leader.create_revision != self.fence or leader.value != self.leader_value:
            raise NotLeader("another key manager leads now.")
        if genesis is None or genesis.value != self.genesis_value:
            raise DeploymentHalted("etcd's genesis record is not the one that this key manager started with.")


@dataclass(slots=True)
class View:
    """Keys, streams and assignments with their revisions, and the sealed keys."""

    keys: dict[tuple[int, str], Held[KeyRecord]] = field(default_factory=dict)
    streams: dict[Stream, Held[StreamRecord]] = field(default_factory=dict)
    assignments: dict[tuple[Stream, int], Held[Assignment]] = field(default_factory=dict)
    sealed: dict[str, bytes] = field(default_factory=dict)
    sealed_at: dict[str, int] = field(default_factory=dict)  #: the revision of each sealed key
    owners: dict[str, Held[Owner]] = field(default_factory=dict)  #: of every deployment's keys
    latest_ms: int = 0  #: the latest `since_unix_ms` ever seen, so that it never goes back

    def load(self, paths: Paths, found: Iterable[KeyValue]) -> None:
        """Take over what was read of any of the prefixes. Raises MalformedBatch."""
        for kv in found:
            if kv.key.startswith(paths.sealed_keys):
                self.put_sealed(kv.key.removeprefix(paths.sealed_keys), kv.value, kv.mod_revision)
            elif kv.key.startswith(paths.keys):
                self.put(KeyRecord.from_json(kv.value), kv.mod_revision)
            elif kv.key.startswith(paths.owners):
                self.put(Owner.from_json(kv.value), kv.mod_revision)
            elif kv.key.startswith(paths.streams):
                self.put(StreamRecord.from_json(kv.value), kv.mod_revision)
            elif kv.key.startswith(paths.assignments):
                self.put(Assignment.from_json(kv.value), kv.mod_revision)

    def put(self, record: Record, mod_revision: int) -> None:
        """Remember a record that etcd holds at a revision."""
        match record:
            case KeyRecord():
                self.keys[record.chain_id, record.address] = Held(record, mod_revision)
                self.latest_ms = max(self.latest_ms, record.since_unix_ms)
            case StreamRecord():
                self.streams[record.stream] = Held(record, mod_revision)
            case Assignment():
                self.assignments[record.stream, record.seq] = Held(record, mod_revision)
            case Owner():
                self.owners[record.address] = Held(record, mod_revision)
            case _:
                raise TypeError(f"the view does not hold a {type(record).__name__}")

    def put_sealed(self, address: str, sealed: bytes, mod_revision: int) -> None:
        """Remember a sealed key that etcd holds at a revision."""
        self.sealed[address], self.sealed_at[address] = sealed, mod_revision

    def forget(self, stream: Stream, seq: int) -> None:
        """An assignment was deleted."""
        self.assignments.pop((stream, seq), None)

    def disown(self, address: str) -> None:
        """Its owner was deleted."""
        self.owners.pop(address, None)

    def destroy(self, address: str) -> None:
        """Its sealed private key was deleted."""
        self.sealed.pop(address, None)
        self.sealed_at.pop(address, None)

    def keys_in(self, state: KeyState) -> int:
        """How many keys are in a state."""
        return sum(held.record.state is state for held in self.keys.values())

    def locked_since_ms(self) -> int | None:
        """When the oldest lock was taken."""
        locks = (held.record.since_unix_ms for held in self.keys.values() if held.record.state is KeyState.LOCKED)
        return min(locks, default=None)

    def oldest_first(self) -> list[KeyRecord]:
        """All keys, in the order in which free ones are lent."""
        return sorted((held.record for held in self.keys.values()), key=turn)


def turn(key: KeyRecord) -> tuple[int, int, str]:
    """Whose turn it is: the oldest `since`, then the fewest uses, then the address."""
    return key.since_unix_ms, key.uses, key.address

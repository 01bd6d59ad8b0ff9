"""What the transaction coordinator knows of one transactional.id (KIP-98)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.testing.group import Committed, Group, TopicPartition
from pipeline.testing.partition import PartitionLog


@dataclass(slots=True)
class Coordinated:
    """A producer, its epoch, and its transaction: none, open, or decided and not yet marked everywhere."""

    id: int
    epoch: int = 0
    timeout_s: float = 0.0
    begun_s: float | None = None  #: when the open transaction began; None = none is open
    decided: bool | None = None  #: how the last one of this epoch ended
    partitions: set[TopicPartition] = field(default_factory=set)
    offsets: dict[str, dict[TopicPartition, Committed]] = field(default_factory=dict)  #: by group

    @property
    def pending(self) -> bool:
        """Decided, and some markers are missing."""
        return self.begun_s is None and bool(self.partitions or self.offsets)

    def begin(self, now_s: float) -> Coordinated:
        """Open a transaction, unless one is open."""
        if self.begun_s is None:
            self.begun_s, self.decided = now_s, None
        return self

    def overdue(self, now_s: float) -> bool:
        """Whether it is open for longer than its time-out."""
        return self.begun_s is not None and now_s - self.begun_s > self.timeout_s

    def decide(self, *, commit: bool) -> None:
        """The open transaction, if there is one, ends so; from here on it cannot end otherwise."""
        if self.begun_s is not None:
            self.begun_s, self.decided = None, commit

    def write(
        self,
        partition_of: Callable[[str, int], PartitionLog],
        group_of: Callable[[str], Group],
        most: int | None = None,
    ) -> int:
        """Write the markers of a decided transaction, `most` of them or all. How many it wrote."""
        waiting: list[TopicPartition | str] = [*sorted(self.partitions), *sorted(self.offsets)] if self.pending else []
        commit = self.decided is True
        for where in waiting[:most]:
            if isinstance(where, str):
                group_of(where).settle(self.id, self.offsets.pop(where), commit=commit)
            else:
                self.partitions.discard(where)
                partition_of(*where).mark(self.id, commit=commit)
        return len(waiting[:most])

    def forget(self, topic: str) -> None:
        """The topic was deleted."""
        self.partitions = {p for p in self.partitions if p[0] != topic}
        for name, offsets in self.offsets.items():
            self.offsets[name] = {p: at for p, at in offsets.items() if p[0] != topic}

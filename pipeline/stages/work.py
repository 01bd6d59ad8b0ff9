"""One batch on its way through a consumer, and the queues that keep the order of each partition."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, TypeAlias

from pipeline.assignment.records import Assignment
from pipeline.ports import AssignRequest, Message, Progress, SignedBatch

Partition: TypeAlias = tuple[str, int]


class State(Enum):
    """How far a batch has come."""

    NEW = auto()
    ASKED = auto()
    SIGNING = auto()
    DONE = auto()


@dataclass(slots=True, eq=False)
class Work:
    """A batch between poll and commit."""

    message: Message
    request: AssignRequest
    state: State = State.NEW
    assignment: Assignment | None = None  #: None when DONE means "was published before"
    signed: SignedBatch | None = None
    traceparent: str = ""  #: of its publication

    @property
    def partition(self) -> Partition:
        """Where it came from."""
        return self.message.place.topic, self.message.place.partition

    @property
    def size(self) -> int:
        """Bytes that it adds to a Kafka transaction."""
        if self.signed is None:
            return 0
        return len(self.signed.record) + sum(len(row) for row in self.signed.rejections)


@dataclass(slots=True)
class Round:
    """What one Kafka transaction commits."""

    works: list[Work]
    generation: Any

    def progress(self) -> dict[Partition, Progress]:
        """Per partition the offset after its last batch of this round."""
        return {w.partition: Progress(w.message.place.offset + 1, w.request.seq) for w in self.works}


@dataclass(slots=True)
class Queues:
    """Batches per partition, in order; bounded by who fills them."""

    by_partition: dict[Partition, deque[Work]] = field(default_factory=dict)

    def add(self, work: Work) -> None:
        """At the end of its partition."""
        self.by_partition.setdefault(work.partition, deque()).append(work)

    def clear(self) -> None:
        """Forget everything; Kafka delivers it again."""
        self.by_partition.clear()

    def drop(self, partitions: set[Partition]) -> None:
        """Forget these partitions."""
        for partition in partitions:
            self.by_partition.pop(partition, None)

    def full(self, bound: int) -> frozenset[Partition]:
        """Partitions with at least `bound` batches."""
        return frozenset(p for p, queue in self.by_partition.items() if len(queue) >= bound)

    def all(self) -> Iterator[Work]:
        """Every batch, in order within each partition."""
        for queue in self.by_partition.values():
            yield from queue

    def in_state(self, *states: State) -> int:
        """How many are in one of these states."""
        return sum(work.state in states for work in self.all())

    def to_assign(self, most: int) -> list[Work]:
        """NEW batches that nothing of their own partition is asked ahead of, the partitions in turn.

        A stream's requests must reach the key manager in the order of its chain, so a partition with an unanswered
        request gives nothing. One that gives goes behind the others: `most` may be smaller than their number each time.
        """
        fresh = [
            [work for work in queue if work.state is State.NEW]
            for queue in self.by_partition.values()
            if not any(work.state is State.ASKED for work in queue)
        ]
        chosen: list[Work] = []
        depth = 0
        while len(chosen) < most and any(depth < len(queue) for queue in fresh):
            chosen += [queue[depth] for queue in fresh if depth < len(queue)]
            depth += 1
        for work in chosen[:most]:
            self.by_partition[work.partition] = self.by_partition.pop(work.partition)
        return chosen[:most]

    def next_round(self, bytes_max: int) -> Round | None:
        """The DONE batches at the heads of their partitions, of one generation, within a bound of bytes.

        Always at least one batch when a head is DONE, whatever its size.
        """
        works: list[Work] = []
        size = 0
        for queue in self.by_partition.values():
            for work in queue:
                same = not works or work.message.generation == works[0].message.generation
                if work.state is not State.DONE or not same or (works and size + work.size > bytes_max):
                    break
                works.append(work)
                size += work.size
        return Round(works, works[0].message.generation) if works else None

    def remove(self, done: Round) -> None:
        """Take a committed round out of the heads."""
        for work in done.works:
            queue = self.by_partition.get(work.partition)
            if queue and queue[0] is work:
                queue.popleft()

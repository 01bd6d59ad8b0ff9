"""From rows to batches: rows commit in any order, readers die, are replaced while they still live, and forget.

Rows carry the number of their transaction (xid8), which they get when it begins; they become visible when it commits,
perhaps after rows of later transactions. A batch is a stretch of rows; the topic is a list of batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from pipeline.testing.model.search import Step

ROWS = 3
ROWS_PER_BATCH = 2
READERS = 2
NOTHING = -1


class Position(NamedTuple):
    """Where a reader goes on: the number of the last batch, and the last row in it."""

    seq: int
    cursor: int


START = Position(0, NOTHING)


class Reader(NamedTuple):
    """A process: its producer epoch, and where it believes to be; None before it has looked."""

    epoch: int
    position: Position | None


class State(NamedTuple):
    """Everything there is. `topic` holds (seq, rows) in order."""

    committed: frozenset[int] = frozenset()
    topic: tuple[tuple[int, tuple[int, ...]], ...] = ()
    position: Position | None = None  # as Kafka holds it
    assigned: int = 0  # how many batches the stream record in etcd has come to
    epoch: int = 0
    readers: tuple[Reader | None, ...] = (None,) * READERS
    torn: bool = False  # a batch is on the topic whose position is not committed yet
    faults: int = 0


@dataclass(frozen=True)
class Reading:
    """The model; `without` names guards that are left out."""

    faults: int = 2
    without: frozenset[str] = frozenset()

    GUARDS: ClassVar[tuple[str, ...]] = ("horizon", "atomic position", "writer fence", "last batch")

    def has(self, guard: str) -> bool:
        """Whether a guard is in force."""
        return guard not in self.without

    def start(self) -> State:
        """No row has committed."""
        return State(faults=self.faults)

    def settled(self, state: State) -> bool:
        """Every row is in a batch."""
        return len(state.committed) == ROWS and {row for _, rows in state.topic for row in rows} == state.committed

    def wrong(self, state: State) -> str:
        """Each row in one batch, batches numbered without a gap."""
        rows = [row for _, batch in state.topic for row in batch]
        if len(rows) != len(set(rows)):
            return "I2: a row is in two batches"
        if [seq for seq, _ in state.topic] != list(range(1, len(state.topic) + 1)):
            return "I8: the batches of the stream are not a chain"
        return ""

    def steps(self, state: State) -> Iterator[Step[State]]:
        """Commits, readers that start, look, publish; the key manager that assigns; deaths and losses."""
        for row in set(range(ROWS)) - state.committed:
            yield Step(f"row {row} commits", state._replace(committed=state.committed | {row}))
        if state.assigned < len(state.topic):
            yield Step("the next batch is assigned", state._replace(assigned=state.assigned + 1))
        for number, reader in enumerate(state.readers):
            yield from self._reader(state, number, reader)
        if state.faults:
            yield from self._lost(state._replace(faults=state.faults - 1))

    def _reader(self, state: State, number: int, reader: Reader | None) -> Iterator[Step[State]]:
        name = f"reader {number}"
        others = [other for index, other in enumerate(state.readers) if index != number and other is not None]
        if reader is None:
            if not others or state.faults:  # a second one beside a living one is a fault
                spent = state._replace(faults=state.faults - bool(others))
                yield Step(f"{name} starts", self._opened(spent, number), fault=bool(others))
            return
        rows = self._visible(state, reader.position or START)
        if rows:
            yield Step(f"{name} publishes {rows}", self._published(state, number, reader, rows))
        if state.torn and reader.epoch == state.epoch:
            yield Step(f"{name} commits its position", state._replace(torn=False, position=reader.position))
        if state.faults:
            died = state._replace(readers=_with(state.readers, number, None), faults=state.faults - 1, torn=False)
            yield Step(f"{name} dies", died, fault=True)

    def _opened(self, state: State, number: int) -> State:
        epoch = state.epoch + 1
        position = state.position
        if position is None:
            kept = state.topic if self.has("last batch") else state.topic[: state.assigned]
            last = kept[-1] if kept else None
            position = Position(last[0], last[1][-1]) if last else START
        return state._replace(epoch=epoch, readers=_with(state.readers, number, Reader(epoch, position)))

    def _visible(self, state: State, position: Position) -> tuple[int, ...]:
        running = set(range(ROWS)) - state.committed
        horizon = min(running, default=ROWS) if self.has("horizon") else ROWS
        rows = [row for row in sorted(state.committed) if position.cursor < row < horizon]
        return tuple(rows[:ROWS_PER_BATCH])

    def _published(self, state: State, number: int, reader: Reader, rows: tuple[int, ...]) -> State:
        if self.has("writer fence") and reader.epoch != state.epoch:
            return state._replace(readers=_with(state.readers, number, None))  # fenced: it ends
        base = reader.position or START
        position = Position(base.seq + 1, rows[-1])
        after = state._replace(
            topic=(*state.topic, (position.seq, rows)),
            readers=_with(state.readers, number, reader._replace(position=position)),
        )
        if self.has("atomic position"):
            return after._replace(position=position)
        return after._replace(torn=True)

    def _lost(self, state: State) -> Iterator[Step[State]]:
        if state.position is not None:
            yield Step("Kafka forgets the position", state._replace(position=None), fault=True)


def _with(readers: tuple[Reader | None, ...], number: int, reader: Reader | None) -> tuple[Reader | None, ...]:
    return (*readers[:number], reader, *readers[number + 1 :])

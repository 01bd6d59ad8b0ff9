"""What can go wrong in the model of signing besides a single lost answer: deaths, pauses, and what operators do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from pipeline.testing.model.world import Batch, Consumer, State, put, released, with_consumer


def consumer_deaths(state: State) -> Iterator[tuple[str, State]]:
    """A consumer process ends; its streams go to the other one, its open transaction is aborted."""
    for number, consumer in enumerate(state.consumers):
        owner = tuple(1 - number if who == number else who for who in state.owner)
        fresh = Consumer(-1, (None,) * len(consumer.places))
        late = None if state.late is not None and state.late[0] == number else state.late
        moved = state._replace(owner=owner, generation=state.generation + 1, late=late)
        yield f"consumer {number} dies", with_consumer(moved, number, fresh)


def manager_deaths(state: State) -> Iterator[tuple[str, State]]:
    """A key manager process ends; its lease runs out."""
    for at, manager in enumerate(state.managers):
        if manager is not None:
            leader = None if state.etcd.leader == manager.identity else state.etcd.leader
            etcd = state.etcd._replace(leader=leader)
            yield f"manager {at} dies", state._replace(etcd=etcd, managers=put(state.managers, at, None))


def lost_leases(state: State) -> Iterator[tuple[str, State]]:
    """The leader lives, and does not know that it leads no more."""
    if state.etcd.leader is not None:
        etcd = state.etcd._replace(leader=None)
        yield "the leader stands still until its lease is over", state._replace(etcd=etcd)


def rebalances(state: State) -> Iterator[tuple[str, State]]:
    """Both consumers live, and the first does not know yet that its streams are another's."""
    owner = tuple(1 - who for who in state.owner)
    yield "the streams change hands", state._replace(owner=owner, generation=state.generation + 1)


def recreated_topics(state: State) -> Iterator[tuple[str, State]]:
    """A topic of batches is deleted; its rows are cut anew, from the start or from the last assigned batch on."""
    for stream, log in enumerate(state.log):
        last = max((batch.seq for batch in log), default=0)
        for first in {1, state.etcd.streams[stream].seq + 1}:
            label = f"the topic of stream {stream} is made anew and filled from batch {first} on; `recover`"
            recovered = state._replace(
                etcd=released(state)._replace(leader=None),
                managers=(None,) * len(state.managers),
                log=put(state.log, stream, tuple(Batch(stream, seq, "b") for seq in range(first, last + 1))),
                committed=put(state.committed, stream, 0),
                generation=state.generation + 1,
            )
            yield label, _disaster(recovered)


def skipped_batches(state: State) -> Iterator[tuple[str, State]]:
    """A committed offset is set forward. Only where another batch follows: the loss of the last is the verifier's."""
    for stream, offset in enumerate(state.committed):
        if offset + 1 < len(state.log[stream]):
            committed = put(state.committed, stream, offset + 1)
            forward = state._replace(committed=committed, generation=state.generation + 1)
            yield f"the offset of stream {stream} is set forward by hand", _disaster(forward)


def restored_etcd(state: State) -> Iterator[tuple[str, State]]:
    """All of etcd is what it was before the first batch, revisions and fences included."""
    yield "etcd is restored from an old backup", _disaster(state._replace(etcd=state.backup))


FAULTS: Final[dict[str, Callable[[State], Iterator[tuple[str, State]]]]] = {
    "death of a consumer": consumer_deaths,
    "death of a manager": manager_deaths,
    "lost lease": lost_leases,
    "rebalance": rebalances,
    "recreated topic": recreated_topics,
    "skipped batch": skipped_batches,
    "restored etcd": restored_etcd,
}


def _disaster(state: State) -> State:
    return state._replace(disasters=state.disasters + 1)

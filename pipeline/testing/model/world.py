"""What there is in the model of signing, and small changes of it."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Batch(NamedTuple):
    """A batch as it comes out of Kafka: which, and with which content."""

    stream: int
    seq: int
    digest: str


class Lent(NamedTuple):
    """A batch with its key and nonce: an assignment, a ledger row, a signature, a signed record."""

    batch: Batch
    key: int
    nonce: int


class StreamRecord(NamedTuple):
    """In etcd: how far a stream has been assigned."""

    seq: int = 0
    halted: bool = False


class KeyRecord(NamedTuple):
    """In etcd: a key's next nonce and the batch that holds it."""

    next_nonce: int = 0
    holder: tuple[int, int] | None = None


class Etcd(NamedTuple):
    """Everything in etcd. A record's own value stands for its mod_revision: no record ever has one value twice."""

    leader: int | None
    fence: int
    streams: tuple[StreamRecord, ...]
    keys: tuple[KeyRecord, ...]
    assigned: frozenset[Lent] = frozenset()


class Manager(NamedTuple):
    """A key manager that believes to lead: its fence, the identity it wrote, and its view of etcd."""

    fence: int
    identity: int
    view: Etcd


class Work(NamedTuple):
    """The one batch that a consumer works on. `phase`: fetched, assigned, signed, published, committed."""

    batch: Batch
    offset: int
    phase: str
    lent: Lent | None = None


class Consumer(NamedTuple):
    """A group member: the generation it knows, where it reads each stream that is its own, and its work."""

    generation: int
    places: tuple[int | None, ...]
    work: Work | None = None


class State(NamedTuple):
    """Everything there is. `signatures` is history: every signature that ever left a signer."""

    etcd: Etcd
    managers: tuple[Manager | None, ...]
    consumers: tuple[Consumer, ...]
    log: tuple[tuple[Batch, ...], ...]
    committed: tuple[int, ...]
    generation: int
    owner: tuple[int, ...]
    backup: Etcd
    ledger: frozenset[Lent] = frozenset()
    signatures: frozenset[Lent] = frozenset()
    output: tuple[Lent, ...] = ()
    late: tuple[int, Lent, int] | None = None  # a commit that may still land: consumer, record, offset after it
    sweeping: Lent | None = None
    leads: int = 0
    stopped: bool = False  # a key manager found etcd behind the ledger
    usurped: bool = False  # a manager that did not lead any more wrote to etcd
    disasters: int = 0  # things lost that only an operator can bring back: halting is right
    faults: int = 0


def said(batch: Batch) -> str:
    """A batch in a trace."""
    return f"batch {batch.stream}/{batch.seq}{batch.digest}"


def put(items: tuple[T, ...], index: int, item: T) -> tuple[T, ...]:
    """The tuple with one item replaced."""
    return (*items[:index], item, *items[index + 1 :])


def released(state: State) -> Etcd:
    """As `oncesign recover` leaves etcd before it sets offsets back: what is published has no assignment any more."""
    etcd = state.etcd
    for lent in etcd.assigned & set(state.output):
        freed = etcd.keys[lent.key]._replace(holder=None)
        etcd = etcd._replace(keys=put(etcd.keys, lent.key, freed), assigned=etcd.assigned - {lent})
    return etcd


def behind(state: State) -> bool:
    """Whether the ledger knows of more than etcd."""
    for lent in state.ledger:
        if state.etcd.streams[lent.batch.stream].seq < lent.batch.seq:
            return True
        if state.etcd.keys[lent.key].next_nonce <= lent.nonce:
            return True
    return False


def refused(state: State, at: int, manager: Manager) -> State:
    """A manager that no longer leads ends; one that only had an old view reads etcd again."""
    if state.etcd.leader != manager.identity:
        return state._replace(managers=put(state.managers, at, None))
    return state._replace(managers=put(state.managers, at, manager._replace(view=state.etcd)))


def with_consumer(state: State, number: int, consumer: Consumer) -> State:
    """One consumer replaced."""
    return state._replace(consumers=put(state.consumers, number, consumer))


def worked(state: State, number: int, work: Work | None) -> State:
    """One consumer's work replaced."""
    return with_consumer(state, number, state.consumers[number]._replace(work=work))


def added(output: tuple[Lent, ...], lent: Lent) -> tuple[Lent, ...]:
    """A signed record more; their order does not matter."""
    return tuple(sorted((*output, lent)))


def landed(state: State, records: tuple[Lent, ...], stream: int, offset: int) -> State:
    """After a Kafka transaction: its records, and the offset of a stream."""
    output = state.output
    for lent in records:
        output = added(output, lent)
    return state._replace(output=output, committed=put(state.committed, stream, offset))


def land(state: State) -> State:
    """The late transaction lands."""
    assert state.late is not None  # noqa: S101 - asked only then
    _, lent, offset = state.late
    return landed(state, (lent,), lent.batch.stream, offset)._replace(late=None)


def advanced(state: State, number: int, work: Work, left: Work | None) -> State:
    """A consumer reads on behind a batch."""
    consumer = state.consumers[number]
    places = put(consumer.places, work.batch.stream, work.offset + 1)
    return with_consumer(state, number, consumer._replace(places=places, work=left))

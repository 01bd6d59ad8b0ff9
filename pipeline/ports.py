"""What the stages need of the world, as small Protocols.

`pipeline.adapters` fulfils them with real clients, `pipeline.testing` with twins; both pass tests/contract. Every
method that waits is a coroutine, so that one seeded event loop can run the real stages and stop any of them at any
await. Every method raises only errors of `pipeline.errors`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from pipeline.assignment.archive import KeyArchive

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.assignment.records import Assignment
    from pipeline.stream import Cursor, Stream


class Clock(Protocol):
    """Time, so that a test can own it."""

    def unix_ms(self) -> int: ...
    def monotonic_s(self) -> float: ...
    async def sleep(self, seconds: float) -> None: ...


# ── etcd ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One etcd key as read. `create_revision == 0` never occurs here: a missing key is None."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Compare:
    """One condition of an etcd transaction; exactly one of the three is set. Revision 0 means "absent"."""

    key: str
    create_revision: int | None = None
    mod_revision: int | None = None
    value: bytes | None = None


@dataclass(frozen=True, slots=True)
class Txn:
    """`IF all compares THEN puts and deletes ELSE gets` (etcd API, KV.Txn). At most 128 in each of the three lists."""

    compares: tuple[Compare, ...]
    puts: tuple[tuple[str, bytes], ...] = ()
    deletes: tuple[str, ...] = ()
    gets: tuple[str, ...] = ()
    lease: int = 0  #: attached to every put when not 0


@dataclass(frozen=True, slots=True)
class TxnResult:
    """What a transaction did. `reads` has an entry for every get of the ELSE branch, None where absent."""

    succeeded: bool
    revision: int
    reads: Mapping[str, KeyValue | None] = field(default_factory=dict)


class Store(Protocol):
    """etcd. Keys are full paths."""

    async def commit(self, txn: Txn) -> TxnResult:
        """Raises AmbiguousTxn when it may have been applied, StoreUnavailable when it was certainly not."""
        ...

    async def get(self, key: str) -> KeyValue | None:
        """Linearizable. Raises StoreUnavailable."""
        ...

    async def list(self, prefix: str) -> list[KeyValue]:
        """All keys under a prefix, read at one revision, in pages. Raises StoreUnavailable."""
        ...

    async def grant_lease(self, ttl_s: int) -> int: ...

    async def keep_alive(self, lease: int) -> bool:
        """False when the lease is gone. Raises StoreUnavailable."""
        ...

    async def revoke_lease(self, lease: int) -> None: ...

    async def close(self) -> None: ...


# ── Kafka ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Place:
    """A position on a topic."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


@dataclass(frozen=True, slots=True)
class Message:
    """A record as read, read_committed."""

    place: Place
    key: bytes
    value: bytes
    generation: Any = None  #: group metadata captured before the poll that returned it; opaque
    unix_ms: int | None = None  #: the record's timestamp, if the log gives it
    traceparent: str = ""  #: see pipeline.tracing


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A record to publish. The partition is always ours to choose."""

    topic: str
    partition: int
    key: bytes
    value: bytes
    traceparent: str = ""  #: see pipeline.tracing


@dataclass(frozen=True, slots=True)
class ReaderPosition:
    """Where a stream's reader goes on, as held atomically with its batches."""

    seq: int
    cursor: Cursor
    digest: str
    system_id: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the consumers have come on a partition: the next offset, and the seq of the batch before it."""

    offset: int
    seq: int


class StreamWriter(Protocol):
    """The transactional writer of one stream; one live at a time, by its transactional.id."""

    async def open(self) -> ReaderPosition | None:
        """Fence any earlier writer, finish or abort what it left, and return the position it committed.

        None when Kafka holds neither a position nor a batch of this stream. Raises BusUnavailable.
        """
        ...

    async def publish(self, batches: Sequence[bytes], position: ReaderPosition, traces: Sequence[str] = ()) -> None:
        """One Kafka transaction with the batches, in order, and the position after the last of them.

        Raises ProducerFenced, RoundAborted, AmbiguousRound (call `open` again after the last two), BusUnavailable.
        """
        ...

    async def consumed(self) -> int:
        """The seq of the last batch of this stream that the consumers have committed. Raises BusUnavailable."""
        ...

    async def close(self) -> None: ...


class BatchSubscription(Protocol):
    """A consumer group member on tx.batches.*."""

    async def poll(self, max_messages: int, timeout_s: float) -> Sequence[Message]:
        """Messages of assigned, unpaused partitions, in order. Serves rebalances. Raises BusUnavailable."""
        ...

    def assigned(self) -> frozenset[tuple[str, int]]:
        """(topic, partition) pairs that this member owns since its last poll."""
        ...

    def halted(self) -> Mapping[tuple[str, int], str]:
        """Partitions that cannot be read, and why (offset out of range, no committed offset)."""
        ...

    async def pause(self, partitions: frozenset[tuple[str, int]]) -> None:
        """Exactly these partitions deliver nothing from now on; all others do."""
        ...

    async def rewind(self, partitions: frozenset[tuple[str, int]]) -> Mapping[tuple[str, int], int]:
        """Go back to the group's committed offset, and say what it is. Raises BusUnavailable."""
        ...

    async def close(self) -> None: ...


class RoundWriter(Protocol):
    """The transactional producer of one consumer slot."""

    async def open(self) -> None:
        """Fence any earlier holder of the transactional.id. Builds a new client each time. Raises BusUnavailable."""
        ...

    async def commit(
        self, records: Sequence[Outgoing], progress: Mapping[tuple[str, int], Progress], generation: Any
    ) -> bool:
        """One Kafka transaction: records first, offsets last. True when it was fast and certain.

        False: it committed, but slower than socket.timeout.ms; the producer must be opened again.
        Raises RoundAborted, AmbiguousRound, ProducerFenced, BusUnavailable, and SettingError for a record that is too
        large; after each, `open` again.
        """
        ...

    async def close(self) -> None: ...


class BatchLog(Protocol):
    """Reads of topics outside any group, read_committed."""

    async def ends(self, topic: str, *, committed: bool = True) -> tuple[int, ...]:
        """Per partition the last stable offset, or with `committed=False` the high watermark, open transactions too."""
        ...

    async def progress(self, topic: str) -> Mapping[int, Progress]:
        """Per partition how far the consumers have committed; partitions without an offset are absent."""
        ...

    async def starts(self, topic: str) -> tuple[int, ...]:
        """Per partition the offset of the oldest record that is kept. Raises BusUnavailable."""
        ...

    def scan(self, topic: str, partition: int, start: int, end: int) -> AsyncGenerator[Message, None]:
        """Committed records in [start, end). Ends when `end` is reached. Raises BusUnavailable, MalformedBatch."""
        ...

    async def close(self) -> None: ...


# ── Postgres ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Source(Protocol):
    """A table or view of unsigned transactions."""

    async def system_id(self) -> str:
        """Postgres' system identifier. Raises DatabaseUnavailable."""
        ...

    async def rows_after(self, shard: int, after: Cursor, limit: int) -> pa.Table:
        """Rows in (after, …], only of transactions older than every running one, ordered by (created_xid, id).

        Columns `created_xid int64, id int64` and then those of ethereum.batch.COLUMNS. Raises DatabaseUnavailable.
        """
        ...

    async def rows_between(self, shard: int, prev: Cursor, cursor: Cursor) -> pa.Table:
        """The rows of a batch whose bounds are known, in the same columns. Raises DatabaseUnavailable."""
        ...

    async def rows_of(self, ids: Sequence[int]) -> pa.Table:
        """The rows with these ids, in any order, in the same columns. Raises DatabaseUnavailable."""
        ...

    async def count(self) -> int:
        """All committed rows. Raises DatabaseUnavailable."""
        ...

    async def any_after(self, shard: int, after: Cursor) -> bool:
        """Whether a committed row follows a cursor, even one that must still wait for older transactions."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One row of signing_ledger: what a signer swore to sign, before it signed."""

    stream: Stream
    seq: int
    digest: str
    chain_id: int
    sender: str  #: "" for a batch without a signable row
    first_nonce: int
    count: int
    fence: int
    worker: str


class Ledger(KeyArchive, Protocol):
    """The second, independent guard."""

    async def record(self, entry: LedgerEntry) -> bool:
        """Write the row and advance the watermark in one statement; durable on return.

        True when new, False when the identical row (worker apart) was there. Raises LedgerRefused for anything else,
        DatabaseUnavailable when it may or may not have been written (call again: it is idempotent), during a recovery,
        and for any other row under a fence from before one.
        """
        ...

    async def entry(self, stream: Stream, seq: int) -> LedgerEntry | None: ...

    async def generation(self) -> int:
        """How many recoveries of etcd there were; see assignment.view.Guard."""
        ...

    async def heads(self) -> Mapping[Stream, int]:
        """The highest seq of each stream."""
        ...

    async def watermarks(self) -> Mapping[tuple[int, str], int]:
        """(chain id, sender) → next nonce."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one source row."""

    source: str
    tx_id: int
    status: str  #: "signed" or "rejected"
    chain_id: int
    stream: Stream | None = None
    seq: int | None = None
    sender: str = ""
    nonce: int | None = None
    tx_hash: bytes = b""
    place: Place | None = None
    reason: str = ""
    detail: str = ""


# ── within the pipeline ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class AssignRequest:
    """A validated batch that wants a key."""

    stream: Stream
    seq: int
    prev: Cursor
    cursor: Cursor
    digest: str
    chain_id: int
    system_id: str
    rows: int
    count: int
    rules_version: int
    worker: str
    node: str
    batch_offset: int
    signed_from: tuple[int, ...]
    spend: int = 0  #: wei that its signable rows may cost together
    sender: str = ""  #: the only key that may sign it; empty = any of its pool
    blobs: bool = False  #: it is of blob transactions, for which keys are set apart


@dataclass(frozen=True, slots=True)
class Assigned:
    """The batch has this key and these nonces. `sealed` is ciphertext; only a signer can open it."""

    assignment: Assignment
    sealed: bytes

    def __repr__(self) -> str:
        a = self.assignment
        return f"<Assigned {a.stream} {a.seq} {a.address or 'no key'} nonces {a.first_nonce}+{a.count}>"


@dataclass(frozen=True, slots=True)
class Published:
    """The batch was signed and published before: skip it."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The stream is halted, by this request or before it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """No key came free before the deadline, or it is not known yet what became of the request; ask again."""


AssignReply: TypeAlias = Assigned | Published | Refused | Waiting


class Assigner(Protocol):
    """The key manager, as its clients see it."""

    async def assign(self, requests: Sequence[AssignRequest], deadline_s: float) -> Sequence[AssignReply]:
        """One reply per request, in order. Requests of one stream are in the order of its chain.

        Raises NotLeader, DeploymentHalted, StoreUnavailable: nothing may have been assigned, ask again.
        """
        ...

    async def release(self, batches: Sequence[tuple[Stream, int]], worker: str) -> None:
        """Free the keys of published batches and forget their assignments. Idempotent."""
        ...

    async def halt(self, stream: Stream, reason: str) -> None:
        """Nothing of this stream is assigned any more until an operator acts. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class SignedBatch:
    """What a signer gives back: the value of the record for tx.signed, and the rejected rows as JSON."""

    record: bytes
    rejections: tuple[bytes, ...]


class Signers(Protocol):
    """The pool of signers."""

    async def sign(self, batch: bytes, assigned: Assigned) -> SignedBatch:
        """Raises LedgerRefused, SigningRefused (halt the stream), DependencyDown or RuntimeFault (sign again)."""
        ...

    def slots(self) -> int: ...  # how many batches it works on at once

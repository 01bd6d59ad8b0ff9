"""The JSON of requests and answers, as models: what they check is what the OpenAPI document says."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

import orjson
from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints

from pipeline.assignment.key_life import GROUP_MAX
from pipeline.assignment.records import KeyState, Record
from pipeline.ethereum.rules import CHAIN_ID_MAX

DEADLINE_S_MAX: Final = 60.0
LIST_MAX: Final = 10_000
LIST_DEFAULT: Final = 1_000
CREATED_MAX: Final = 1_000
ROWS_MAX: Final = 10_000
PARTITIONS_MAX: Final = 1_024
UINT64_MAX: Final = 2**64 - 1
INT64_MAX: Final = 2**63 - 1

StreamName: TypeAlias = Annotated[
    str, Field(pattern=r"^[a-z][a-z0-9_-]{0,47}/[0-9]{1,5}$", description="source/shard", examples=["payouts/3"])
]
CursorText: TypeAlias = Annotated[
    str, Field(pattern=r"^[0-9]{1,20}:-?[0-9]{1,19}$", description="xid8:id", examples=["781:4000"])
]
Digest: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 over the batch's content")]
Address: TypeAlias = Annotated[
    str, StringConstraints(to_lower=True, pattern=r"^0x[0-9a-fA-F]{40}$"), Field(description="0x and 40 hex digits")
]
ChainId: TypeAlias = Annotated[int, Field(ge=1, le=CHAIN_ID_MAX, description="EIP-155 chain id")]
Name: TypeAlias = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[\x20-\x7e]+$")]
UnixMs: TypeAlias = Annotated[int, Field(ge=0, description="milliseconds since 1970")]
Seq: TypeAlias = Annotated[int, Field(ge=1, le=INT64_MAX, description="number of the batch in its stream: 1, 2, 3 …")]


class Given(BaseModel):
    """Part of a request: an unknown field is refused instead of ignored."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Answer(BaseModel):
    """Part of an answer."""

    model_config = ConfigDict(extra="forbid")


class BatchToAssign(Given):
    """A validated batch that wants a key. All but the last four fields are in the batch's own metadata."""

    stream: StreamName
    seq: Seq
    prev: CursorText
    cursor: CursorText
    digest: Digest
    chain_id: ChainId
    system_id: Annotated[str, Field(max_length=32, description="of the Postgres that the batch was read from")]
    rows: int = Field(ge=1, le=ROWS_MAX)
    count: int = Field(ge=0, le=ROWS_MAX, description="signable rows; 0 = no key is needed")
    rules_version: int = Field(ge=1, description="of the validity rules that counted them")
    batch_offset: int = Field(ge=0, le=INT64_MAX, description="of the batch on its partition of tx.batches")
    signed_from: list[Annotated[int, Field(ge=0, le=INT64_MAX)]] = Field(
        max_length=PARTITIONS_MAX, description="per partition of tx.signed its end before the batch is published"
    )
    spend_wei: str = Field(
        "0",
        pattern=r"^[0-9]{1,90}$",
        description="value + gas limit * fee cap + blob gas * blob fee of the signable rows, together; needed when the "
        "source has a budget",
    )
    sender: Address | Literal[""] = Field("", description="the only key that may sign it; empty = any of its pool")
    blobs: bool = Field(default=False, description="it is of blob transactions, for which keys are set apart")


class AssignBody(Given):
    """Batches that one worker has; those of one stream in the order of its chain."""

    batches: list[BatchToAssign] = Field(min_length=1, max_length=GROUP_MAX)
    worker: Name = Field(description="who holds the key from now on; a name that no other process has")
    node: Name = Field(description="where the worker runs")
    deadline_s: float = Field(0.0, ge=0, le=DEADLINE_S_MAX, description="how long to wait in the queue for a key")


class BatchNumber(Given):
    """A batch by its place."""

    stream: StreamName
    seq: Seq


class ReleaseBody(Given):
    """Batches that were published, and the worker that holds them. All or nothing."""

    batches: list[BatchNumber] = Field(min_length=1, max_length=GROUP_MAX)
    worker: Name


class CreateBody(Given):
    """How many new keys, for which chain."""

    chain_id: ChainId
    count: int = Field(1, ge=1, le=CREATED_MAX)


class ImportBody(Given):
    """One keystore V3 (Web3 Secret Storage) with its password; sealed at once, kept nowhere else."""

    chain_id: ChainId
    keystore: dict[str, Any]
    password: SecretStr = Field(max_length=1024)
    next_nonce: int = Field(0, ge=0, lt=UINT64_MAX, description="the first nonce that was not used on the chain")


class KeyPath(Given):
    """A key of a chain's pool."""

    chain_id: ChainId
    address: Address


class Window(Given):
    """How much of a list."""

    limit: int = Field(LIST_DEFAULT, ge=1, le=LIST_MAX)


class Assignment(Answer):
    """Which key and which nonces a batch has, for ever: `[first_nonce, first_nonce + count)`."""

    stream: StreamName
    seq: Seq
    prev: CursorText
    cursor: CursorText
    digest: Digest
    chain_id: ChainId
    address: str = Field(description="the sender; empty for a batch without a signable row")
    first_nonce: int
    count: int
    rows: int
    rules_version: int
    fence: int = Field(description="of the leader that made it; belongs into the ledger row and the signed record")
    worker: str
    node: str
    since_unix_ms: UnixMs
    batch_offset: int
    signed_from: list[int]
    denied: str = Field(description="why its sender was not lent, or empty: reject its signable rows for this reason")


class AssignedReply(Answer):
    """The batch has this key and these nonces: write the ledger row, sign, publish, release."""

    status: Literal["assigned"] = "assigned"
    assignment: Assignment
    sealed: str = Field(description="base64 of the private key, sealed under the key-encryption key; may be empty")


class PublishedReply(Answer):
    """It was signed and published before: skip it."""

    status: Literal["published"] = "published"


class RefusedReply(Answer):
    """Its stream is halted, by this request or before it."""

    status: Literal["refused"] = "refused"
    reason: str


class WaitingReply(Answer):
    """No key came free before the deadline: ask again."""

    status: Literal["waiting"] = "waiting"


AssignedOrNot: TypeAlias = Annotated[
    AssignedReply | PublishedReply | RefusedReply | WaitingReply, Field(discriminator="status")
]


class AssignAnswer(Answer):
    """One reply for each batch, in order."""

    replies: list[AssignedOrNot]


class ReleaseAnswer(Answer):
    """The batches whose keys are free now, or were before."""

    released: list[BatchNumber]


class Holder(Answer):
    """For which batch a key is locked, and which worker has that batch."""

    stream: StreamName
    seq: Seq
    worker: str
    node: str
    fence: int


class Key(Answer):
    """One key of the pool on one chain."""

    chain_id: ChainId
    address: str
    state: KeyState
    next_nonce: int
    since_unix_ms: UnixMs = Field(description="since when it is in this state")
    uses: int
    holder: Holder | None
    disable_on_release: bool
    set_apart: bool = Field(description="for blob transactions, and for nothing else")


class KeyList(Answer):
    """The pool; the key that has been in its state for longest first, as free ones are lent."""

    total: int
    keys: list[Key]


class AssignmentList(Answer):
    """What was assigned and not released yet."""

    total: int
    assignments: list[Assignment]


class Waiter(Answer):
    """A batch that waits for a key."""

    stream: StreamName
    seq: Seq
    chain_id: ChainId
    count: int
    worker: str
    node: str
    waited_s: float
    sender: str = Field(description="the only key that it waits for, or empty")
    blobs: bool = Field(description="it waits for a key that is set apart for blob transactions")


class QueueAnswer(Answer):
    """Who waits for a key, first come first."""

    length: int
    oldest_s: float
    waiting: list[Waiter]


class Chain(Answer):
    """How far the assignments of a stream have come."""

    stream: StreamName
    chain_id: ChainId
    system_id: str
    seq: int
    cursor: CursorText
    digest: str
    halted: str = Field(description="why nothing of it is assigned, or empty")
    spending_since_ms: UnixMs = Field(description="start of the period that spent_wei counts for; 0 = no budget yet")
    spent_wei: str = Field(description="what its batches may have cost since then, together")


class StreamList(Answer):
    """All streams, by name."""

    streams: list[Chain]


class AddressList(Answer):
    """The addresses of keys that came into the pool."""

    addresses: list[str]


class KeyChanged(Answer):
    """A key whose state was changed; one that is locked changes after its release."""

    chain_id: ChainId
    address: str


class ProblemDetails(Answer):
    """RFC 9457."""

    type: str
    title: str
    status: int
    code: str = Field(description="what a program may rely on")
    detail: str
    hint: str = ""
    errors: list[dict[str, str]] = Field(default=[], description="`field` and `message` of each field that is wrong")


def fields_of(record: Record) -> dict[str, Any]:
    """A record of etcd as JSON has it."""
    fields: dict[str, Any] = orjson.loads(record.to_json())
    return fields

"""What etcd remembers of a deployment, as typed records; JSON with sorted keys on the wire.

    /oncesign/{deployment}/genesis                              Genesis
    /oncesign/{deployment}/leader                               Leader (the only record with a lease)
    /oncesign/{deployment}/keys/{chain_id}/{address}            KeyRecord
    /oncesign/{deployment}/sealed/{address}                     a sealed private key, see custody.sealing
    /oncesign/{deployment}/streams/{source}/{shard}             StreamRecord
    /oncesign/{deployment}/assignments/{source}/{shard}/{seq}   Assignment
    /oncesign/_owners/{address}                                 Owner: one deployment per key, of all in this etcd

Addresses are lower-case hex with 0x; digests are lower-case hex without.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self

import orjson

from pipeline.errors import MalformedBatch
from pipeline.stream import START, Cursor, Stream


class KeyState(StrEnum):
    """What may be done with a key now."""

    FREE = "free"
    LOCKED = "locked"
    DISABLED = "disabled"
    RETIRED = "retired"  #: for good: never lent again, its nonces stay known


class Record:
    """A dataclass that etcd holds as JSON with sorted keys."""

    def to_json(self) -> bytes:
        """Sorted, without spaces, so that equal records are equal bytes."""
        return orjson.dumps(_plain(self), option=orjson.OPT_SORT_KEYS)

    @classmethod
    def from_json(cls, raw: bytes) -> Self:
        """Raises MalformedBatch when a field is missing or unknown."""
        try:
            fields = orjson.loads(raw)
            return cls.from_fields(fields)
        except (AttributeError, TypeError, ValueError, KeyError) as error:
            raise MalformedBatch(f"not a {cls.__name__}: {error}") from error

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        """From parsed JSON. Raises KeyError, TypeError, ValueError, MalformedBatch."""
        return cls(**cls._typed(fields))

    @classmethod
    def _typed(cls, fields: dict[str, Any]) -> dict[str, Any]:
        return fields


@dataclass(frozen=True, slots=True)
class Genesis(Record):
    """Made once; its uuid tells this deployment's etcd from any other's."""

    uuid: str
    created_unix_ms: int


@dataclass(frozen=True, slots=True)
class Leader(Record):
    """The key manager that may write. Its etcd create_revision is the fence."""

    uuid: str
    node: str
    pid: int
    since_unix_ms: int


@dataclass(frozen=True, slots=True)
class Owner(Record):
    """The deployment whose key this is: two pools with one key would each give out its nonces."""

    address: str
    deployment: str
    since_unix_ms: int


@dataclass(frozen=True, slots=True)
class Holder(Record):
    """For which batch a key is locked, and which worker has that batch now."""

    stream: Stream
    seq: int
    worker: str
    node: str
    fence: int

    @classmethod
    def _typed(cls, fields: dict[str, Any]) -> dict[str, Any]:
        return {**fields, "stream": Stream.parse(fields["stream"])}


@dataclass(frozen=True, slots=True)
class KeyRecord(Record):
    """One key of the pool on one chain."""

    chain_id: int
    address: str
    state: KeyState
    next_nonce: int
    since_unix_ms: int  #: since when the key is in this state, clamped to be monotonic
    uses: int
    holder: Holder | None = None
    disable_on_release: bool = False
    set_apart: bool = False  #: for blob transactions, and for nothing else

    @classmethod
    def _typed(cls, fields: dict[str, Any]) -> dict[str, Any]:
        holder = fields.get("holder")
        return {
            **fields,
            "state": KeyState(fields["state"]),
            "holder": Holder.from_fields(holder) if holder else None,
        }


@dataclass(frozen=True, slots=True)
class StreamRecord(Record):
    """How far the assignments of a stream have come."""

    stream: Stream
    chain_id: int
    system_id: str  #: Postgres system identifier of the source
    seq: int = 0
    cursor: Cursor = START
    digest: str = ""  #: of batch `seq`
    halted: str = ""  #: why, or empty
    spending_since_ms: int = 0  #: start of the period that `spent_wei` counts for
    spent_wei: str = "0"  #: decimal: JSON numbers are read as 64 bits by many

    @classmethod
    def _typed(cls, fields: dict[str, Any]) -> dict[str, Any]:
        return {
            **fields,
            "stream": Stream.parse(fields["stream"]),
            "cursor": Cursor.parse(fields["cursor"]),
        }


NOWHERE: Final = -1
"""The offset of a batch whose topic was made anew: every offset of that topic is past it."""


@dataclass(frozen=True, slots=True)
class Assignment(Record):
    """batch → key and nonce range `[first_nonce, first_nonce + count)`, bound for ever.

    A batch without a signable row has `address == ""` and `count == 0`: it takes no key, and is followed to its
    publication like any other. So has one whose pinned sender is not lent: `denied` is why, and every row that could be
    signed is rejected with it.
    """

    stream: Stream
    seq: int
    prev: Cursor
    cursor: Cursor
    digest: str
    chain_id: int
    address: str
    first_nonce: int
    count: int
    rows: int
    rules_version: int
    fence: int
    worker: str
    node: str
    since_unix_ms: int
    batch_offset: int  #: of the batch on its partition of tx.batches, or NOWHERE
    signed_from: tuple[int, ...]  #: per partition of tx.signed, an offset at or before the one of the signed record
    denied: str = ""  #: code of a Reason of reasons.OF_SENDER, or empty

    @classmethod
    def _typed(cls, fields: dict[str, Any]) -> dict[str, Any]:
        return {
            **fields,
            "stream": Stream.parse(fields["stream"]),
            "prev": Cursor.parse(fields["prev"]),
            "cursor": Cursor.parse(fields["cursor"]),
            "signed_from": tuple(fields["signed_from"]),
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Stream | Cursor):
        return str(value)
    if names := _names(type(value)):
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _names(kind: type) -> tuple[str, ...]:
    """The fields of a dataclass; none of anything else."""
    if kind not in _NAMES:
        is_record = dataclasses.is_dataclass(kind)
        _NAMES[kind] = tuple(field.name for field in dataclasses.fields(kind)) if is_record else ()
    return _NAMES[kind]


_NAMES: Final[dict[type, tuple[str, ...]]] = {}
"""One entry per type; asking dataclasses each time took half of the key manager's time."""

"""A batch of unsigned transactions as it travels on `tx.batches.{source}`.

The value of a record is an Arrow IPC stream of one record batch. Identity is the digest over the columns' content,
never over IPC bytes, which differ between Arrow versions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline.errors import MalformedBatch
from pipeline.ethereum.columns import Columns, Extras
from pipeline.ethereum.digest import digest
from pipeline.ethereum.ipc import read_fields, read_ipc, write_ipc
from pipeline.ethereum.reasons import Reason
from pipeline.ethereum.rules import CHAIN_ID_MAX
from pipeline.stream import START, Cursor, Stream

CODEC: Final = 1
POLICY_CODEC: Final = 2
"""Of a batch that a policy was applied to: its header has the policy's version, in the metadata and in the digest."""
WIDE_CODEC: Final = 3
"""Of a batch that is cut by sender, or has what only blob and set-code transactions have: the columns of WIDE."""

ACCESS_LIST: Final = pa.list_(
    pa.struct(
        [
            pa.field("address", pa.binary(20), nullable=False),
            pa.field("storage_keys", pa.list_(pa.field("item", pa.binary(32), nullable=False)), nullable=False),
        ]
    )
)

_FIELDS: Final[list[pa.Field[Any]]] = [
    pa.field("tx_id", pa.int64(), nullable=False),
    pa.field("type", pa.uint8(), nullable=False),
    pa.field("chain_id", pa.uint64(), nullable=False),
    pa.field("to", pa.binary(20)),  # null = contract creation
    pa.field("value", pa.binary(32), nullable=False),  # wei, big-endian
    pa.field("gas_limit", pa.uint64(), nullable=False),
    pa.field("max_fee_per_gas", pa.uint64(), nullable=False),  # the gas price of legacy and access-list rows
    pa.field("max_priority_fee_per_gas", pa.uint64()),  # null for legacy and access-list rows
    pa.field("data", pa.binary(), nullable=False),
    pa.field("access_list", ACCESS_LIST),  # null = none
    pa.field("defect", pa.uint8(), nullable=False),  # a Reason, when the source's value fits no column; else 0
]

AUTHORIZATION: Final = pa.struct(
    [
        pa.field("chain_id", pa.uint64(), nullable=False),  # 0 = every chain
        pa.field("address", pa.binary(20), nullable=False),
        pa.field("nonce", pa.uint64(), nullable=False),
        pa.field("y_parity", pa.uint8(), nullable=False),
        pa.field("r", pa.binary(32), nullable=False),
        pa.field("s", pa.binary(32), nullable=False),
    ]
)

_EXTRA_FIELDS: Final[list[pa.Field[Any]]] = [
    pa.field("max_fee_per_blob_gas", pa.uint64()),  # null but for blob rows
    pa.field("blob_hashes", pa.list_(pa.field("item", pa.binary(32), nullable=False))),  # null but for blob rows
    pa.field("authorization_list", pa.list_(AUTHORIZATION)),  # null but for set-code rows
]

COLUMNS: Final = pa.schema(_FIELDS)
EXTRA_COLUMNS: Final = pa.schema(_EXTRA_FIELDS)
WIDE: Final = pa.schema([*_FIELDS, *_EXTRA_FIELDS])
BLOB_TYPE: Final = 3
SET_CODE_TYPE: Final = 4
ADDRESS: Final = re.compile(r"0x[0-9a-f]{40}")
DEFECTS: Final = frozenset(int(reason) for reason in Reason if reason.is_of_row)


@dataclass(frozen=True, slots=True)
class BatchHeader:
    """Which batch of which stream this is: rows in `(prev, cursor]`, numbered `seq` = 1, 2, 3 …."""

    stream: Stream
    seq: int
    prev: Cursor
    cursor: Cursor
    chain_id: int
    system_id: str
    policy: int = 0  #: version of the policy that denied rows of it, 0 = there was none
    wide: bool = False  #: whether its rows have the columns of WIDE
    sender: str = ""  #: the only one that may sign it; empty = any. Only of a wide batch

    @property
    def codec(self) -> int:
        """Of its record."""
        return WIDE_CODEC if self.wide else POLICY_CODEC if self.policy else CODEC

    @property
    def schema(self) -> pa.Schema:
        """Of its rows."""
        return WIDE if self.wide else COLUMNS

    def lines(self) -> list[str]:
        """As the digest sees it."""
        fields = (self.codec, self.stream, self.seq, self.prev, self.cursor, self.chain_id, self.system_id)
        extra = (self.policy, self.sender) if self.wide else (self.policy,) if self.policy else ()
        return [str(field) for field in (*fields, *extra)]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A header, its rows, and the digest over both."""

    header: BatchHeader
    rows: pa.RecordBatch
    columns: Columns
    extras: Extras
    digest: str

    @property
    def blobs(self) -> bool:
        """Whether its rows are blob transactions: those are not mixed with others."""
        return bool((self.columns.type == BLOB_TYPE).any()) and self.header.wide

    @classmethod
    def build(cls, header: BatchHeader, rows: pa.RecordBatch) -> Batch:
        """A batch of rows with the schema of its header.

        Raises MalformedBatch for another schema, no row, a null where none may be, a defect that is no Reason, a chain
        id that no signature can carry, a sender that is no address, and blob transactions mixed with others.
        """
        name = f"batch {header.seq} of {header.stream}"
        _require_header(name, header)
        if not rows.schema.equals(header.schema, check_metadata=False):
            raise MalformedBatch(f"{name} does not have the columns of a batch.")
        if rows.num_rows == 0:
            raise MalformedBatch(f"{name} has no row.")
        if _has_stray_null(rows):
            raise MalformedBatch(f"{name} has a null where none may be.")
        columns = Columns.of(rows)
        if unknown := set(np.unique(columns.defect).tolist()) - DEFECTS:
            raise MalformedBatch(f"{name} has a row with the unknown defect {min(unknown)}.")
        if not header.wide:
            return cls(header, rows, columns, Extras.none(rows.num_rows), digest(header.lines(), columns))
        if len(np.unique(columns.type == BLOB_TYPE)) > 1:
            raise MalformedBatch(f"{name} has blob transactions beside others.")
        extras = Extras.of(rows)
        return cls(header, rows, columns, extras, digest(header.lines(), columns, extras))

    def encode(self) -> bytes:
        """The value of its record."""
        header = self.header
        return write_ipc(
            self.rows,
            {
                "codec": str(header.codec),
                "source": header.stream.source,
                "shard": str(header.stream.shard),
                "seq": str(header.seq),
                "prev": str(header.prev),
                "cursor": str(header.cursor),
                "chain_id": str(header.chain_id),
                "digest": self.digest,
                "system_id": header.system_id,
            }
            | ({"policy": str(header.policy)} if header.policy or header.wide else {})
            | ({"sender": header.sender} if header.wide else {}),
        )

    @classmethod
    def decode(cls, value: bytes) -> Batch:
        """Raises MalformedBatch unless it is a batch of this codec whose content has the digest it carries."""
        rows, fields = read_ipc(value)
        header = _header(fields)
        batch = cls.build(header, rows)
        if batch.digest != fields.get("digest"):
            raise MalformedBatch(f"batch {header.seq} of {header.stream} does not have the digest that it carries.")
        return batch


def header_of(value: bytes) -> BatchHeader:
    """The header alone, without reading the rows. Raises MalformedBatch."""
    return _header(read_fields(value))


def _header(fields: dict[str, str]) -> BatchHeader:
    try:
        codec = int(fields["codec"])
        if codec not in (CODEC, POLICY_CODEC, WIDE_CODEC):
            raise MalformedBatch(f"the batch has codec {codec}; this version reads {CODEC} to {WIDE_CODEC}.")
        wide = codec == WIDE_CODEC
        policy = 0 if codec == CODEC else int(fields["policy"])
        if policy < (codec == POLICY_CODEC):
            raise MalformedBatch(f"the batch says that policy {policy} was applied to it.")
        return BatchHeader(
            Stream(fields["source"], int(fields["shard"])),
            int(fields["seq"]),
            Cursor.parse(fields["prev"]),
            Cursor.parse(fields["cursor"]),
            int(fields["chain_id"]),
            fields["system_id"],
            policy,
            wide,
            fields["sender"] if wide else "",
        )
    except (KeyError, ValueError) as error:
        raise MalformedBatch(f"the batch's metadata lacks or garbles {error}.") from error


def _require_header(name: str, header: BatchHeader) -> None:
    if not 1 <= header.chain_id <= CHAIN_ID_MAX:
        raise MalformedBatch(f"{name} is for chain {header.chain_id}; there are 1 … 2^63 - 37 (EIP-2294).")
    if header.sender and not (header.wide and ADDRESS.fullmatch(header.sender)):
        raise MalformedBatch(f"{name} is for the sender {header.sender[:64]!r}.")


def _has_stray_null(rows: pa.RecordBatch) -> bool:
    """Arrow itself does not hold a column to its `nullable=False`."""
    entries: Any = rows.column("access_list")
    entries = entries.flatten()
    keys = entries.field("storage_keys")
    inner = [entries, entries.field("address"), keys, keys.flatten()]
    if "authorization_list" in rows.schema.names:
        lists: tuple[Any, Any] = rows.column("blob_hashes"), rows.column("authorization_list")
        authorizations = lists[1].flatten()
        inner += [lists[0].flatten(), authorizations, *(authorizations.field(name.name) for name in AUTHORIZATION)]
    required = [column for column, field in zip(rows.columns, rows.schema, strict=True) if not field.nullable]
    return any(array.null_count for array in (*required, *inner))


def specimen() -> Batch:
    """Three rows that nobody means to sign, for code that must be compiled before the first batch comes."""
    row = {
        "tx_id": 0,
        "type": 2,
        "chain_id": 1,
        "to": bytes(20),
        "value": bytes(32),
        "gas_limit": 0,
        "max_fee_per_gas": 0,
        "max_priority_fee_per_gas": 0,
        "data": b"",
        "access_list": None,
        "defect": 0,
    }
    header = BatchHeader(Stream("specimen", 0), 1, START, START, 1, "")
    return Batch.build(header, pa.RecordBatch.from_pylist([row] * 3, schema=COLUMNS))

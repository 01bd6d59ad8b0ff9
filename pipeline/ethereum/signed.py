"""A signed batch as it travels on `tx.signed`: one Arrow IPC stream of one record batch, keyed by its sender."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import MalformedBatch
from pipeline.ethereum.columns import U8
from pipeline.ethereum.ipc import read_fields, read_ipc, write_ipc
from pipeline.stream import Stream

CODEC: Final = 1

_FIELDS: Final[list[pa.Field[Any]]] = [
    pa.field("tx_id", pa.int64()),  # null = a filler that closes the nonce of a row that could not be signed
    pa.field("nonce", pa.uint64(), nullable=False),
    pa.field("hash", pa.binary(32), nullable=False),
    pa.field("raw", pa.binary(), nullable=False),  # what eth_sendRawTransaction takes
]

COLUMNS: Final = pa.schema(_FIELDS)


@dataclass(frozen=True, slots=True, eq=False)
class SignedColumns:
    """k signed rows. A row whose `tx_id_valid` is 0 is a filler that closes the nonce of a row that failed to sign."""

    tx_id: NDArray[np.int64]  #: (k,)
    tx_id_valid: U8  #: (k,)
    nonce: NDArray[np.uint64]  #: (k,)
    hashes: U8  #: (k, 32)
    raw_offsets: NDArray[np.int32]  #: (k + 1,)
    raw: U8  #: (raw_offsets[k],)
    failed: U8  #: (k,) 1 = libsecp256k1 gave no signature, and the row holds no bytes

    @classmethod
    def empty(cls) -> SignedColumns:
        """Of a batch without a signable row."""
        none = np.zeros(0, np.uint8)
        zero = np.zeros(1, np.int32)
        return cls(np.zeros(0, np.int64), none, np.zeros(0, np.uint64), none.reshape(0, 32), zero, none, none)


@dataclass(frozen=True, slots=True)
class SignedHeader:
    """Whose nonces a signed batch has, and of which batch it is. `sender` is empty when `count` is 0."""

    stream: Stream
    seq: int
    chain_id: int
    sender: str
    first_nonce: int
    count: int
    digest: str
    fence: int
    worker: str
    policy: int = 0  #: version of the policy that was applied to its batch, 0 = there was none


@dataclass(frozen=True, slots=True, eq=False)
class SignedRecord:
    """A header and its rows, in the order of their nonces."""

    header: SignedHeader
    rows: pa.RecordBatch

    @classmethod
    def build(cls, header: SignedHeader, signed: SignedColumns) -> SignedRecord:
        """A record of the kernel's columns, without a copy of the bytes."""
        count = len(signed.nonce)
        hashes, offsets, raw = (pa.py_buffer(array.data) for array in (signed.hashes, signed.raw_offsets, signed.raw))
        columns: list[Any] = [
            pa.array(signed.tx_id, mask=signed.tx_id_valid == 0),
            pa.array(signed.nonce),
            pa.Array.from_buffers(pa.binary(32), count, [None, hashes]),
            pa.Array.from_buffers(pa.binary(), count, [None, offsets, raw]),
        ]
        return cls(header, pa.RecordBatch.from_arrays(columns, schema=COLUMNS))

    def encode(self) -> bytes:
        """The value of its record. Equal inputs give equal bytes, but for the worker's name."""
        header = self.header
        return write_ipc(
            self.rows,
            {
                "codec": str(CODEC),
                "source": header.stream.source,
                "shard": str(header.stream.shard),
                "seq": str(header.seq),
                "chain_id": str(header.chain_id),
                "sender": header.sender,
                "first_nonce": str(header.first_nonce),
                "count": str(header.count),
                "digest": header.digest,
                "fence": str(header.fence),
                "worker": header.worker,
            }
            | ({"policy": str(header.policy)} if header.policy else {}),
        )

    @classmethod
    def decode(cls, value: bytes) -> SignedRecord:
        """Raises MalformedBatch."""
        rows, fields = read_ipc(value)
        if not rows.schema.equals(COLUMNS, check_metadata=False):
            raise MalformedBatch("the record does not have the columns of a signed batch.")
        if any(rows.column(name).null_count for name in ("nonce", "hash", "raw")):
            raise MalformedBatch("the signed record has a null where none may be.")
        record = cls(_header(fields), rows)
        if rows.num_rows != record.header.count:
            raise MalformedBatch(f"the signed record says {record.header.count} rows and has {rows.num_rows}.")
        return record


def header_of(value: bytes) -> SignedHeader:
    """The header alone, without reading the rows. Raises MalformedBatch."""
    return _header(read_fields(value))


def _header(fields: dict[str, str]) -> SignedHeader:
    try:
        if int(fields["codec"]) != CODEC:
            raise MalformedBatch(f"the signed record has codec {fields['codec']}; this version reads {CODEC}.")
        return SignedHeader(
            stream=Stream(fields["source"], int(fields["shard"])),
            seq=int(fields["seq"]),
            chain_id=int(fields["chain_id"]),
            sender=fields["sender"],
            first_nonce=int(fields["first_nonce"]),
            count=int(fields["count"]),
            digest=fields["digest"],
            fence=int(fields["fence"]),
            worker=fields["worker"],
            policy=int(fields.get("policy", 0)),
        )
    except (KeyError, ValueError) as error:
        raise MalformedBatch(f"the signed record's metadata lacks or garbles {error}.") from error


def with_fillers(signed: SignedColumns, fillers: dict[int, SignedColumns]) -> SignedColumns:
    """Put one-row fillers in the places of the rows that failed to sign."""
    count = len(signed.nonce)
    pieces, lengths = [], []
    hashes, valid = signed.hashes.copy(), signed.tx_id_valid.copy()
    for k in range(count):
        raw = signed.raw[signed.raw_offsets[k] : signed.raw_offsets[k + 1]]
        if k in fillers:
            raw = fillers[k].raw
            hashes[k] = fillers[k].hashes[0]
            valid[k] = 0
        pieces.append(raw)
        lengths.append(len(raw))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    failed = np.zeros(count, np.uint8)
    return SignedColumns(signed.tx_id, valid, signed.nonce, hashes, offsets, np.concatenate(pieces), failed)

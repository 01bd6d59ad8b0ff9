"""Where one batch ends and the next begins: fixed by the reader, for good.

A batch is signed by one key, so rows that name different senders are in different batches. So are blob transactions
and others: go-ethereum refuses to have both of one account in its pools (core/txpool, ErrAlreadyReserved).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.ethereum.batch import BLOB_TYPE

ROW_OVERHEAD_BYTES: Final = 224
"""What a row takes beside data and access list, in the larger of its batch (columns) and its signed record (nonce,
hash, signature, RLP)."""

ADDRESS_BYTES: Final = 24
STORAGE_KEY_BYTES: Final = 36
BLOB_HASH_BYTES: Final = 36
AUTHORIZATION_BYTES: Final = 128


def row_bytes(rows: pa.RecordBatch) -> NDArray[np.int64]:
    """An upper bound of what each row takes in its batch or its signed record."""
    data: Any = pc.binary_length(cast("pa.BinaryArray", rows.column("data")))
    sizes: NDArray[np.int64] = data.to_numpy(zero_copy_only=False).astype(np.int64)
    lists: tuple[Any, Any] = rows.column("blob_hashes"), rows.column("authorization_list")
    sizes += ROW_OVERHEAD_BYTES + _access_list_bytes(rows.column("access_list"))
    return sizes + BLOB_HASH_BYTES * _lengths(lists[0]) + AUTHORIZATION_BYTES * _lengths(lists[1])


def _lengths(lists: Any) -> NDArray[np.int64]:
    lengths: NDArray[np.int64] = np.diff(lists.offsets.to_numpy().astype(np.int64))
    return lengths


def _access_list_bytes(lists: Any) -> NDArray[np.int64]:
    bounds = lists.offsets.to_numpy().astype(np.int64)
    keys = lists.values.field("storage_keys").offsets.to_numpy().astype(np.int64)
    if lists.values.offset:
        keys = keys[lists.values.offset :]
    addresses = np.diff(bounds)
    size: NDArray[np.int64] = addresses * ADDRESS_BYTES + np.diff(keys[bounds]) * STORAGE_KEY_BYTES
    return size


def cut(rows: pa.RecordBatch, rows_max: int, bytes_max: int) -> Iterator[pa.RecordBatch]:
    """Split rows, in order, into batches within both bounds; a single row is never split.

    Whether the last one is full is for the caller to see from its size.
    """
    total = np.cumsum(row_bytes(rows))
    ends = [*_lane_ends(rows), rows.num_rows]
    lane, start = 0, 0
    while start < rows.num_rows:
        before = total[start - 1] if start else 0
        fits = int(np.searchsorted(total, before + bytes_max, side="right"))
        end = min(ends[lane], max(start + 1, min(fits, start + rows_max)))
        yield rows.slice(start, end - start)
        start = end
        lane += start == ends[lane]


def _lane_ends(rows: pa.RecordBatch) -> list[int]:
    """Where the sender changes, or blob transactions begin or end; without the end of all."""
    senders, kinds = rows.column("sender"), cast("pa.UInt8Array", rows.column("type"))
    blobs = kinds.to_numpy() == BLOB_TYPE
    changes = blobs[1:] != blobs[:-1]
    if senders.null_count < len(senders):
        named = np.array(senders.to_pylist(), object)
        changes |= named[1:] != named[:-1]
    return (np.flatnonzero(changes) + 1).tolist()

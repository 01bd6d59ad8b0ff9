"""A batch's columns as numpy arrays over the Arrow buffers, for the loops that read every row.

Copies are made only where a slice or a null would otherwise leave other bytes in view.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

U8: TypeAlias = NDArray[np.uint8]

Array: TypeAlias = Any
"""An Arrow array; its stubs know neither buffers nor the fields of nested ones."""


class Columns(NamedTuple):
    """n rows. Offsets start at 0; values under a null are zero; all arrays are read-only and contiguous.

    A named tuple, because that is what compiled loops take.
    """

    tx_id: NDArray[np.int64]  #: (n,)
    type: U8  #: (n,)
    chain_id: NDArray[np.uint64]  #: (n,)
    to: U8  #: (n, 20)
    to_valid: U8  #: (n,) 0 = contract creation
    value: U8  #: (n, 32) wei, big-endian
    gas_limit: NDArray[np.uint64]  #: (n,)
    max_fee: NDArray[np.uint64]  #: (n,) wei per gas
    priority: NDArray[np.uint64]  #: (n,) wei per gas
    priority_valid: U8  #: (n,)
    data_offsets: NDArray[np.int32]  #: (n + 1,)
    data: U8  #: (data_offsets[n],)
    list_valid: U8  #: (n,) 0 = no access list
    list_offsets: NDArray[np.int32]  #: (n + 1,) into addresses
    addresses: U8  #: (m, 20)
    key_offsets: NDArray[np.int32]  #: (m + 1,) into storage_keys
    storage_keys: U8  #: (k, 32)
    defect: U8  #: (n,)

    @classmethod
    def of(cls, rows: pa.RecordBatch) -> Columns:
        """The columns of a record batch of ethereum.batch.COLUMNS."""
        to, to_valid = _nullable(_fixed(rows.column("to"), 20), rows.column("to"))
        tips = rows.column("max_priority_fee_per_gas")
        priority, priority_valid = _nullable(_numbers(tips, np.uint64), tips)
        data_offsets, data = _binary(rows.column("data"))
        lists = rows.column("access_list")
        list_offsets, entries = _list(lists)
        key_offsets, keys = _list(entries.field("storage_keys"))
        return cls(
            tx_id=_numbers(rows.column("tx_id"), np.int64),
            type=_numbers(rows.column("type"), np.uint8),
            chain_id=_numbers(rows.column("chain_id"), np.uint64),
            to=to,
            to_valid=to_valid,
            value=_fixed(rows.column("value"), 32),
            gas_limit=_numbers(rows.column("gas_limit"), np.uint64),
            max_fee=_numbers(rows.column("max_fee_per_gas"), np.uint64),
            priority=priority,
            priority_valid=priority_valid,
            data_offsets=data_offsets,
            data=data,
            list_valid=_valid(lists),
            list_offsets=list_offsets,
            addresses=_fixed(entries.field("address"), 20),
            key_offsets=key_offsets,
            storage_keys=_fixed(keys, 32),
            defect=_numbers(rows.column("defect"), np.uint8),
        )


class Extras(NamedTuple):
    """What blob and set-code transactions have beside Columns, of the same n rows. As strict as those."""

    blob_fee: NDArray[np.uint64]  #: (n,) wei per blob gas
    blob_fee_valid: U8  #: (n,)
    blobs_valid: U8  #: (n,) 0 = no list of blobs
    blob_offsets: NDArray[np.int32]  #: (n + 1,) into blob_hashes
    blob_hashes: U8  #: (m, 32)
    auths_valid: U8  #: (n,) 0 = no list of authorizations
    auth_offsets: NDArray[np.int32]  #: (n + 1,) into the arrays below
    auth_chain_ids: NDArray[np.uint64]  #: (k,)
    auth_addresses: U8  #: (k, 20)
    auth_nonces: NDArray[np.uint64]  #: (k,)
    auth_parities: U8  #: (k,)
    auth_r: U8  #: (k, 32) big-endian
    auth_s: U8  #: (k, 32) big-endian

    @classmethod
    def of(cls, rows: pa.RecordBatch) -> Extras:
        """Of a record batch of ethereum.batch.WIDE."""
        fees = rows.column("max_fee_per_blob_gas")
        blob_fee, blob_fee_valid = _nullable(_numbers(fees, np.uint64), fees)
        blobs, auths = rows.column("blob_hashes"), rows.column("authorization_list")
        blob_offsets, hashes = _list(blobs)
        auth_offsets, entries = _list(auths)
        return cls(
            blob_fee=blob_fee,
            blob_fee_valid=blob_fee_valid,
            blobs_valid=_valid(blobs),
            blob_offsets=blob_offsets,
            blob_hashes=_fixed(hashes, 32),
            auths_valid=_valid(auths),
            auth_offsets=auth_offsets,
            auth_chain_ids=_numbers(entries.field("chain_id"), np.uint64),
            auth_addresses=_fixed(entries.field("address"), 20),
            auth_nonces=_numbers(entries.field("nonce"), np.uint64),
            auth_parities=_numbers(entries.field("y_parity"), np.uint8),
            auth_r=_fixed(entries.field("r"), 32),
            auth_s=_fixed(entries.field("s"), 32),
        )

    @classmethod
    def none(cls, count: int) -> Extras:
        """Of rows that have none of it."""
        zeros, no_bytes = _frozen(np.zeros(count, np.uint8)), np.zeros(0, np.uint8)
        wide, offsets, no_words = np.zeros(count, np.uint64), np.zeros(count + 1, np.int32), np.zeros(0, np.uint64)
        hashes, addresses = _frozen(no_bytes.reshape(0, 32)), _frozen(no_bytes.reshape(0, 20))
        lists = zeros, _frozen(offsets)
        authorizations = _frozen(no_words), addresses, _frozen(no_words), _frozen(no_bytes), hashes, hashes
        return cls(_frozen(wide), zeros, *lists, hashes, *lists, *authorizations)


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Contiguous and read-only, so that compiled loops see one type of array."""
    array = np.ascontiguousarray(array)
    array.flags.writeable = False
    return array


def _valid(array: Array) -> U8:
    if array.null_count == 0:
        return _frozen(np.ones(len(array), np.uint8))
    return _frozen(array.is_valid().to_numpy(zero_copy_only=False).astype(np.uint8))


def _raw(buffer: Any, dtype: Any, start: int, count: int) -> NDArray[Any]:
    # Arrow lets an array of no rows do without any buffer, even that of the first offset.
    if buffer is None or buffer.size == 0 or count == 0:
        return np.zeros(count, dtype)
    values: NDArray[Any] = np.frombuffer(buffer, dtype, count=count, offset=start * np.dtype(dtype).itemsize)
    return values


def _numbers(array: Array, dtype: Any) -> NDArray[Any]:
    return _frozen(_raw(array.buffers()[1], dtype, array.offset, len(array)))


def _fixed(array: Array, width: int) -> U8:
    raw = _raw(array.buffers()[1], np.uint8, array.offset * width, len(array) * width)
    return _frozen(raw.reshape(len(array), width))


def _nullable(values: NDArray[Any], array: Array) -> tuple[NDArray[Any], U8]:
    """The values with zeros under nulls, and which are valid."""
    valid = _valid(array)
    if array.null_count:
        values = values.copy()
        values[valid == 0] = 0
    return _frozen(values), valid


def _binary(array: Array) -> tuple[NDArray[np.int32], U8]:
    """Of a column without nulls."""
    offsets = _raw(array.buffers()[1], np.int32, array.offset, len(array) + 1)
    start, end = int(offsets[0]), int(offsets[-1])
    return _frozen(offsets - np.int32(start)), _frozen(_raw(array.buffers()[2], np.uint8, start, end - start))


def _list(array: Array) -> tuple[NDArray[np.int32], Array]:
    """Offsets, and the elements of which they speak. A null is an empty stretch, whatever lies under it."""
    lengths = np.diff(_raw(array.buffers()[1], np.int32, array.offset, len(array) + 1))
    offsets = np.zeros(len(array) + 1, np.int32)
    np.cumsum(np.where(_valid(array) == 1, lengths, 0), out=offsets[1:])
    return _frozen(offsets), array.flatten()

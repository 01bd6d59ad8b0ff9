"""Rows as Postgres gives them → the columns of a batch.

Total: every row comes out, and what fits no column is a defect. Deterministic, because a batch may have to be built a
second time from the same rows and must have the same digest.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.ethereum.batch import ACCESS_LIST, COLUMNS
from pipeline.ethereum.columns import U8, Array
from pipeline.ethereum.compiled import compiled
from pipeline.ethereum.reasons import Reason
from pipeline.ethereum.validity import DATA_MAX_BYTES

CURSOR: Final = pa.schema([pa.field("created_xid", pa.int64()), pa.field("id", pa.int64())])

RAW: Final = (
    "created_xid",
    "id",
    "type",
    "chain_id",
    "to",
    "value",
    "gas_limit",
    "max_fee_per_gas",
    "max_priority_fee_per_gas",
    "data",
    "access_list",
)
"""Columns of the source query: numbers as bigint or, where they may be larger, as decimal text; JSON as text."""

ADDRESS_BYTES: Final = 20
KEY_BYTES: Final = 32
ACCESS_LIST_KEYS_MAX: Final = 4_096
"""Addresses and keys together, at 36 bytes each close to the size that a transaction pool takes at the most."""

TYPE_UNKNOWN: Final = 255


def batch_columns(raw: pa.Table) -> pa.Table:
    """`created_xid, id` and then ethereum.batch.COLUMNS, row by row as in `raw` (columns RAW)."""
    defect = np.zeros(raw.num_rows, np.uint8)
    column = {name: _one(raw, name) for name in RAW}
    value = _scalars(column["value"])
    fee, fee_ok = _u64(column["max_fee_per_gas"])
    tip, tip_ok = _u64(column["max_priority_fee_per_gas"])
    tip_null = _nulls(column["max_priority_fee_per_gas"])
    gas, gas_ok = _bigint(column["gas_limit"], 0, 2**63 - 1)
    chain, chain_ok = _bigint(column["chain_id"], 0, 2**63 - 1)
    kind, kind_ok = _bigint(column["type"], 0, TYPE_UNKNOWN)
    to, to_ok = _recipients(column["to"])
    lists, lists_ok = _access_lists(column["access_list"])
    data, data_ok = _payloads(column["data"])
    for ok, reason in (
        (data_ok, Reason.DATA_TOO_LARGE),
        (lists_ok, Reason.ACCESS_LIST_MALFORMED),
        (gas_ok, Reason.GAS_LIMIT_OUT_OF_RANGE),
        (fee_ok & (tip_ok | tip_null), Reason.FEE_OUT_OF_RANGE),
        (value[1], Reason.VALUE_OUT_OF_RANGE),
        (to_ok, Reason.TO_MALFORMED),
        (kind_ok, Reason.UNKNOWN_TYPE),
        (chain_ok, Reason.CHAIN_ID_MISMATCH),
    ):
        defect[~ok] = int(reason)  # the last one that applies names the row
    arrays: list[Array] = [
        column["created_xid"].cast(pa.int64()),
        column["id"].cast(pa.int64()),
        column["id"].cast(pa.int64()),
        pa.array(np.where(kind_ok, kind, TYPE_UNKNOWN).astype(np.uint8)),
        pa.array(chain.astype(np.uint64)),
        to,
        _fixed(value[0], KEY_BYTES),
        pa.array(gas.astype(np.uint64)),
        pa.array(fee),
        pa.array(tip, mask=tip_null | ~tip_ok),
        data,
        lists,
        pa.array(defect),
    ]
    return pa.Table.from_arrays(arrays, schema=pa.schema([*CURSOR, *COLUMNS]))


def _one(raw: pa.Table, name: str) -> Array:
    combined = raw.column(name).combine_chunks()
    array = combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _nulls(array: Array) -> NDArray[np.bool_]:
    nulls: NDArray[np.bool_] = array.is_null().to_numpy(zero_copy_only=False)
    return nulls


def _fixed(values: U8, width: int) -> Array:
    return pa.Array.from_buffers(pa.binary(width), len(values), [None, pa.py_buffer(np.ascontiguousarray(values).data)])


def _bigint(array: Array, low: int, high: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    numbers = pc.fill_null(array.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    ok = ~_nulls(array) & (numbers >= low) & (numbers <= high)
    return np.where(ok, numbers, 0), ok


def _scalars(text: Array) -> tuple[U8, NDArray[np.bool_]]:
    """Decimal text → 32 big-endian bytes, and whether it is a whole number below 2^256."""
    if len(text) == 0:
        return np.zeros((0, KEY_BYTES), np.uint8), np.zeros(0, np.bool_)
    strings = pc.fill_null(text.cast(pa.large_string()), "")
    offsets = np.frombuffer(strings.buffers()[1], np.int64, len(strings) + 1, strings.offset * 8)
    body = strings.buffers()[2]
    digits = np.frombuffer(body, np.uint8) if body is not None and body.size else np.zeros(1, np.uint8)
    out = np.zeros((len(strings), KEY_BYTES), np.uint8)
    ok = np.zeros(len(strings), np.uint8)
    _parse(offsets, digits, out, ok)
    return out, ok == 1


def _u64(text: Array) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    wide, ok = _scalars(text)
    fits = ok & ~wide[:, :24].any(axis=1)
    low: NDArray[np.uint64] = np.ascontiguousarray(wide[:, 24:]).view(">u8").reshape(-1).astype(np.uint64)
    return np.where(fits, low, np.uint64(0)), fits


@compiled
def _push(limbs: Any, digit: Any) -> Any:
    """Times ten plus the ASCII digit; whether it is a digit, and the result below 2^256."""
    if digit < 48 or digit > 57:
        return False
    carry = np.uint64(digit - 48)
    for limb in range(8):
        word = limbs[limb] * np.uint64(10) + carry
        limbs[limb] = word & np.uint64(0xFFFFFFFF)
        carry = word >> np.uint64(32)
    return carry == np.uint64(0)


@compiled
def _parse(offsets: Any, digits: Any, out: Any, ok: Any) -> None:
    """Schoolbook: eight 32-bit limbs, times ten plus the digit; a carry out of the last limb is 2^256 or more."""
    limbs = np.zeros(8, np.uint64)
    for row in range(len(ok)):
        limbs[:] = 0
        good = offsets[row + 1] > offsets[row]
        for i in range(offsets[row], offsets[row + 1]):
            good = good and _push(limbs, digits[i])
        if good:
            ok[row] = 1
            for limb in range(8):
                for byte in range(4):
                    out[row, 31 - 4 * limb - byte] = (limbs[limb] >> np.uint64(8 * byte)) & np.uint64(0xFF)


def _recipients(array: Array) -> tuple[Array, NDArray[np.bool_]]:
    """20-byte addresses; null creates a contract. Another length is a defect, never a creation."""
    sizes: Array = pc.binary_length(array)
    lengths = pc.fill_null(sizes, ADDRESS_BYTES).to_numpy(zero_copy_only=False)
    ok = lengths == ADDRESS_BYTES
    if not ok.all():
        array = pc.if_else(pa.array(ok), array, pa.scalar(bytes(ADDRESS_BYTES), array.type))
    return array.cast(pa.binary(ADDRESS_BYTES)), ok


def _payloads(array: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Data; what no pool would take is left out of the batch, so that one row cannot outgrow a record."""
    data = pc.fill_null(array.cast(pa.binary()), b"")
    ok = pc.binary_length(data).to_numpy(zero_copy_only=False) <= DATA_MAX_BYTES
    if not ok.all():
        data = pc.if_else(pa.array(ok), data, pa.scalar(b"", pa.binary()))
    return data, ok


def _access_lists(array: Array) -> tuple[Array, NDArray[np.bool_]]:
    ok = np.ones(len(array), np.bool_)
    if array.null_count == len(array):
        return pa.nulls(len(array), ACCESS_LIST), ok
    lists: list[list[dict[str, Any]] | None] = [None] * len(array)
    for row in np.flatnonzero(~_nulls(array)):
        lists[row] = parsed = access_list(array[int(row)].as_py())
        ok[row] = parsed is not None
    return pa.array(lists, ACCESS_LIST), ok


def access_list(text: str) -> list[dict[str, Any]] | None:
    """`[{"address": "0x…", "storageKeys": ["0x…", …]}, …]` as bytes; None when it is anything else."""
    try:
        entries = orjson.loads(text)
        if not isinstance(entries, list):
            return None
        parsed = [_entry(entry) for entry in entries]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    size = len(parsed) + sum(len(entry["storage_keys"]) for entry in parsed)
    return parsed if size <= ACCESS_LIST_KEYS_MAX else None


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    if entry.keys() != {"address", "storageKeys"} or not isinstance(entry["storageKeys"], list):
        raise ValueError("not an access list entry")
    keys = [_hex(key, KEY_BYTES) for key in entry["storageKeys"]]
    return {"address": _hex(entry["address"], ADDRESS_BYTES), "storage_keys": keys}


def _hex(text: str, width: int) -> bytes:
    if not text.startswith("0x") or len(text) != 2 + 2 * width:
        raise ValueError("not hex of the right width")
    value = bytes.fromhex(text[2:])
    if len(value) != width:  # fromhex skips blanks
        raise ValueError("not hex of the right width")
    return value

"""Rows as Postgres gives them → the columns of a batch.

Total: every row comes out, and what fits no column is a defect. Deterministic, because a batch may have to be built a
second time from the same rows and must have the same digest.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.ethereum.batch import ACCESS_LIST, AUTHORIZATION, BLOB_TYPE, SET_CODE_TYPE, WIDE
from pipeline.ethereum.columns import U8, Array
from pipeline.ethereum.reasons import Reason
from pipeline.ethereum.rules import DATA_MAX_BYTES

T = TypeVar("T")

CURSOR: Final = pa.schema([pa.field("created_xid", pa.int64()), pa.field("id", pa.int64())])
SENDER: Final[pa.Field[Any]] = pa.field("sender", pa.binary(20))
"""Who must sign the row; null = any key of the pool."""

REQUIRED: Final = (
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
OPTIONAL: Final = ("sender", "max_fee_per_blob_gas", "blob_hashes", "authorization_list")
"""What a source may lack: then it is null."""

RAW: Final = (*REQUIRED, *OPTIONAL)
"""Columns of the source query: numbers as bigint or, where they may be larger, as decimal text; JSON as text."""

ADDRESS_BYTES: Final = 20
KEY_BYTES: Final = 32
ACCESS_LIST_KEYS_MAX: Final = 4_096
"""Addresses and keys together, at 36 bytes each close to the size that a transaction pool takes at the most."""

BLOB_HASHES: Final = WIDE.field("blob_hashes").type
AUTHORIZATIONS: Final = pa.list_(AUTHORIZATION)
QUANTITY: Final = re.compile(r"0x[0-9a-fA-F]{1,64}")

BLOBS_MAX: Final = 64
AUTHORIZATIONS_MAX: Final = 1_024
"""More than a block has room for (EIP-7594, EIP-7702); more than these are not even read."""

TYPE_UNKNOWN: Final = 255


def batch_columns(raw: pa.Table) -> pa.Table:
    """`created_xid, id, sender` and then ethereum.batch.WIDE, row by row as in `raw` (columns RAW)."""
    defect = np.zeros(raw.num_rows, np.uint8)
    column = {name: _one(raw, name) for name in RAW}
    value = _scalars(column["value"])
    fee, fee_ok = _u64(column["max_fee_per_gas"])
    tip, tip_ok, tip_null = _fee(column["max_priority_fee_per_gas"])
    blob_fee, blob_fee_ok, blob_fee_null = _fee(column["max_fee_per_blob_gas"])
    gas, gas_ok = _bigint(column["gas_limit"], 0, 2**63 - 1)
    chain, chain_ok = _bigint(column["chain_id"], 0, 2**63 - 1)
    kind, kind_ok = _bigint(column["type"], 0, TYPE_UNKNOWN)
    to, to_ok = _recipients(column["to"])
    sender, sender_ok = _senders(column["sender"])
    lists, lists_ok = _parsed(column["access_list"], access_list, ACCESS_LIST)
    blobs, blobs_ok = _parsed(column["blob_hashes"], blob_hashes, BLOB_HASHES)
    auths, auths_ok = _parsed(column["authorization_list"], authorization_list, AUTHORIZATIONS)
    data, data_ok = _payloads(column["data"])
    for ok, reason in (
        (data_ok, Reason.DATA_TOO_LARGE),
        (auths_ok, Reason.AUTHORIZATIONS_MALFORMED),
        (blobs_ok, Reason.BLOBS_MALFORMED),
        (lists_ok, Reason.ACCESS_LIST_MALFORMED),
        (gas_ok, Reason.GAS_LIMIT_OUT_OF_RANGE),
        (fee_ok & tip_ok & blob_fee_ok, Reason.FEE_OUT_OF_RANGE),
        (value[1], Reason.VALUE_OUT_OF_RANGE),
        (to_ok, Reason.TO_MALFORMED),
        (sender_ok, Reason.SENDER_MALFORMED),
        (kind_ok, Reason.UNKNOWN_TYPE),
        (chain_ok, Reason.CHAIN_ID_MISMATCH),
    ):
        defect[~ok] = int(reason)  # the last one that applies names the row
    arrays: list[Array] = [
        column["created_xid"].cast(pa.int64()),
        column["id"].cast(pa.int64()),
        sender,
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
        pa.array(blob_fee, mask=blob_fee_null | ~blob_fee_ok),
        blobs,
        auths,
    ]
    return pa.Table.from_arrays(arrays, schema=pa.schema([*CURSOR, SENDER, *WIDE]))


def needs_wide(rows: pa.RecordBatch) -> bool:
    """Whether only a wide batch can say what these rows (columns SENDER and WIDE) are."""
    named: list[Any] = [rows.column(name) for name in OPTIONAL]
    if any(array.null_count < len(array) for array in named):
        return True
    kinds: Any = rows.column("type")
    return bool(np.isin(kinds.to_numpy(), (BLOB_TYPE, SET_CODE_TYPE)).any())


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


def parser() -> Callable[[Any, Any, Any, Any], None]:
    """Of decimal numbers. It loads numba, a quarter of a second that processes without rows should not spend."""
    from pipeline.ethereum.decimals import parse  # noqa: PLC0415

    return parse


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
    parser()(offsets, digits, out, ok)
    return out, ok == 1


def _u64(text: Array) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    wide, ok = _scalars(text)
    fits = ok & ~wide[:, :24].any(axis=1)
    low: NDArray[np.uint64] = np.ascontiguousarray(wide[:, 24:]).view(">u8").reshape(-1).astype(np.uint64)
    return np.where(fits, low, np.uint64(0)), fits


def _fee(array: Array) -> tuple[NDArray[np.uint64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Of an optional column: the numbers, which are good or null, which are null."""
    null = _nulls(array)
    if null.all():
        return np.zeros(len(array), np.uint64), null, null
    fee, ok = _u64(array)
    return fee, ok | null, null


def _senders(array: Array) -> tuple[Array, NDArray[np.bool_]]:
    """20-byte addresses or null; what has another length is null, and a defect."""
    if array.null_count == len(array):
        return pa.nulls(len(array), SENDER.type), np.ones(len(array), np.bool_)
    sizes: Array = pc.binary_length(array)
    ok = pc.fill_null(sizes, ADDRESS_BYTES).to_numpy(zero_copy_only=False) == ADDRESS_BYTES
    return pc.if_else(pa.array(ok), array, pa.scalar(None, array.type)).cast(SENDER.type), ok


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


def _parsed(array: Array, parse: Callable[[str], list[Any] | None], kind: Any) -> tuple[Array, NDArray[np.bool_]]:
    """JSON lists as Arrow ones of a type; null stays null, and what does not parse is null and a defect."""
    ok = np.ones(len(array), np.bool_)
    if array.null_count == len(array):
        return pa.nulls(len(array), kind), ok
    lists: list[list[Any] | None] = [None] * len(array)
    for row in np.flatnonzero(~_nulls(array)):
        lists[row] = parsed = parse(array[int(row)].as_py())
        ok[row] = parsed is not None
    return pa.array(lists, kind), ok


def access_list(text: str) -> list[dict[str, Any]] | None:
    """`[{"address": "0x…", "storageKeys": ["0x…", …]}, …]` as bytes; None when it is anything else."""
    entries = _list(text, _entry)
    size = sum(1 + len(entry["storage_keys"]) for entry in entries or ())
    return entries if size <= ACCESS_LIST_KEYS_MAX else None


def blob_hashes(text: str) -> list[bytes] | None:
    """`["0x…", …]` of 32 bytes each; None when it is anything else, or more than BLOBS_MAX."""
    hashes = _list(text, lambda item: _hex(item, KEY_BYTES))
    return hashes if hashes is not None and len(hashes) <= BLOBS_MAX else None


def authorization_list(text: str) -> list[dict[str, Any]] | None:
    """`[{"chainId", "address", "nonce", "yParity", "r", "s"}, …]`, numbers as 0x hex or JSON integers (EIP-7702).

    None when it is anything else, or more than AUTHORIZATIONS_MAX.
    """
    signed = _list(text, _authorization)
    return signed if signed is not None and len(signed) <= AUTHORIZATIONS_MAX else None


def _list(text: str, read: Callable[[Any], T]) -> list[T] | None:
    try:
        items = orjson.loads(text)
        return [read(item) for item in items] if isinstance(items, list) else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    if entry.keys() != {"address", "storageKeys"} or not isinstance(entry["storageKeys"], list):
        raise ValueError("not an access list entry")
    keys = [_hex(key, KEY_BYTES) for key in entry["storageKeys"]]
    return {"address": _hex(entry["address"], ADDRESS_BYTES), "storage_keys": keys}


def _authorization(item: dict[str, Any]) -> dict[str, Any]:
    if item.keys() != {"chainId", "address", "nonce", "yParity", "r", "s"}:
        raise ValueError("not an authorization")
    return {
        "chain_id": _quantity(item["chainId"], 8),
        "address": _hex(item["address"], ADDRESS_BYTES),
        "nonce": _quantity(item["nonce"], 8),
        "y_parity": _quantity(item["yParity"], 1),
        "r": _quantity(item["r"], KEY_BYTES).to_bytes(KEY_BYTES, "big"),
        "s": _quantity(item["s"], KEY_BYTES).to_bytes(KEY_BYTES, "big"),
    }


def _quantity(item: Any, width: int) -> int:
    """A number of at most `width` bytes, as nodes write it (0x hex) or as a JSON integer."""
    if isinstance(item, bool) or not isinstance(item, str | int):
        raise TypeError("not a number")
    if isinstance(item, str) and not QUANTITY.fullmatch(item):
        raise ValueError("not a 0x number")
    number = item if isinstance(item, int) else int(item, 16)
    if number < 0 or number >> (8 * width):
        raise ValueError("a number is out of range")
    return number


def _hex(text: str, width: int) -> bytes:
    if not text.startswith("0x") or len(text) != 2 + 2 * width:
        raise ValueError("not hex of the right width")
    value = bytes.fromhex(text[2:])
    if len(value) != width:  # fromhex skips blanks
        raise ValueError("not hex of the right width")
    return value

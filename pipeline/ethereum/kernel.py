"""The signing kernel: a batch's columns in, signed bytes and transaction hashes out, in one loop without the GIL.

| type | what is hashed and signed | what goes on the wire | hash |
|---|---|---|---|
| 0 legacy (EIP-155) | rlp([nonce, gas price, gas, to, value, data, chain id, 0, 0]) | rlp([… data, v, r, s]), v = 35 + 2·chain id + y | keccak of the wire bytes |
| 1 access list (EIP-2930) | 0x01 ‖ rlp([chain id, nonce, gas price, gas, to, value, data, access list]) | 0x01 ‖ rlp([…, y, r, s]) | as above |
| 2 fee market (EIP-1559) | 0x02 ‖ rlp([chain id, nonce, priority fee, fee cap, gas, to, value, data, access list]) | 0x02 ‖ rlp([…, y, r, s]) | as above |

`sign` does not validate: it takes the rows that validity.judge left. It does not choose nonces: row k of the signable
rows gets first_nonce + k. It does not check its own work: ethereum.check does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from pipeline.ethereum.batch import COLUMNS, Batch, BatchHeader
from pipeline.ethereum.columns import U8, Columns
from pipeline.ethereum.keccak import RATE_BYTES, keccak_in_place
from pipeline.ethereum.rlp import copy, put_access_list, put_length, put_scalar, put_string, put_uint
from pipeline.ethereum.secp256k1 import LIBRARY, SIGNATURE_STRUCT_BYTES, sign_hash
from pipeline.stream import START, Stream

ROW_BYTES_MAX: Final = 320
"""More than any transaction takes beside its data and access list: type byte, list and string headers, five scalars of
up to 33 bytes, an address, and the signature."""

ENTRY_BYTES_MAX: Final = 32
KEY_BYTES: Final = 33


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


def sign(batch: Batch, signable: NDArray[np.bool_], secret: bytes | bytearray, first_nonce: int) -> SignedColumns:
    """Sign the signable rows with consecutive nonces.

    Args:
        batch: n rows.
        signable: (n,), False for rows that are rejected.
        secret: 32 bytes; copied into a buffer that is zeroed before this returns.
        first_nonce: of the first signable row.
    """
    key = np.frombuffer(bytes(32), np.uint8).copy()
    key[:] = np.frombuffer(secret, np.uint8)
    try:
        return _sign(batch.columns, np.flatnonzero(signable), key, first_nonce, batch.header.chain_id)
    finally:
        key[:] = 0


def warm() -> None:
    """Compile the loop, or load it from numba's cache beside this file: 0.5 s instead of some seconds."""
    nothing = pa.RecordBatch.from_pylist(
        [
            {
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
        ],
        schema=COLUMNS,
    )
    header = BatchHeader(Stream("warm", 0), 1, START, START, 1, "")
    sign(Batch.build(header, nothing), np.ones(1, np.bool_), (1).to_bytes(32, "big"), 0)


def _sign(c: Columns, rows: NDArray[np.int64], key: U8, first_nonce: int, chain_id: int) -> SignedColumns:
    count = len(rows)
    longest = int(_sizes(c, rows).max(initial=0))
    hashes = np.zeros((count, 32), np.uint8)
    offsets = np.zeros(count + 1, np.int32)
    raw = np.empty(int(_sizes(c, rows).sum()), np.uint8)
    failed = np.zeros(count, np.uint8)
    words = np.zeros((2, (longest + 2 * RATE_BYTES) // 8 + 1), np.uint64)
    body = np.zeros(longest + RATE_BYTES, np.uint8)
    _sign_rows(
        LIBRARY, key, rows, np.uint64(first_nonce), np.uint64(chain_id),
        c.type, c.to.reshape(-1), c.to_valid, c.value.reshape(-1), c.gas_limit, c.max_fee, c.priority,
        c.data_offsets, c.data, c.list_offsets, c.addresses.reshape(-1), c.key_offsets, c.storage_keys.reshape(-1),
        words[0], words[0].view(np.uint8), words[1], words[1].view(np.uint8), body,
        hashes, offsets, raw, failed,
    )  # fmt: skip
    nonce = np.arange(count, dtype=np.uint64) + np.uint64(first_nonce)
    return SignedColumns(
        c.tx_id[rows], np.ones(count, np.uint8), nonce, hashes, offsets, raw[: offsets[-1]].copy(), failed
    )


def _sizes(c: Columns, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """An upper bound of each row's signed bytes."""
    data = np.diff(c.data_offsets).astype(np.int64)[rows]
    entries = np.diff(c.list_offsets).astype(np.int64)[rows]
    keys = np.diff(c.key_offsets[c.list_offsets].astype(np.int64))[rows]
    bound: NDArray[np.int64] = data + entries * ENTRY_BYTES_MAX + keys * KEY_BYTES + ROW_BYTES_MAX
    return bound


@njit(nogil=True, cache=True)
def _put_fields(
    out, kind, nonce, chain_id, row, to, to_valid, value, gas_limit, max_fee, priority,
    data_offsets, data, list_offsets, addresses, key_offsets, keys,
):  # type: ignore[no-untyped-def] # numba infers the types  # fmt: skip  # noqa: ANN001, ANN202, PLR0913, PLR0917
    """The fields that the unsigned and the signed form share; their length."""
    pos = 0
    if kind != 0:
        pos = put_uint(out, pos, chain_id)
    pos = put_uint(out, pos, nonce)
    if kind == 2:
        pos = put_uint(out, pos, priority[row])
    pos = put_uint(out, pos, max_fee[row])
    pos = put_uint(out, pos, gas_limit[row])
    pos = put_string(out, pos, to, row * 20, row * 20 + (20 if to_valid[row] else 0))
    pos = put_scalar(out, pos, value, row * 32)
    pos = put_string(out, pos, data, data_offsets[row], data_offsets[row + 1])
    if kind != 0:
        pos = put_access_list(out, pos, addresses, key_offsets, keys, list_offsets[row], list_offsets[row + 1])
    return pos


@njit(nogil=True, cache=True)
def _assemble(out, kind, body, body_length, tail, tail_length):  # type: ignore[no-untyped-def] # as above  # noqa: ANN001, ANN202, PLR0913, PLR0917
    """`[type ‖] rlp list of (body ‖ tail)`; its length."""
    pos = 0
    if kind != 0:
        out[0] = kind
        pos = 1
    pos = put_length(out, pos, body_length + tail_length, 0xC0)
    pos = copy(out, pos, body, body_length)
    return copy(out, pos, tail, tail_length)


@njit(nogil=True, cache=True)
def _sign_rows(
    library, key, rows, first_nonce, chain_id, kinds, to, to_valid, value, gas_limit, max_fee, priority,
    data_offsets, data, list_offsets, addresses, key_offsets, keys,
    unsigned_words, unsigned, signed_words, signed, body, hashes, offsets, raw, failed,
):  # type: ignore[no-untyped-def] # as above  # fmt: skip  # noqa: ANN001, ANN202, PLR0913, PLR0917
    state = np.zeros(25, np.uint64)
    message = state.view(np.uint8)
    struct = np.zeros(SIGNATURE_STRUCT_BYTES, np.uint8)
    compact = np.zeros(64, np.uint8)
    recovery_id = np.zeros(1, np.int32)
    tail = np.zeros(96, np.uint8)
    end = 0
    for k in range(len(rows)):
        row = rows[k]
        kind = kinds[row]
        nonce = first_nonce + np.uint64(k)
        length = _put_fields(
            body, kind, nonce, chain_id, row, to, to_valid, value, gas_limit, max_fee, priority,
            data_offsets, data, list_offsets, addresses, key_offsets, keys,
        )  # fmt: skip
        tail_length = 0
        if kind == 0:
            tail_length = put_uint(tail, 0, chain_id)
            tail[tail_length] = 0x80
            tail[tail_length + 1] = 0x80
            tail_length += 2
        size = _assemble(unsigned, kind, body, length, tail, tail_length)
        keccak_in_place(unsigned, unsigned_words, size, state)
        if sign_hash(library, struct, message, key, compact, recovery_id) != 1:
            failed[k] = 1
            offsets[k + 1] = end
            continue
        parity = np.uint64(recovery_id[0])
        v = parity if kind != 0 else np.uint64(35) + np.uint64(2) * chain_id + parity
        tail_length = put_uint(tail, 0, v)
        tail_length = put_scalar(tail, tail_length, compact, 0)
        tail_length = put_scalar(tail, tail_length, compact, 32)
        size = _assemble(signed, kind, body, length, tail, tail_length)
        for i in range(size):
            raw[end + i] = signed[i]
        end += size
        offsets[k + 1] = end
        keccak_in_place(signed, signed_words, size, state)
        for i in range(32):
            hashes[k, i] = message[i]

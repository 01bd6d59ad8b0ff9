"""The signing kernel: a batch's columns in, signed bytes and transaction hashes out, in one call without the GIL.

| type | fields F | what is hashed and signed | on the wire, and hashed |
|---|---|---|---|
| 0 legacy (EIP-155) | nonce, gas price, G | rlp(F, chain id, 0, 0) | rlp(F, v, r, s) |
| 1 access list (EIP-2930) | chain id, nonce, gas price, G, access list | 0x01 ‖ rlp(F) | 0x01 ‖ rlp(F, y, r, s) |
| 2 fee market (EIP-1559) | H | 0x02 ‖ rlp(F) | 0x02 ‖ rlp(F, y, r, s) |
| 3 blob (EIP-4844) | H, blob fee cap, blob hashes | 0x03 ‖ rlp(F) | 0x03 ‖ rlp(F, y, r, s) |
| 4 set code (EIP-7702) | H, authorizations | 0x04 ‖ rlp(F) | 0x04 ‖ rlp(F, y, r, s) |

G is gas limit, to, value, data, and H is chain id, nonce, tip, fee cap, G, access list; y is the parity of the
signature's point, and v = 35 + 2 · chain id + y. F is written once, and what differs is put around it. A blob
transaction is signed without the blobs: what a pool takes beside it, EIP-4844's network wrapper, is not hashed.

`sign` does not validate: it takes the rows that validity.judge left. It does not choose nonces: row k of the signable
rows gets first_nonce + k. It does not check its own work: ethereum.check does.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SigningRefused
from pipeline.ethereum.batch import Batch, specimen
from pipeline.ethereum.columns import U8, Columns, Extras
from pipeline.ethereum.compiled import compiled
from pipeline.ethereum.keccak import HASH_WORDS, RATE_BYTES, hash_messages
from pipeline.ethereum.memory import copy_bytes
from pipeline.ethereum.rlp import (
    WORD_SIZE,
    length_size,
    put_access_list,
    put_authorizations,
    put_length,
    put_scalar,
    put_string,
    put_uint,
    put_words,
)
from pipeline.ethereum.secp256k1 import LIBRARY, SIGNATURE_STRUCT_BYTES, sign_hash
from pipeline.ethereum.signed import SignedColumns
from pipeline.ethereum.validity import judge

SECRET_BYTES: Final = 32
NONCE_END: Final = 2**64 - 1
"""The first number that is no nonce (EIP-2681)."""

HEAD_BYTES: Final = 8  # a type byte and a list header of up to 5 bytes
TAIL_BYTES: Final = 80  # v of up to 9 bytes, r and s of up to 33
FIELDS_BYTES: Final = 128  # six scalars of up to 9 bytes, an address, the value, the headers of data and two lists
ENTRY_BYTES: Final = 32  # an address and two list headers of up to 5 bytes
AUTHORIZATION_BYTES: Final = 112  # a list header of 2 bytes, two scalars of up to 9, one of 2, an address, r and s


class _Work(NamedTuple):
    """Scratch for k rows. Each has a stretch of `text` to itself, with room before its fields and behind them."""

    text: U8
    fields: NDArray[np.int64]  #: (k,) where a row's fields start in text
    ends: NDArray[np.int64]  #: (k,) where they end
    starts: NDArray[np.int64]  #: (k,) where the message starts
    lengths: NDArray[np.int64]  #: (k,) of the message
    hashes: NDArray[np.uint64]  #: (k, 4) of the message
    compact: U8  #: (k, 64) r ‖ s
    recovery_ids: NDArray[np.int32]  #: (k,)
    failed: U8  #: (k,)


def sign(batch: Batch, signable: NDArray[np.bool_], secret: bytes | bytearray, first_nonce: int) -> SignedColumns:
    """Sign the signable rows with consecutive nonces.

    Args:
        batch: n rows.
        signable: (n,), False for rows that are rejected.
        secret: 32 bytes; copied into a buffer that is zeroed before this returns.
        first_nonce: of the first signable row.

    Raises:
        SigningRefused: the secret is not 32 bytes, or the nonces leave their range.
    """
    chosen = np.flatnonzero(signable)
    if len(secret) != SECRET_BYTES:
        raise SigningRefused(f"a private key has {SECRET_BYTES} bytes.")
    if first_nonce < 0 or first_nonce + len(chosen) > NONCE_END:
        raise SigningRefused(f"{len(chosen)} nonces from {first_nonce} leave 0 … 2^64 - 2 (EIP-2681).")
    key = np.zeros(SECRET_BYTES, np.uint8)
    key[:] = np.frombuffer(secret, np.uint8)
    try:
        return _sign(batch, chosen, key, first_nonce)
    finally:
        key[:] = 0


def warm() -> None:
    """Compile all that a signer runs, or load it from numba's cache beside the source: 0.5 s instead of 20 s."""
    batch = specimen()
    judge(batch)
    sign(batch, np.ones(3, np.bool_), (1).to_bytes(SECRET_BYTES, "big"), 0)


def _sign(batch: Batch, chosen: NDArray[np.int64], key: U8, first_nonce: int) -> SignedColumns:
    c, x, count = batch.columns, batch.extras, len(chosen)
    work = _scratch(_sizes(c, x, chosen))
    offsets = np.zeros(count + 1, np.int32)
    raw = _sign_rows(
        LIBRARY, key, c, x, chosen, np.uint64(first_nonce), np.uint64(batch.header.chain_id), work, offsets
    )
    nonce = np.arange(count, dtype=np.uint64) + np.uint64(first_nonce)
    hashes = work.hashes.view(np.uint8)
    return SignedColumns(c.tx_id[chosen], np.ones(count, np.uint8), nonce, hashes, offsets, raw, work.failed)


def _sizes(c: Columns, x: Extras, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """An upper bound of the bytes of each row's fields."""
    data = np.diff(c.data_offsets)[chosen].astype(np.int64)
    entries = np.diff(c.list_offsets)[chosen].astype(np.int64)
    words = (np.diff(c.key_offsets[c.list_offsets]) + np.diff(x.blob_offsets))[chosen].astype(np.int64)
    authorizations = np.diff(x.auth_offsets)[chosen].astype(np.int64)
    lists: NDArray[np.int64] = entries * ENTRY_BYTES + words * WORD_SIZE + authorizations * AUTHORIZATION_BYTES
    return data + lists + FIELDS_BYTES


def _scratch(sizes: NDArray[np.int64]) -> _Work:
    count = len(sizes)
    room = np.cumsum(sizes + (HEAD_BYTES + TAIL_BYTES + RATE_BYTES))
    fields = np.zeros(count, np.int64)
    fields[1:] = room[:-1]
    fields += HEAD_BYTES
    return _Work(
        text=np.empty(int(room[-1]) if count else 0, np.uint8),
        fields=fields,
        ends=np.zeros(count, np.int64),
        starts=np.zeros(count, np.int64),
        lengths=np.zeros(count, np.int64),
        hashes=np.zeros((count, HASH_WORDS), np.uint64),
        compact=np.zeros((count, 64), np.uint8),
        recovery_ids=np.zeros(count, np.int32),
        failed=np.zeros(count, np.uint8),
    )


@compiled
def _sign_rows(  # noqa: PLR0913, PLR0917 - a compiled loop gets all it reads and writes as arguments
    library: Any,
    key: Any,
    rows: Any,
    extras: Any,
    chosen: Any,
    first_nonce: Any,
    chain_id: Any,
    work: Any,
    offsets: Any,
) -> Any:
    """Fill `work` and `offsets`; the signed bytes. Stage by stage, because each stage stays in cache by itself."""
    _put_unsigned(rows, extras, chosen, first_nonce, chain_id, work)
    hash_messages(work.text, work.starts, work.lengths, work.hashes)
    _sign_hashes(library, key, work.hashes, work.compact, work.recovery_ids, work.failed)
    _put_signed(rows, chosen, chain_id, work, offsets)
    hash_messages(work.text, work.starts, work.lengths, work.hashes)
    return _gathered(work, offsets)


@compiled
def _put_unsigned(rows: Any, extras: Any, chosen: Any, first_nonce: Any, chain_id: Any, work: Any) -> None:
    """The messages that are signed."""
    # Columns by name, once: a compiled loop that looks into the tuple pays for all of it in each row.
    kinds, to, to_valid, value, gas_limit = rows.type, rows.to, rows.to_valid, rows.value, rows.gas_limit
    max_fee, priority, data_offsets, data = rows.max_fee, rows.priority, rows.data_offsets, rows.data
    list_offsets, addresses, key_offsets, keys = rows.list_offsets, rows.addresses, rows.key_offsets, rows.storage_keys
    blob_fee, blob_offsets, blob_hashes = extras.blob_fee, extras.blob_offsets, extras.blob_hashes
    auth_offsets, chain_ids, targets = extras.auth_offsets, extras.auth_chain_ids, extras.auth_addresses
    nonces, parities, r, s = extras.auth_nonces, extras.auth_parities, extras.auth_r, extras.auth_s
    out, fields, ends, starts, lengths = work.text, work.fields, work.ends, work.starts, work.lengths
    for k in range(len(chosen)):
        row = chosen[k]
        kind = kinds[row]
        pos = fields[k]
        if kind != 0:
            pos = put_uint(out, pos, chain_id)
        pos = put_uint(out, pos, first_nonce + np.uint64(k))
        if kind >= 2:
            pos = put_uint(out, pos, priority[row])
        pos = put_uint(out, pos, max_fee[row])
        pos = put_uint(out, pos, gas_limit[row])
        pos = put_string(out, pos, to[row], 0, 20 if to_valid[row] else 0)
        pos = put_scalar(out, pos, value[row])
        pos = put_string(out, pos, data, data_offsets[row], data_offsets[row + 1])
        if kind != 0:
            pos = put_access_list(out, pos, addresses, key_offsets, keys, list_offsets[row], list_offsets[row + 1])
        if kind == 3:
            pos = put_uint(out, pos, blob_fee[row])
            pos = put_words(out, pos, blob_hashes, blob_offsets[row], blob_offsets[row + 1])
        if kind == 4:
            first, last = auth_offsets[row], auth_offsets[row + 1]
            pos = put_authorizations(out, pos, chain_ids, targets, nonces, parities, r, s, first, last)
        ends[k] = pos
        if kind == 0:
            pos = put_uint(out, pos, chain_id)
            out[pos] = 0x80
            out[pos + 1] = 0x80
            pos += 2
        starts[k] = _put_head(out, kind, fields[k], pos)
        lengths[k] = pos - starts[k]


@compiled
def _put_signed(rows: Any, chosen: Any, chain_id: Any, work: Any, offsets: Any) -> None:
    """The messages that go on the wire; of no bytes where there is no signature."""
    kinds, out, fields, ends = rows.type, work.text, work.fields, work.ends
    starts, lengths, failed = work.starts, work.lengths, work.failed
    compact, recovery_ids = work.compact, work.recovery_ids
    for k in range(len(chosen)):
        kind = kinds[chosen[k]]
        parity = np.uint64(recovery_ids[k])
        v = parity if kind != 0 else np.uint64(35) + np.uint64(2) * chain_id + parity
        pos = put_uint(out, ends[k], v)
        pos = put_scalar(out, pos, compact[k, :32])
        pos = put_scalar(out, pos, compact[k, 32:])
        starts[k] = _put_head(out, kind, fields[k], pos)
        lengths[k] = 0 if failed[k] else pos - starts[k]
        offsets[k + 1] = offsets[k] + lengths[k]


@compiled
def _put_head(out: Any, kind: Any, first: Any, end: Any) -> Any:
    """`[type ‖] list header` before the fields in first … end; where the message starts."""
    start = first - length_size(end - first)
    put_length(out, start, end - first, 0xC0)
    if kind != 0:
        start -= 1
        out[start] = kind
    return start


@compiled
def _sign_hashes(library: Any, key: Any, hashes: Any, compact: Any, recovery_ids: Any, failed: Any) -> None:
    struct = np.zeros(SIGNATURE_STRUCT_BYTES, np.uint8)
    for k in range(len(hashes)):
        failed[k] = sign_hash(library, struct, hashes[k], key, compact[k], recovery_ids[k : k + 1]) != 1


@compiled
def _gathered(work: Any, offsets: Any) -> Any:
    """The messages without the room between them; a row that failed has neither bytes nor a hash."""
    text, starts, lengths, hashes, failed = work.text, work.starts, work.lengths, work.hashes, work.failed
    raw = np.empty(offsets[-1], np.uint8)
    for k in range(len(starts)):
        copy_bytes(raw, offsets[k], text, starts[k], lengths[k])
        if failed[k]:
            for i in range(HASH_WORDS):
                hashes[k, i] = 0
    return raw

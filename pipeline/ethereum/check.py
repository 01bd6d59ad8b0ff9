"""A signer's look at its own work before it leaves: does this signature give back the sender?"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MalformedBatch, SigningRefused
from pipeline.ethereum.batch import Batch
from pipeline.ethereum.columns import Columns, Extras
from pipeline.ethereum.decoding import Authorizations, SignedTx, decode
from pipeline.ethereum.signed import SignedColumns

SEED_DIGITS: Final = 16

Fields: TypeAlias = tuple[object, ...]

NAMES: Final = (
    "sender",
    "nonce",
    "chain id",
    "hash",
    "type",
    "recipient",
    "value",
    "gas limit",
    "fee cap",
    "priority fee",
    "data",
    "access list",
    "blob fee",
    "blob hashes",
    "authorizations",
)


def sample_rows(digest: str, count: int, rows: int, *, every: bool) -> NDArray[np.int64]:
    """Which of `count` signed rows to look at: the first, the last, and `rows` others that the digest picks."""
    if every:
        return np.arange(count)
    if count == 0:
        return np.zeros(0, np.int64)
    chooser: Any = np.random.default_rng(int(digest[:SEED_DIGITS], 16))
    return np.unique(np.concatenate([[0, count - 1], chooser.integers(0, count, rows)]))


def check(
    signed: SignedColumns, batch: Batch, signable: NDArray[np.bool_], sender: str, rows: NDArray[np.int64]
) -> None:
    """Read these of the signed rows with the verifier's reader, which shares nothing with the kernel.

    It refuses a high s (EIP-2) and bytes that are not canonical; here sender, nonce, hash and every field are
    compared with what was asked for. Of a filler the fields are not. Raises SigningRefused.
    """
    chosen = np.flatnonzero(signable)
    for k in rows:
        try:
            tx = decode(signed.raw[signed.raw_offsets[k] : signed.raw_offsets[k + 1]].tobytes())
        except MalformedBatch as error:
            raise SigningRefused(f"row {k} of a signed batch cannot be read back: {error}") from error
        found: Fields = (tx.sender, tx.nonce, tx.chain_id, tx.hash)
        expected: Fields = (sender, int(signed.nonce[k]), batch.header.chain_id, signed.hashes[k].tobytes())
        if signed.tx_id_valid[k]:
            found += _signed_fields(tx)
            expected += _fields(batch.columns, batch.extras, int(chosen[k]))
        if found != expected:
            wrong = [name for name, have, want in zip(NAMES, found, expected, strict=False) if have != want]
            raise SigningRefused(f"row {k} of a signed batch has another {', '.join(wrong)} than was asked for.")


def _signed_fields(tx: SignedTx) -> Fields:
    plain = tx.type, tx.to, tx.value, tx.gas_limit, tx.max_fee, tx.priority, tx.data, tx.access_list
    return *plain, tx.blob_fee, tx.blob_hashes, tx.authorizations


def _fields(c: Columns, x: Extras, row: int) -> Fields:
    """The same of an unsigned row."""
    entries = range(c.list_offsets[row], c.list_offsets[row + 1])
    return (
        int(c.type[row]),
        c.to[row].tobytes() if c.to_valid[row] else None,
        int.from_bytes(c.value[row].tobytes(), "big"),
        int(c.gas_limit[row]),
        int(c.max_fee[row]),
        int(c.priority[row]) if c.priority_valid[row] else None,
        c.data[c.data_offsets[row] : c.data_offsets[row + 1]].tobytes(),
        tuple((c.addresses[entry].tobytes(), _keys(c, entry)) for entry in entries),
        int(x.blob_fee[row]) if x.blob_fee_valid[row] else None,
        tuple(x.blob_hashes[blob].tobytes() for blob in range(x.blob_offsets[row], x.blob_offsets[row + 1])),
        _authorizations(x, row),
    )


def _keys(c: Columns, entry: int) -> tuple[bytes, ...]:
    return tuple(c.storage_keys[key].tobytes() for key in range(c.key_offsets[entry], c.key_offsets[entry + 1]))


def _authorizations(x: Extras, row: int) -> Authorizations:
    return tuple(
        (
            int(x.auth_chain_ids[entry]),
            x.auth_addresses[entry].tobytes(),
            int(x.auth_nonces[entry]),
            int(x.auth_parities[entry]),
            int.from_bytes(x.auth_r[entry].tobytes(), "big"),
            int.from_bytes(x.auth_s[entry].tobytes(), "big"),
        )
        for entry in range(x.auth_offsets[row], x.auth_offsets[row + 1])
    )

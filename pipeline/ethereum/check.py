"""A signer's look at its own work before it leaves: does this signature give back the sender?"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SigningRefused
from pipeline.ethereum.decoding import decode
from pipeline.errors import MalformedBatch
from pipeline.ethereum.kernel import SignedColumns

SEED_DIGITS: Final = 16


def sample_rows(digest: str, count: int, rows: int, *, every: bool) -> NDArray[np.int64]:
    """Which of `count` signed rows to look at: the first, the last, and `rows` others that the digest picks."""
    if every:
        return np.arange(count)
    if count == 0:
        return np.zeros(0, np.int64)
    chooser: Any = np.random.default_rng(int(digest[:SEED_DIGITS], 16))
    return np.unique(np.concatenate([[0, count - 1], chooser.integers(0, count, rows)]))


def check(signed: SignedColumns, rows: NDArray[np.int64], sender: str, chain_id: int) -> None:
    """Decode these rows with the verifier's reader, which shares nothing with the kernel.

    It refuses a high s (EIP-2), another chain and bytes that are not canonical; the sender, the nonce and the hash are
    compared here. Raises SigningRefused.
    """
    for k in rows:
        raw = signed.raw[signed.raw_offsets[k] : signed.raw_offsets[k + 1]].tobytes()
        try:
            tx = decode(raw)
        except MalformedBatch as error:
            raise SigningRefused(f"row {k} of a signed batch cannot be read back: {error}") from error
        found = (tx.sender, tx.nonce, tx.chain_id, tx.hash)
        expected = (sender, int(signed.nonce[k]), chain_id, signed.hashes[k].tobytes())
        if found != expected:
            raise SigningRefused(f"row {k} of a signed batch is {found[:3]} instead of {expected[:3]}.")

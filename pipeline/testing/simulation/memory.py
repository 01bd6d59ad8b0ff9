"""Pure functions of their bytes, worked out once per process: what makes thousands of courses of events affordable.

Nothing is faked: the values are those of the real functions, and the same bytes mean the same value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.custody.unsealed import UnsealedKey
from pipeline.ethereum import check, decoding, kernel
from pipeline.ethereum.batch import Batch
from pipeline.ethereum.kernel import SignedColumns
from pipeline.stages import inspection, verifier
from pipeline.stages.inspection import SourceRow, source_rows

KEPT: Final = 20_000

_encode, _decode = Batch.encode, Batch.decode
_batches: Final[dict[bytes, Batch]] = {}
_decode_transaction = lru_cache(maxsize=KEPT)(decoding.decode)


def _encode_batch(batch: Batch) -> bytes:
    value = _encode(batch)
    if len(_batches) >= KEPT:
        _batches.clear()
    _batches[value] = batch
    return value


def _decode_batch(value: bytes) -> Batch:
    known = _batches.get(value)
    return known if known is not None else _decode(value)


_rows: Final[dict[tuple[int, str, int], tuple[pa.Table, Mapping[int, SourceRow]]]] = {}


def _source_rows(table: pa.Table, source: str, chain_id: int) -> Mapping[int, SourceRow]:
    """Twins give the very same table for the same rows."""
    asked = id(table), source, chain_id
    if asked not in _rows:
        if len(_rows) >= KEPT:
            _rows.clear()
        _rows[asked] = table, source_rows(table, source, chain_id)
    return _rows[asked][1]


_REMEMBERED: Final[list[tuple[Any, str, Any]]] = [
    (Batch, "encode", _encode_batch),
    (Batch, "decode", staticmethod(_decode_batch)),
    (check, "decode", _decode_transaction),
    (inspection, "decode", _decode_transaction),
    (verifier, "source_rows", _source_rows),
]


def remember() -> None:
    """From here on, in this process: decode batches, recover senders and read rows once for the same bytes."""
    for owner, name, function in _REMEMBERED:
        setattr(owner, name, function)


@contextmanager
def remembered() -> Iterator[None]:
    """The same, until the end of the context."""
    before = [(owner, name, vars(owner)[name]) for owner, name, _ in _REMEMBERED]
    remember()
    try:
        yield
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


class RememberingKernel:
    """Fulfils stages.signer.Kernel with ethereum.kernel, once for the same batch, key and nonce."""

    _signed: Final[dict[tuple[str, bytes, str, int], SignedColumns]] = {}

    async def sign(self, batch: Batch, signable: NDArray[np.bool_], key: UnsealedKey, nonce: int) -> SignedColumns:
        """See stages.signer.Kernel."""
        job = batch.digest, signable.tobytes(), key.address, nonce
        if job not in self._signed:
            if len(self._signed) >= KEPT:
                self._signed.clear()
            made: Any = kernel.sign(batch, signable, key.reveal(), nonce)
            self._signed[job] = made
        return self._signed[job]

"""Pure functions of their bytes, worked out once per process: what makes thousands of courses of events affordable.

Nothing is faked: the values are those of the real functions, and the same bytes mean the same value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.custody.unsealed import UnsealedKey
from pipeline.ethereum import check, decoding, kernel, validity
from pipeline.ethereum.batch import Batch
from pipeline.ethereum.kernel import SignedColumns
from pipeline.ethereum.signed import SignedRecord
from pipeline.settings import ReaderSettings
from pipeline.stages import admission, inspection, reader, signer, verifier

KEPT: Final = 20_000

F = TypeVar("F", bound=Callable[..., Any])


def _kept(*by: Callable[[Any], Any]) -> Callable[[F], F]:
    """Keep a function's values, each argument told apart by what `by` makes of it; the arguments live as long."""

    def keep(function: F) -> F:
        known: dict[tuple[Any, ...], tuple[tuple[Any, ...], Any]] = {}

        def ask(*arguments: Any, **options: Any) -> Any:
            asked = (*(how(argument) for how, argument in zip(by, arguments, strict=True)), *options.values())
            found = known.get(asked)
            if found is None:
                if len(known) >= KEPT:
                    known.clear()
                found = known[asked] = arguments, function(*arguments, **options)
            return found[1]

        return cast("F", ask)

    return keep


def _same(value: Any) -> Any:
    return value


def _bytes(array: NDArray[Any]) -> bytes:
    return array.tobytes()


def _bounds(settings: ReaderSettings) -> tuple[int, int]:
    return settings.batch_rows_max, settings.batch_bytes_max


_decode, _decode_record = Batch.decode, SignedRecord.decode
_batches: Final[dict[bytes, Batch]] = {}
_records: Final[dict[bytes, SignedRecord]] = {}
_decode_transaction = lru_cache(maxsize=KEPT)(decoding.decode)


def _encode_batch(batch: Batch) -> bytes:
    value = _encoded(batch)
    if len(_batches) >= KEPT:
        _batches.clear()
    _batches[value] = batch
    return value


_encoded = _kept(id)(Batch.encode)


def _decode_batch(value: bytes) -> Batch:
    known = _batches.get(value)
    return known if known is not None else _decode(value)


def _encode_signed(record: SignedRecord) -> bytes:
    value = _encoded_signed(record)
    if len(_records) >= KEPT:
        _records.clear()
    _records[value] = record
    return value


_encoded_signed = _kept(id)(SignedRecord.encode)


def _decode_signed(value: bytes) -> SignedRecord:
    known = _records.get(value)
    return known if known is not None else _decode_record(value)


def _frozen(judge: Callable[[Batch], NDArray[np.uint8]]) -> Callable[[Batch], NDArray[np.uint8]]:
    def judged(batch: Batch) -> NDArray[np.uint8]:
        reasons = judge(batch)
        reasons.flags.writeable = False  # several ask for the same one
        return reasons

    return _kept(id)(judged)


# Twins give the very same table for the same rows, so that it can be told by its identity.
_REMEMBERED: Final[list[tuple[Any, str, Any]]] = [
    (Batch, "encode", _encode_batch),
    (Batch, "decode", staticmethod(_decode_batch)),
    (SignedRecord, "build", staticmethod(_kept(_same, id)(SignedRecord.build))),
    (SignedRecord, "encode", _encode_signed),
    (SignedRecord, "decode", staticmethod(_decode_signed)),
    (check, "decode", _decode_transaction),
    (inspection, "decode", _decode_transaction),
    (verifier, "source_rows", _kept(id, _same, _same)(inspection.source_rows)),
    (reader, "batches_of", _kept(_same, _same, _same, id, _bounds)(reader.batches_of)),
    (signer, "judge", _frozen(validity.judge)),
    (admission, "judge", _frozen(validity.judge)),
    (signer, "sample_rows", _kept(_same, _same, _same)(check.sample_rows)),
    (signer, "check", _kept(id, id, _bytes, _same, _bytes)(check.check)),
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

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
from pipeline.ethereum import check, kernel
from pipeline.ethereum.batch import Batch
from pipeline.ethereum.signed import SignedColumns, SignedRecord
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


def _frozen(judge: Callable[[Batch], NDArray[np.uint8]]) -> Callable[[Batch], NDArray[np.uint8]]:
    def judged(batch: Batch) -> NDArray[np.uint8]:
        reasons = judge(batch)
        reasons.flags.writeable = False  # several ask for the same one
        return reasons

    return _kept(id)(judged)


class _Records:
    """Values of records beside what was encoded, so that it need not be decoded."""

    def __init__(self) -> None:
        self._made: dict[bytes, Any] = {}

    def encode(self, encode: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
        """Of a record that was encoded before, the same value."""
        kept = _kept(id)(encode)

        def encoded(record: Any) -> bytes:
            value = kept(record)
            if len(self._made) >= KEPT:
                self._made.clear()
            self._made[value] = record
            return value

        return encoded

    def decode(self, decode: Callable[[bytes], Any]) -> Any:
        """Of a value that was encoded here, the record."""

        def decoded(value: bytes) -> Any:
            known = self._made.get(value)
            return known if known is not None else decode(value)

        return staticmethod(decoded)


def _remembering() -> list[tuple[Any, str, Callable[[Any], Any]]]:
    """Whose function, and what takes its place. Twins give the very same table for the same rows, told by identity."""
    batches, records = _Records(), _Records()
    transactions = lru_cache(maxsize=KEPT)
    return [
        (Batch, "encode", batches.encode),
        (Batch, "decode", batches.decode),
        (SignedRecord, "build", lambda build: staticmethod(_kept(_same, id)(build))),
        (SignedRecord, "encode", records.encode),
        (SignedRecord, "decode", records.decode),
        (check, "decode", transactions),
        (inspection, "decode", transactions),
        (verifier, "source_rows", _kept(id, _same, _same)),
        (reader, "batches_of", _kept(_same, _same, _same, id, _bounds)),
        (signer, "judge", _frozen),
        (admission, "judge", _frozen),
        (signer, "sample_rows", _kept(_same, _same, _same)),
        (signer, "check", _kept(id, id, _bytes, _same, _bytes)),
    ]


_remembers: Final[list[bool]] = []


def remember() -> None:
    """From here on, in this process, once: what these functions made of the same bytes is not worked out again."""
    if not _remembers:
        _remembers.append(True)
        _replace()


def _replace() -> None:
    for owner, name, keep in _remembering():
        setattr(owner, name, keep(getattr(owner, name)))


@contextmanager
def remembered() -> Iterator[None]:
    """The same, until the end of the context."""
    before = [(owner, name, vars(owner)[name]) for owner, name, _ in _remembering()]
    _replace()
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

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from jobs.bench_kernel import mixed_rows
from pipeline.ethereum import kernel
from pipeline.ethereum.signed import SignedColumns
from tests import ethereum_rows as rows_

COUNT = 100
EVERY = np.ones(COUNT, np.bool_)


@pytest.mark.parametrize("fails", [False, True])
def test_the_copy_of_the_key_is_zeroed(monkeypatch: pytest.MonkeyPatch, *, fails: bool) -> None:
    seen: list[np.ndarray[Any, Any]] = []
    during: list[bytes] = []
    real = kernel._sign

    def watched(*args: Any) -> SignedColumns:
        seen.append(args[2])
        during.append(args[2].tobytes())
        if fails:
            raise MemoryError
        return real(*args)

    monkeypatch.setattr(kernel, "_sign", watched)
    secret = bytearray(rows_.SECRET)
    try:
        kernel.sign(rows_.batch(mixed_rows(COUNT)), EVERY, secret, 0)
    except MemoryError:
        assert fails
    assert during == [rows_.SECRET]
    assert not seen[0].any()
    assert secret == rows_.SECRET  # the caller's own copy is the caller's


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_are_a_key(kind: Any) -> None:
    signed = kernel.sign(rows_.batch([rows_.row()]), EVERY[:1], kind(rows_.SECRET), 3)
    assert rows_.raw_of(signed, 0) == rows_.expected(rows_.row(), 3)[0]


def test_the_key_is_not_in_what_comes_out() -> None:
    signed = kernel.sign(rows_.batch(mixed_rows(COUNT)), EVERY, rows_.SECRET, 0)
    for name in SignedColumns.__slots__:
        assert rows_.SECRET not in getattr(signed, name).tobytes()


def test_other_threads_run_while_it_signs() -> None:
    batch = rows_.batch(mixed_rows(4_000))
    every = np.ones(4_000, np.bool_)
    kernel.sign(batch, every, rows_.SECRET, 0)
    took: list[float] = []

    def run() -> None:
        start = time.perf_counter()
        kernel.sign(batch, every, rows_.SECRET, 0)
        took.append(time.perf_counter() - start)

    thread = threading.Thread(target=run)
    longest, last = 0.0, time.perf_counter()
    thread.start()
    while thread.is_alive():
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    thread.join()
    assert longest < took[0] / 2  # with the GIL held, this loop would have stood still for all of it


def test_it_can_be_warmed_at_any_time() -> None:
    kernel.warm()
    kernel.warm()

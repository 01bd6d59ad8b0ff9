from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sha3 import keccak_256

from pipeline.ethereum.keccak import RATE_BYTES, hash_messages, keccak256


def hashes_of(messages: list[bytes]) -> list[bytes]:
    rooms = [len(message) + RATE_BYTES for message in messages]
    starts = np.concatenate([[0], np.cumsum(rooms)[:-1]]).astype(np.int64)
    text = np.full(sum(rooms), 0xEE, np.uint8)  # what was in the buffer before must not matter
    for start, message in zip(starts, messages, strict=True):
        text[start : start + len(message)] = np.frombuffer(message, np.uint8)
    hashes = np.zeros((len(messages), 4), np.uint64)
    hash_messages(text, starts, np.array([len(message) for message in messages], np.int64), hashes)
    return [row.view(np.uint8).tobytes() for row in hashes]


def test_the_empty_message() -> None:
    assert keccak256(b"").tobytes().hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"


@pytest.mark.parametrize("start", range(0, 600, 100))
def test_every_length_up_to_600(start: int) -> None:
    messages = [bytes((7 * i + length) % 256 for i in range(length)) for length in range(start, start + 101)]
    assert hashes_of(messages) == [keccak_256(message).digest() for message in messages]
    assert [keccak256(m).tobytes() for m in messages] == hashes_of(messages)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.one_of(st.binary(max_size=300), st.integers(0, 3000).map(lambda n: b"\xab" * n)), min_size=1, max_size=23
    )
)
def test_messages_of_any_lengths_share_the_lanes(messages: list[bytes]) -> None:
    assert hashes_of(messages) == [keccak_256(message).digest() for message in messages]

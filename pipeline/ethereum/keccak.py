"""Keccak-256 (the padding of the Keccak submission, 0x01, as Ethereum uses it; not SHA3-256) in a compiled loop."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

RATE_BYTES: Final = 136
RATE_WORDS: Final = 17

ROUND_CONSTANTS: Final = np.array(
    [
        0x0000000000000001, 0x0000000000008082, 0x800000000000808A, 0x8000000080008000, 0x000000000000808B,
        0x0000000080000001, 0x8000000080008081, 0x8000000000008009, 0x000000000000008A, 0x0000000000000088,
        0x0000000080008009, 0x000000008000000A, 0x000000008000808B, 0x800000000000008B, 0x8000000000008089,
        0x8000000000008003, 0x8000000000008002, 0x8000000000000080, 0x000000000000800A, 0x800000008000000A,
        0x8000000080008081, 0x8000000000008080, 0x0000000080000001, 0x8000000080008008,
    ],
    np.uint64,
)  # fmt: skip


@njit(nogil=True, cache=True, inline="always")
def _rotate(word: Any, bits: Any) -> Any:
    return (word << np.uint64(bits)) | (word >> np.uint64(64 - bits))


@njit(nogil=True, cache=True)
def _permute(s: Any) -> None:
    """Keccak-f[1600] on 25 words in place (FIPS 202, section 3.3); lanes are kept in locals."""
    a0, a1, a2, a3, a4 = s[0], s[1], s[2], s[3], s[4]
    a5, a6, a7, a8, a9 = s[5], s[6], s[7], s[8], s[9]
    a10, a11, a12, a13, a14 = s[10], s[11], s[12], s[13], s[14]
    a15, a16, a17, a18, a19 = s[15], s[16], s[17], s[18], s[19]
    a20, a21, a22, a23, a24 = s[20], s[21], s[22], s[23], s[24]
    for i in range(24):
        c0 = a0 ^ a5 ^ a10 ^ a15 ^ a20
        c1 = a1 ^ a6 ^ a11 ^ a16 ^ a21
        c2 = a2 ^ a7 ^ a12 ^ a17 ^ a22
        c3 = a3 ^ a8 ^ a13 ^ a18 ^ a23
        c4 = a4 ^ a9 ^ a14 ^ a19 ^ a24
        d0 = c4 ^ _rotate(c1, 1)
        d1 = c0 ^ _rotate(c2, 1)
        d2 = c1 ^ _rotate(c3, 1)
        d3 = c2 ^ _rotate(c4, 1)
        d4 = c3 ^ _rotate(c0, 1)
        b0 = a0 ^ d0
        b10 = _rotate(a1 ^ d1, 1)
        b20 = _rotate(a2 ^ d2, 62)
        b5 = _rotate(a3 ^ d3, 28)
        b15 = _rotate(a4 ^ d4, 27)
        b16 = _rotate(a5 ^ d0, 36)
        b1 = _rotate(a6 ^ d1, 44)
        b11 = _rotate(a7 ^ d2, 6)
        b21 = _rotate(a8 ^ d3, 55)
        b6 = _rotate(a9 ^ d4, 20)
        b7 = _rotate(a10 ^ d0, 3)
        b17 = _rotate(a11 ^ d1, 10)
        b2 = _rotate(a12 ^ d2, 43)
        b12 = _rotate(a13 ^ d3, 25)
        b22 = _rotate(a14 ^ d4, 39)
        b23 = _rotate(a15 ^ d0, 41)
        b8 = _rotate(a16 ^ d1, 45)
        b18 = _rotate(a17 ^ d2, 15)
        b3 = _rotate(a18 ^ d3, 21)
        b13 = _rotate(a19 ^ d4, 8)
        b14 = _rotate(a20 ^ d0, 18)
        b24 = _rotate(a21 ^ d1, 2)
        b9 = _rotate(a22 ^ d2, 61)
        b19 = _rotate(a23 ^ d3, 56)
        b4 = _rotate(a24 ^ d4, 14)
        a0 = b0 ^ (~b1 & b2) ^ ROUND_CONSTANTS[i]
        a1 = b1 ^ (~b2 & b3)
        a2 = b2 ^ (~b3 & b4)
        a3 = b3 ^ (~b4 & b0)
        a4 = b4 ^ (~b0 & b1)
        a5 = b5 ^ (~b6 & b7)
        a6 = b6 ^ (~b7 & b8)
        a7 = b7 ^ (~b8 & b9)
        a8 = b8 ^ (~b9 & b5)
        a9 = b9 ^ (~b5 & b6)
        a10 = b10 ^ (~b11 & b12)
        a11 = b11 ^ (~b12 & b13)
        a12 = b12 ^ (~b13 & b14)
        a13 = b13 ^ (~b14 & b10)
        a14 = b14 ^ (~b10 & b11)
        a15 = b15 ^ (~b16 & b17)
        a16 = b16 ^ (~b17 & b18)
        a17 = b17 ^ (~b18 & b19)
        a18 = b18 ^ (~b19 & b15)
        a19 = b19 ^ (~b15 & b16)
        a20 = b20 ^ (~b21 & b22)
        a21 = b21 ^ (~b22 & b23)
        a22 = b22 ^ (~b23 & b24)
        a23 = b23 ^ (~b24 & b20)
        a24 = b24 ^ (~b20 & b21)
    s[0], s[1], s[2], s[3], s[4] = a0, a1, a2, a3, a4
    s[5], s[6], s[7], s[8], s[9] = a5, a6, a7, a8, a9
    s[10], s[11], s[12], s[13], s[14] = a10, a11, a12, a13, a14
    s[15], s[16], s[17], s[18], s[19] = a15, a16, a17, a18, a19
    s[20], s[21], s[22], s[23], s[24] = a20, a21, a22, a23, a24


@njit(nogil=True, cache=True)
def keccak_in_place(message: Any, words: Any, length: Any, state: Any) -> None:
    """Hash message[:length]; the hash is state[:4].

    `words` is the same memory as `message`, as uint64. The message is padded in place, so its buffer must be at least
    `length + RATE_BYTES` bytes. Absorbing words instead of bytes is what makes a hash cost one permutation.
    """
    blocks = length // RATE_BYTES + 1
    for i in range(length, blocks * RATE_BYTES):
        message[i] = 0
    message[length] |= 0x01
    message[blocks * RATE_BYTES - 1] |= 0x80
    for i in range(25):
        state[i] = 0
    for block in range(blocks):
        start = block * RATE_WORDS
        for i in range(RATE_WORDS):
            state[i] ^= words[start + i]
        _permute(state)


def keccak256(message: bytes) -> NDArray[np.uint8]:
    """The hash of one message, 32 bytes; for tests and single values, not for loops."""
    words = np.zeros((len(message) // RATE_BYTES + 1) * RATE_WORDS, np.uint64)
    buffer = words.view(np.uint8)
    buffer[: len(message)] = np.frombuffer(message, np.uint8)
    state = np.zeros(25, np.uint64)
    keccak_in_place(buffer, words, len(message), state)
    return state[:4].view(np.uint8)

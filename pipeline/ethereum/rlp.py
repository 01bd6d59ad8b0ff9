"""RLP into a buffer, in compiled loops (Yellow Paper, appendix B).

Each function writes at `pos` and returns where the next goes.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pipeline.ethereum.compiled import compiled
from pipeline.ethereum.memory import copy_bytes

ADDRESS_SIZE: Final = 21
"""Bytes of 20 with their header."""
WORD_SIZE: Final = 33
"""Bytes of 32 with their header."""


@compiled
def put_length(out: Any, pos: Any, length: Any, short: Any) -> Any:
    """The header of a string (short = 0x80) or a list (short = 0xC0) with this payload length."""
    if length < 56:
        out[pos] = short + length
        return pos + 1
    width = 1 if length < 0x100 else 2 if length < 0x10000 else 3 if length < 0x1000000 else 4
    out[pos] = short + 55 + width
    for i in range(width):
        out[pos + width - i] = (length >> (8 * i)) & 0xFF
    return pos + 1 + width


@compiled
def length_size(length: Any) -> Any:
    """Bytes of the header that put_length writes."""
    if length < 56:
        return 1
    return 2 if length < 0x100 else 3 if length < 0x10000 else 4 if length < 0x1000000 else 5


@compiled
def put_uint(out: Any, pos: Any, number: Any) -> Any:
    """A scalar below 2^64: big-endian without leading zeros; zero is the empty string."""
    number = np.uint64(number)
    if number < np.uint64(0x80):
        out[pos] = np.uint8(number) if number > np.uint64(0) else np.uint8(0x80)
        return pos + 1
    width = 0
    rest = number
    while rest > np.uint64(0):
        rest >>= np.uint64(8)
        width += 1
    out[pos] = 0x80 + width
    for i in range(width):
        out[pos + width - i] = np.uint8((number >> np.uint64(8 * i)) & np.uint64(0xFF))
    return pos + 1 + width


@compiled
def put_scalar(out: Any, pos: Any, number: Any) -> Any:
    """A scalar of 32 big-endian bytes."""
    first = 0
    while first < 32 and number[first] == 0:
        first += 1
    return put_string(out, pos, number, first, 32)


@compiled
def uint_size(number: Any) -> Any:
    """Bytes that put_uint writes."""
    size = 1
    rest = np.uint64(number)
    if rest >= np.uint64(0x80):
        while rest > np.uint64(0):
            rest >>= np.uint64(8)
            size += 1
    return size


@compiled
def scalar_size(number: Any) -> Any:
    """Bytes that put_scalar writes."""
    first = 0
    while first < 32 and number[first] == 0:
        first += 1
    return 1 if first == 31 and number[31] < 0x80 else 33 - first


@compiled
def put_string(out: Any, pos: Any, source: Any, start: Any, end: Any) -> Any:
    """The byte string source[start:end]."""
    length = end - start
    if length == 1 and source[start] < 0x80:
        out[pos] = source[start]
        return pos + 1
    pos = put_length(out, pos, length, 0x80)
    copy_bytes(out, pos, source, start, length)
    return pos + length


@compiled
def put_access_list(out: Any, pos: Any, addresses: Any, key_offsets: Any, keys: Any, first: Any, last: Any) -> Any:
    """`[[address, [storage key, …]], …]` of entries first … last - 1 (EIP-2930)."""
    payload = 0
    for entry in range(first, last):
        inner = WORD_SIZE * (key_offsets[entry + 1] - key_offsets[entry])
        item = ADDRESS_SIZE + length_size(inner) + inner
        payload += length_size(item) + item
    pos = put_length(out, pos, payload, 0xC0)
    for entry in range(first, last):
        inner = WORD_SIZE * (key_offsets[entry + 1] - key_offsets[entry])
        pos = put_length(out, pos, ADDRESS_SIZE + length_size(inner) + inner, 0xC0)
        pos = put_string(out, pos, addresses[entry], 0, 20)
        pos = put_length(out, pos, inner, 0xC0)
        for key in range(key_offsets[entry], key_offsets[entry + 1]):
            pos = put_string(out, pos, keys[key], 0, 32)
    return pos


@compiled
def put_words(out: Any, pos: Any, words: Any, first: Any, last: Any) -> Any:
    """`[word, …]` of words first … last - 1, 32 bytes each: the blob hashes of EIP-4844."""
    pos = put_length(out, pos, WORD_SIZE * (last - first), 0xC0)
    for word in range(first, last):
        pos = put_string(out, pos, words[word], 0, 32)
    return pos


@compiled
def put_authorizations(  # noqa: PLR0913, PLR0917 - a compiled loop gets all it reads and writes as arguments
    out: Any,
    pos: Any,
    chain_ids: Any,
    addresses: Any,
    nonces: Any,
    parities: Any,
    r: Any,
    s: Any,
    first: Any,
    last: Any,
) -> Any:
    """`[[chain id, address, nonce, y parity, r, s], …]` of entries first … last - 1 (EIP-7702)."""
    payload = 0
    for entry in range(first, last):
        item = _authorization_size(chain_ids[entry], nonces[entry], parities[entry], r[entry], s[entry])
        payload += length_size(item) + item
    pos = put_length(out, pos, payload, 0xC0)
    for entry in range(first, last):
        item = _authorization_size(chain_ids[entry], nonces[entry], parities[entry], r[entry], s[entry])
        pos = put_length(out, pos, item, 0xC0)
        pos = put_uint(out, pos, chain_ids[entry])
        pos = put_string(out, pos, addresses[entry], 0, 20)
        pos = put_uint(out, pos, nonces[entry])
        pos = put_uint(out, pos, parities[entry])
        pos = put_scalar(out, pos, r[entry])
        pos = put_scalar(out, pos, s[entry])
    return pos


@compiled
def _authorization_size(chain_id: Any, nonce: Any, parity: Any, r: Any, s: Any) -> Any:
    """Bytes of one entry's fields."""
    return ADDRESS_SIZE + uint_size(chain_id) + uint_size(nonce) + uint_size(parity) + scalar_size(r) + scalar_size(s)

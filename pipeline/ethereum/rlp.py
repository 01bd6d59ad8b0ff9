"""RLP into a buffer, in compiled loops (Yellow Paper, appendix B).

Each function writes at `pos` and returns where the next goes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.ethereum.compiled import compiled
from pipeline.ethereum.memory import copy_bytes


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
        inner = 33 * (key_offsets[entry + 1] - key_offsets[entry])
        item = 21 + length_size(inner) + inner
        payload += length_size(item) + item
    pos = put_length(out, pos, payload, 0xC0)
    for entry in range(first, last):
        inner = 33 * (key_offsets[entry + 1] - key_offsets[entry])
        pos = put_length(out, pos, 21 + length_size(inner) + inner, 0xC0)
        pos = put_string(out, pos, addresses[entry], 0, 20)
        pos = put_length(out, pos, inner, 0xC0)
        for key in range(key_offsets[entry], key_offsets[entry + 1]):
            pos = put_string(out, pos, keys[key], 0, 32)
    return pos

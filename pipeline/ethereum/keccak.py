"""Keccak-256 in a compiled loop, several messages at a time.

Ethereum's hash has the padding of the Keccak submission (0x01), so it is not SHA3-256. One permutation works on LANES
states side by side in vector registers: a batch has a thousand messages to hash, and they do not depend on each other.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from pipeline.ethereum.compiled import compiled
from pipeline.ethereum.memory import load_word

RATE_BYTES: Final = 136
RATE_WORDS: Final = 17
STATE_WORDS: Final = 25
HASH_WORDS: Final = 4
LANES: Final = 4
WORD_BITS: Final = 64

ROUND_CONSTANTS: Final = (
    0x0000000000000001, 0x0000000000008082, 0x800000000000808A, 0x8000000080008000, 0x000000000000808B,
    0x0000000080000001, 0x8000000080008081, 0x8000000000008009, 0x000000000000008A, 0x0000000000000088,
    0x0000000080008009, 0x000000008000000A, 0x000000008000808B, 0x800000000000008B, 0x8000000000008089,
    0x8000000000008003, 0x8000000000008002, 0x8000000000000080, 0x000000000000800A, 0x800000008000000A,
    0x8000000080008081, 0x8000000000008080, 0x0000000080000001, 0x8000000080008008,
)  # fmt: skip

ROTATIONS: Final = (
    (0, 1, 62, 28, 27),
    (36, 44, 6, 55, 20),
    (3, 10, 43, 25, 39),
    (41, 45, 15, 21, 8),
    (18, 2, 61, 56, 14),
)
"""ROTATIONS[y][x] of the word at 5·y + x (FIPS 202, table 2)."""

VECTOR: Final = ir.VectorType(ir.IntType(WORD_BITS), LANES)


def _splat(word: int) -> ir.Constant:
    return ir.Constant(VECTOR, [word] * LANES)


def _rotated(builder: Any, word: Any, bits: int) -> Any:
    if bits == 0:
        return word
    return builder.or_(builder.shl(word, _splat(bits)), builder.lshr(word, _splat(WORD_BITS - bits)))


def _round(builder: Any, a: list[Any], constant: Any) -> list[Any]:
    """θ, ρ, π, χ and ι (FIPS 202, section 3.2) on 25 vectors."""
    column = [a[x] for x in range(5)]
    for y in range(1, 5):
        column = [builder.xor(column[x], a[5 * y + x]) for x in range(5)]
    parity = [builder.xor(column[(x + 4) % 5], _rotated(builder, column[(x + 1) % 5], 1)) for x in range(5)]
    b: list[Any] = [None] * STATE_WORDS
    for y in range(5):
        for x in range(5):
            word = builder.xor(a[5 * y + x], parity[x])
            b[5 * ((2 * x + 3 * y) % 5) + y] = _rotated(builder, word, ROTATIONS[y][x])
    out = [
        builder.xor(b[i], builder.and_(builder.not_(b[i - i % 5 + (i + 1) % 5]), b[i - i % 5 + (i + 2) % 5]))
        for i in (5 * y + x for y in range(5) for x in range(5))
    ]
    out[0] = builder.xor(out[0], constant)
    return out


def _permutation(builder: Any, words: Any) -> None:
    """The 24 rounds of Keccak-f[1600] over 25 vectors in memory."""
    i32 = ir.IntType(32)
    table = ir.Constant(ir.ArrayType(VECTOR, len(ROUND_CONSTANTS)), [_splat(word) for word in ROUND_CONSTANTS])
    global_constant: Any = cgutils.global_constant
    constants = global_constant(builder, "keccak_round_constants", table)
    places = [builder.gep(words, [ir.Constant(i32, i)]) for i in range(STATE_WORDS)]
    loaded = [builder.load(place, align=8) for place in places]
    before = builder.block
    rounds, after = builder.append_basic_block("keccak_rounds"), builder.append_basic_block("keccak_done")
    builder.branch(rounds)
    builder.position_at_end(rounds)
    index = builder.phi(i32)
    index.add_incoming(ir.Constant(i32, 0), before)
    state = [builder.phi(VECTOR) for _ in range(STATE_WORDS)]
    constant = builder.load(builder.gep(constants, [ir.Constant(i32, 0), index]), align=8)
    mixed = _round(builder, state, constant)
    following = builder.add(index, ir.Constant(i32, 1))
    index.add_incoming(following, rounds)
    for phi, first, later in zip(state, loaded, mixed, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(later, rounds)
    more = builder.icmp_unsigned("<", following, ir.Constant(i32, len(ROUND_CONSTANTS)))
    builder.cbranch(more, rounds, after)
    builder.position_at_end(after)
    for place, word in zip(places, mixed, strict=True):
        builder.store(word, place, align=8)


def _permute_state(_typing_context: Any, state: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, value=args[0])
        _permutation(builder, builder.bitcast(array.data, VECTOR.as_pointer()))
        return context.get_dummy_value()

    return types.void(state), generate


_permute: Any = intrinsic(_permute_state)
"""_permute(state): Keccak-f[1600] on every lane of state, uint64 (STATE_WORDS, LANES), in place."""


@compiled
def _pad(messages: Any, start: Any, length: Any) -> Any:
    """Pad a message in place; the number of its blocks."""
    blocks = length // RATE_BYTES + 1
    end = start + blocks * RATE_BYTES
    for i in range(start + length, end):
        messages[i] = 0
    messages[start + length] |= 0x01
    messages[end - 1] |= 0x80
    return blocks


@compiled
def _absorb(messages: Any, start: Any, state: Any, lane: Any) -> None:
    for i in range(RATE_WORDS):
        state[i, lane] ^= load_word(messages, start + 8 * i)


@compiled
def _squeeze(state: Any, lane: Any, hashes: Any, message: Any) -> None:
    """Give out the hash, and leave the lane as for the start of a message."""
    # Loops, not slices: numba compiles a slice assignment with all that could raise in it, which takes seconds.
    for i in range(HASH_WORDS):
        hashes[message, i] = state[i, lane]
    for i in range(STATE_WORDS):
        state[i, lane] = 0


@compiled
def hash_messages(messages: Any, starts: Any, lengths: Any, hashes: Any) -> None:
    """Hash messages[starts[m] : starts[m] + lengths[m]] into hashes[m], uint64 (count, HASH_WORDS).

    Messages are padded in place: each needs RATE_BYTES of room behind it. A lane that has finished its message takes
    the next one, so that messages of any length keep all lanes busy.
    """
    state = np.zeros((STATE_WORDS, LANES), np.uint64)
    message = np.full(LANES, -1, np.int64)
    place = np.zeros(LANES, np.int64)
    blocks = np.zeros(LANES, np.int64)
    count = len(starts)
    taken = hashed = 0
    while hashed < count:
        for lane in range(LANES):
            if message[lane] < 0 and taken < count:
                message[lane] = taken
                place[lane] = starts[taken]
                blocks[lane] = _pad(messages, starts[taken], lengths[taken])
                taken += 1
            if message[lane] >= 0:
                _absorb(messages, place[lane], state, lane)
        _permute(state)
        for lane in range(LANES):
            place[lane] += RATE_BYTES
            blocks[lane] -= 1
            if message[lane] >= 0 and blocks[lane] == 0:
                _squeeze(state, lane, hashes, message[lane])
                message[lane] = -1
                hashed += 1


def keccak256(message: bytes) -> NDArray[np.uint8]:
    """The hash of one message, 32 bytes; for tests and single values, not for loops."""
    room = np.zeros(len(message) + RATE_BYTES, np.uint8)
    room[: len(message)] = np.frombuffer(message, np.uint8)
    hashes = np.zeros((1, HASH_WORDS), np.uint64)
    hash_messages(room, np.zeros(1, np.int64), np.array([len(message)]), hashes)
    digest: NDArray[np.uint8] = hashes.view(np.uint8)[0]
    return digest

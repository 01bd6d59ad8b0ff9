"""Bytes in compiled loops: what numba's own indexing does byte by byte, as one machine operation."""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WORD_BITS: Final = 64


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, position: Any) -> Any:
    data = context.make_array(array_type)(context, builder, value=array).data
    return builder.gep(data, [position])


def _copy_bytes(_typing_context: Any, out: Any, _to: Any, source: Any, _start: Any, _length: Any) -> Any:
    signature = types.void(out, types.int64, source, types.int64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target = _pointer(context, builder, signature.args[0], args[0], args[1])
        origin = _pointer(context, builder, signature.args[2], args[2], args[3])
        memcpy: Any = cgutils.raw_memcpy
        memcpy(builder, target, origin, args[4], 1)
        return context.get_dummy_value()

    return signature, generate


copy_bytes: Any = intrinsic(_copy_bytes)
"""copy_bytes(out, to, source, start, length): `out[to : to + length] = source[start : start + length]` for uint8 arrays
that do not overlap; unchecked."""


def _load_word(_typing_context: Any, source: Any, _start: Any) -> Any:
    signature = types.uint64(source, types.int64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _pointer(context, builder, signature.args[0], args[0], args[1])
        return builder.load(builder.bitcast(place, ir.IntType(WORD_BITS).as_pointer()), align=1)

    return signature, generate


load_word: Any = intrinsic(_load_word)
"""load_word(source, start): source[start : start + 8] of a uint8 array as a uint64 in the machine's byte order; at any
alignment, unchecked."""

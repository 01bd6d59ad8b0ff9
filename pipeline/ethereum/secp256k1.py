"""libsecp256k1 from compiled loops: coincurve's bundled library, called by address.

The addresses are arguments, not constants, so that the compiled loops can be cached on disk and used by a process in
which the library lies elsewhere. Signing is RFC 6979 with libsecp256k1's default nonce function; signatures are low-s.
"""

from __future__ import annotations

import os
from typing import Any, Final

import numpy as np
from coincurve._libsecp256k1 import ffi, lib
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from pipeline.ethereum.compiled import compiled

SIGN_AND_VERIFY: Final = 0x0301
SIGNATURE_STRUCT_BYTES: Final = 65
POINTER_BITS: Final = 64


def _address(name: str) -> int:
    return int(ffi.cast("uintptr_t", ffi.addressof(lib, name)))


def _context() -> int:
    context = lib.secp256k1_context_create(SIGN_AND_VERIFY)
    if not lib.secp256k1_context_randomize(context, os.urandom(32)):
        raise OSError("libsecp256k1 could not blind its context")
    return int(ffi.cast("uintptr_t", context))


LIBRARY: Final[NDArray[np.uint64]] = np.array(
    [
        _context(),
        _address("secp256k1_ecdsa_sign_recoverable"),
        _address("secp256k1_ecdsa_recoverable_signature_serialize_compact"),
    ],
    np.uint64,
)
"""The context, blinded once per process (a context is read-only after that, so threads may share it), then the two
functions; an argument of every loop that calls them."""


def _call_address(_typing_context: Any, _address: Any, _a: Any, _b: Any, _c: Any, _d: Any, _e: Any, _f: Any) -> Any:
    signature = types.int32(*[types.uint64] * 7)

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        word = ir.IntType(POINTER_BITS)
        function = ir.FunctionType(ir.IntType(32), [word] * 6)
        return builder.call(builder.inttoptr(args[0], function.as_pointer()), args[1:])

    return signature, generate


_call: Any = intrinsic(_call_address)
"""_call(address, a, b, c, d, e, f): call a C function of up to six pointers that returns int. By the calling
conventions of x86-64 and arm64 it ignores those that it does not take."""


@compiled
def sign_opaque(library: Any, struct: Any, message: Any, secret: Any) -> Any:
    """Sign message[:32] into the library's own form, struct[:SIGNATURE_STRUCT_BYTES]; 1, or 0 when it failed."""
    null = np.uint64(0)
    at, to = np.uint64(message.ctypes.data), np.uint64(struct.ctypes.data)
    return _call(library[1], library[0], to, at, np.uint64(secret.ctypes.data), null, null)


@compiled
def sign_hash(library: Any, struct: Any, message: Any, secret: Any, compact: Any, recovery_id: Any) -> Any:
    """Sign message[:32] into compact[:64] (r ‖ s, big-endian) and recovery_id[0]; 1, or 0 when it failed.

    Hashes nothing, knows nothing of chains. `struct` is scratch of SIGNATURE_STRUCT_BYTES.
    """
    if sign_opaque(library, struct, message, secret) != 1:
        return 0
    null = np.uint64(0)
    out, recovery = np.uint64(compact.ctypes.data), np.uint64(recovery_id.ctypes.data)
    return _call(library[2], library[0], out, recovery, np.uint64(struct.ctypes.data), null, null)

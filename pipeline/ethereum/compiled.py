"""Compile a loop once, keep it on disk beside the source, and never run what an older source left there.

numba looks at the file of a cached function alone: after an update in place it would go on running loops into which the
old form of a function of another file was compiled. The stamp here is of all files of this package.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from numba import njit

Loop = TypeVar("Loop", bound=Callable[..., Any])


def _stamp() -> str:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()


STAMP: Final = _stamp()


def compiled(function: Loop) -> Loop:
    """Compile for this processor at the first call; runs without the GIL.

    The code is kept in `__pycache__`, or in numba's directory in HOME when that cannot be written, or, when neither
    can, not at all: then every process compiles anew, for some seconds.
    """
    loop: Any = njit(nogil=True)(function)
    try:
        loop.enable_caching()
    except RuntimeError:  # numba's way to say that no directory can be written
        return loop  # type: ignore[no-any-return] # a dispatcher is called like the function it compiles
    loop._cache._cache_file._source_stamp = STAMP  # noqa: SLF001 - numba has no setting for it
    return loop  # type: ignore[no-any-return] # as above

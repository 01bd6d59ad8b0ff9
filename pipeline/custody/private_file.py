"""Files with secrets: read only when nobody else could read or change them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from pipeline.custody.process import forbid_core_dumps
from pipeline.errors import SecretFileError

OTHERS: Final = stat.S_IWGRP | stat.S_IRWXO
"""Group-readable is allowed: Kubernetes mounts Secrets that way for a pod's fsGroup."""

SIZE_MAX: Final = 4 * 1024 * 1024
"""Bytes; a file of 50,000 keys in hex has three quarters of it."""


def read_private(path: Path, *, hint: str, open_too: bool = False) -> bytes:
    """Its content; `hint` says what it should be when it cannot be read, `open_too` reads it whatever its mode.

    Raises SecretFileError, without a cause: nothing of the frames is for a traceback.
    """
    forbid_core_dumps()
    try:
        with path.open("rb") as file:
            open_to_others = not open_too and os.fstat(file.fileno()).st_mode & OTHERS
            raw = b"" if open_to_others else file.read(SIZE_MAX + 1)
    except OSError as error:
        raise SecretFileError(f"{path}: {error.strerror}.", hint=hint) from None
    if open_to_others:
        raise SecretFileError(f"{path}: others could read or change it.", hint=f"Run: chmod 600 {path}")
    if len(raw) > SIZE_MAX:
        raise SecretFileError(f"{path}: is larger than {SIZE_MAX // 1024**2} MiB.", hint=hint)
    return raw

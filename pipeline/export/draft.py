"""A file that takes its name when all of it is there."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from pipeline.errors import DiskFull, OutputFileError

NOTHING_WRITTEN: Final = "Nothing was written."


@contextlib.contextmanager
def draft(path: Path, *, replace: bool) -> Iterator[IO[bytes]]:
    """Somewhere to write what `path` is to hold. Raises OutputFileError, DiskFull; `path` is then as it was."""
    _require_free(path, replace=replace)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")
    try:
        sink = beside.open("xb")
    except OSError as error:
        raise _failed(path, error) from error
    try:
        with sink:
            yield sink
            sink.flush()
            os.fsync(sink.fileno())
        _require_free(path, replace=replace)  # somebody may have been quicker
        beside.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise _failed(path, error) from error
    finally:
        beside.unlink(missing_ok=True)


def _require_free(path: Path, *, replace: bool) -> None:
    if path.is_dir():
        raise OutputFileError(f"{path}: is a directory.", hint=NOTHING_WRITTEN)
    if path.exists() and not replace:
        raise OutputFileError(f"{path}: is there already.", hint="Nothing was written. To replace it: --force")


def _failed(path: Path, error: OSError) -> DiskFull | OutputFileError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"{error.strerror}. {NOTHING_WRITTEN}", address=str(path))
    return OutputFileError(f"{path}: {error.strerror or error}.", hint=NOTHING_WRITTEN)


def _sync(folder: Path) -> None:
    """Keep the new name over a loss of power, where a folder can be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

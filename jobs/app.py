"""The command line `oncesign`.

Exit codes: 0 ok · 1 failed · 2 usage · 3 a dependency is down · 4 verification found a violation · 5 halted or not
leader · 130 interrupted.
"""

from __future__ import annotations

import errno
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Final

from pipeline.errors import DependencyDown, DiskFull, OncesignError

INTERRUPTED: Final = 130
FULL_BYTES: Final = 4 * 1024**2
"""A file system with less room than this is full to a server."""


def main() -> None:
    """Run a command; every error is one line and an exit code."""
    try:
        from jobs.commands import app  # here, so that Ctrl-C while it loads is no traceback either

        app()
    except DependencyDown as error:
        sys.exit(_told(_full_disk_named(error)))
    except OncesignError as error:
        sys.exit(_told(error))
    except OSError as error:
        sys.exit(_told(_of_the_system(error)))
    except KeyboardInterrupt:
        sys.exit(_interrupted())
    except SystemExit as end:  # typer's, which has seen Ctrl-C before us
        sys.exit(_interrupted() if end.code == INTERRUPTED else end.code)
    except Exception as error:  # noqa: BLE001 - a fault of ours: one line here, its frames in a file
        sys.exit(_told(_fault(error)))


def _interrupted() -> int:
    sys.stderr.write("interrupted; nothing that was committed is lost\n")
    return INTERRUPTED


def _told(error: OncesignError) -> int:
    lines = (line.strip() for line in str(error).splitlines())  # the end of a server's log has several
    sys.stderr.write(f"error: {' | '.join(line for line in lines if line)}\n")
    return error.exit_code


def _full_disk_named(error: DependencyDown) -> DependencyDown:
    """A server of ours that does not answer because it cannot write is not mended by starting it."""
    from jobs.loading import load_settings

    try:
        data_dir = load_settings().data_dir
        full = data_dir.exists() and shutil.disk_usage(data_dir).free < FULL_BYTES
    except (OSError, OncesignError):
        return error
    return DiskFull(f"full; {error.message}", address=str(data_dir)) if full else error


def _of_the_system(error: OSError) -> OncesignError:
    where = str(error.filename or "")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(error.strerror, address=where)
    return OncesignError(f"{where}: {error.strerror}" if where else str(error), hint=_kept(error))


def _fault(error: Exception) -> OncesignError:
    first = (str(error).strip().splitlines() or [""])[0]
    return OncesignError(f"a fault of oncesign's own: {type(error).__name__}: {first}", hint=_kept(error))


def _kept(error: Exception) -> str:
    """Keep the frames, without their locals, where the logs are, if there is such a place."""
    from jobs.loading import load_settings

    try:
        log = Path(load_settings().data_dir) / "logs" / "faults.log"
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n{''.join(traceback.format_exception(error))}\n")
    except (OSError, OncesignError):
        return ""
    return f"More is in {log}."


if __name__ == "__main__":
    main()

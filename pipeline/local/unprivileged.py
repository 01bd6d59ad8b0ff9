"""Running Postgres when we are root: it refuses to be root itself.

First choice: a user namespace in which we are `nobody`; files stay ours and no account is made. A container's seccomp
profile may refuse that (Docker's default one does): then `nobody` itself, with one right of root's, to read and write
any file, because the folders above the data are closed to others.
"""

from __future__ import annotations

import ctypes
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pipeline.errors import RuntimeFault

CLONE_NEWUSER: Final = 0x10000000

# linux/capability.h, linux/prctl.h
CAP_DAC_OVERRIDE: Final = 1
CAPABILITY_VERSION: Final = 0x20080522
PR_SET_KEEPCAPS: Final = 8
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_RAISE: Final = 2


def before_exec(folder: Path) -> Callable[[], None] | None:
    """What a child of root does before it becomes Postgres; None for an ordinary user. `folder` holds its data.

    Postgres demands that its data folder, and nothing else, belongs to the user it runs as.
    """
    if os.geteuid() != 0:
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    user_id = ordinary_user_id()

    def enter() -> None:
        ours = folder.stat().st_uid == 0  # else it was given away when namespaces were refused
        if ours and libc.unshare(CLONE_NEWUSER) == 0:
            _become_in_namespace(user_id)
            return
        os.chown(folder, user_id, user_id)
        _become_and_touch_any_file(user_id, libc)

    return enter


def ordinary_user_id() -> int:
    """Of an account that exists, as initdb looks its own up: nobody's, else any but root's. Raises RuntimeFault."""
    others = [account for account in pwd.getpwall() if account.pw_uid != 0]
    if not others:
        raise RuntimeFault(
            "Postgres refuses to run as root, and there is no other account.",
            hint="Run as an ordinary user, or set ONCESIGN_POSTGRES__DSN.",
        )
    return min(others, key=lambda account: account.pw_name != "nobody").pw_uid


def _become_in_namespace(user_id: int) -> None:
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user_id} 0 1")
    Path("/proc/self/gid_map").write_text(f"{user_id} 0 1")


def _become_and_touch_any_file(user_id: int, libc: ctypes.CDLL) -> None:
    _checked(libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.setgroups([])
    os.setresgid(user_id, user_id, user_id)
    os.setresuid(user_id, user_id, user_id)
    right = 1 << CAP_DAC_OVERRIDE
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    effective_permitted_inheritable = (ctypes.c_uint32 * 6)(right, right, right, 0, 0, 0)
    _checked(libc.capset(header, effective_permitted_inheritable))
    _checked(libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0))


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

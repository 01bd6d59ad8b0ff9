"""Small disks for some servers, so that they can be full: tmpfs in a mount namespace of our own, made without root.

A full disk is its file system made as small as what it holds. Where a system forbids this, the reason is kept, and the
faults that need it are skipped by that name.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import threading
from pathlib import Path
from typing import Final

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000
MS_REMOUNT: Final = 32
MNT_DETACH: Final = 2
SIZES: Final = {"etcd/0": "2g", "kafka/0": "2g", "postgres": "6g"}
"""Of the folders that get a disk; memory is used for what they hold only."""

_why_not: list[str] = ["no mount namespace was asked for"]


def enter_namespace() -> None:
    """Make one for this process and its children; to be called while the process has one thread."""
    _why_not[:] = [reason] if (reason := _entered()) else []


def _entered() -> str:
    tasks = len(list(Path("/proc/self/task").iterdir())) if Path("/proc/self/task").exists() else 0
    if tasks != 1:
        return f"this process has {tasks} threads, and a user namespace can be made by one only"
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0:
        return f"no user namespace can be made here: {os.strerror(ctypes.get_errno())}"
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    return ""


class Disks:
    """The small disks below one data directory."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._turn = threading.Lock()
        self.why_not = "".join(_why_not)
        if self.available:
            for folder in ("etcd/0", "kafka/0"):
                self._mount(folder, SIZES[folder])

    @property
    def available(self) -> bool:
        """Whether there are any."""
        return not self.why_not

    def move(self, folder: str) -> None:
        """Give a folder that is there already a disk of its own."""
        place = self._data_dir / folder
        kept = place.with_name(f"{place.name}.moved")
        place.rename(kept)
        self._mount(folder, SIZES[folder])
        shutil.copytree(kept, place, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(kept)

    def fill(self, folder: str) -> None:
        """No room is left on it. Raises OSError."""
        with self._turn:
            used = os.statvfs(self._data_dir / folder)
            held = (used.f_blocks - used.f_bfree) * used.f_frsize
            self._mount(folder, f"{max(held, used.f_frsize)}", MS_REMOUNT)

    def free(self, folder: str) -> None:
        """There is room again. Raises OSError."""
        with self._turn:
            self._mount(folder, SIZES[folder], MS_REMOUNT)

    def give_back(self) -> None:
        """Unmount all of them."""
        if self.available:
            libc = ctypes.CDLL(None, use_errno=True)
            for folder in SIZES:
                libc.umount2(os.fsencode(self._data_dir / folder), MNT_DETACH)

    def _mount(self, folder: str, size: str, flags: int = 0) -> None:
        place = self._data_dir / folder
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"size={size},mode=0700".encode()
        if libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", ctypes.c_ulong(flags), options) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(place))

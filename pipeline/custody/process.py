"""What a process that reads secrets does to itself first."""

from __future__ import annotations

import resource


def forbid_core_dumps() -> None:
    """A crash of this process, or of one that it starts, writes none of its memory to a disk (setrlimit(2))."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

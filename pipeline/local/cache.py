"""What is built or downloaded once and kept: the etcd binary, Go's own caches, Kafka's jars."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

CACHE_VARIABLE: Final = "ONCESIGN_CACHE_DIR"
CHECKOUT: Final = Path(__file__).resolve().parents[2]


def cache_dir() -> Path:
    """ONCESIGN_CACHE_DIR; else `.cache` of a checkout, else ~/.cache/oncesign. Made if missing."""
    if named := os.environ.get(CACHE_VARIABLE):
        path = Path(named)
    elif (CHECKOUT / "pyproject.toml").exists():
        path = CHECKOUT / ".cache"
    else:
        path = Path.home() / ".cache" / "oncesign"
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Say on stderr what takes long, and how long it took."""
    started_s = time.monotonic()
    sys.stderr.write(f"  {what} …\n")
    yield
    sys.stderr.write(f"  {what}: {time.monotonic() - started_s:.0f} s\n")

"""Looking for secrets in every file below a folder, in every form in which something could have written them."""

from __future__ import annotations

import base64
import mmap
from collections.abc import Iterable
from pathlib import Path


def forms(secret: bytes) -> set[bytes]:
    """Six: raw, hex in both cases, base64 at each of three places in what it is part of."""
    return {secret, secret.hex().encode(), secret.hex().upper().encode(), *(_base64(secret, at) for at in range(3))}


def _base64(secret: bytes, at: int) -> bytes:
    """The characters that the secret alone decides when it comes after `at` other bytes (RFC 4648)."""
    return base64.b64encode(bytes(at) + secret)[-(-8 * at // 6) : 8 * (at + len(secret)) // 6]


def holders(folder: Path, secrets: Iterable[bytes]) -> set[str]:
    """Files that hold any of these, in any form, by their path in the folder."""
    return holders_of(folder, {form for secret in secrets for form in forms(secret)})


def holders_of(folder: Path, needles: set[bytes]) -> set[str]:
    """The same of these very bytes."""
    found = set()
    for file in sorted(folder.rglob("*")):
        if file.is_symlink() or not file.is_file() or not file.stat().st_size:
            continue
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if any(content.find(needle) >= 0 for needle in needles):
                found.add(str(file.relative_to(folder)))
    return found

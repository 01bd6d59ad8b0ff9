"""The key-encryption keys that open a pool: the one in use, and, while the pool moves from one to another, both.

    FILE            seals and opens
    FILE.next       seals and opens from the moment it is there; FILE only opens then
    FILE.previous   only opens: what FILE was before the last rotation

Each sealed key names its KEK by id, so it does not matter which of the files has it. A Secret that Kubernetes mounts as
a directory gets new files while a pod runs; a ring looks again when it is asked for a KEK that it does not know.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NoReturn

from pipeline.custody.sealing import Kek, kek_id_of
from pipeline.custody.unsealed import UnsealedKey

NEXT: Final = ".next"
PREVIOUS: Final = ".previous"


def next_of(path: Path) -> Path:
    """The file of the KEK that the pool moves to."""
    return path.with_name(path.name + NEXT)


def previous_of(path: Path) -> Path:
    """The file of the KEK that the pool came from."""
    return path.with_name(path.name + PREVIOUS)


class KekRing:
    """What opens and seals the keys of one pool; prints as ids."""

    def __init__(self, path: Path) -> None:
        """Of the file of the KEK in use, and those beside it. Raises SecretFileError."""
        self._path = path
        self._known: dict[bytes, Kek] = {}
        self._sealing = self._read()

    @property
    def id(self) -> bytes:
        """Of the KEK that seals."""
        return self._sealing.id

    @property
    def ids(self) -> tuple[bytes, ...]:
        """Of every KEK that opens, the one that seals first."""
        return (self.id, *(known for known in self._known if known != self.id))

    def look(self) -> None:
        """Read the files again. A KEK that is gone from them still opens here. Raises SecretFileError."""
        self._sealing = self._read()

    def seal(self, secret: bytes, address: str) -> bytes:
        """Encrypt one private key for one address, under the KEK that seals."""
        return self._sealing.seal(secret, address)

    def unseal(self, sealed: bytes, address: str) -> UnsealedKey:
        """Raises SecretFileError when no KEK of these sealed it, or it was sealed for another address or changed."""
        if kek_id_of(sealed) not in self._known:
            self.look()
        return self._known.get(kek_id_of(sealed), self._sealing).unseal(sealed, address)

    def is_current(self, sealed: bytes) -> bool:
        """Whether the KEK that seals has sealed it."""
        return kek_id_of(sealed) == self.id

    def resealed(self, sealed: bytes, address: str) -> bytes:
        """The same private key under the KEK that seals. Raises SecretFileError."""
        key = self.unseal(sealed, address)
        try:
            return self.seal(bytes(key.reveal()), address)
        finally:
            key.wipe()

    def _read(self) -> Kek:
        following = _beside(next_of(self._path))
        previous = _beside(previous_of(self._path))
        current = Kek.load(self._path)
        self._known |= {kek.id: kek for kek in (current, following, previous) if kek is not None}
        return current if following is None else following

    def __repr__(self) -> str:
        return f"<KekRing {' '.join(known.hex() for known in self.ids)}>"

    def __reduce_ex__(self, _protocol: Any) -> NoReturn:
        raise TypeError("a key-encryption key stays in its process")


def _beside(path: Path) -> Kek | None:
    return Kek.load(path) if path.exists() else None

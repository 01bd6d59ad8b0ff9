"""A private key while it is open: in a signer, in memory, nowhere else."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final, NoReturn

SECRET_BYTES: Final = 32
CACHED_KEYS_MAX: Final = 256


class UnsealedKey:
    """32 secret bytes and the address that they sign for.

    Prints as its address only; cannot be pickled or copied. `wipe` zeroes the bytes that this object holds; copies that
    a library made are out of its reach.
    """

    __slots__ = ("_secret", "address")

    def __init__(self, address: str, secret: bytes) -> None:
        if len(secret) != SECRET_BYTES:
            raise ValueError("a private key has 32 bytes")  # the length, never the bytes
        self.address = address
        self._secret = bytearray(secret)

    def reveal(self) -> bytearray:
        """The secret itself, for the kernel. Do not keep it."""
        return self._secret

    def wipe(self) -> None:
        """Zero the secret; the key signs no more."""
        self._secret[:] = bytes(SECRET_BYTES)

    def __repr__(self) -> str:
        return f"<UnsealedKey {self.address}>"

    def __reduce_ex__(self, _protocol: Any) -> NoReturn:
        raise TypeError("an unsealed key stays in its process")

    def __copy__(self) -> NoReturn:
        raise TypeError("an unsealed key is not copied")

    def __deepcopy__(self, _memo: Any) -> NoReturn:
        raise TypeError("an unsealed key is not copied")


class KeyCache:
    """The keys that a signer used last, wiped when they make room for others."""

    def __init__(self, most: int = CACHED_KEYS_MAX) -> None:
        self._most = most
        self._keys: OrderedDict[str, UnsealedKey] = OrderedDict()

    def get(self, address: str) -> UnsealedKey | None:
        """The key, if it is open."""
        key = self._keys.get(address)
        if key is not None:
            self._keys.move_to_end(address)
        return key

    def put(self, key: UnsealedKey) -> None:
        """Keep a key; the one unused for longest may go."""
        before = self._keys.get(key.address)
        if before is not None and before is not key:
            before.wipe()
        self._keys[key.address] = key
        if len(self._keys) > self._most:
            self._keys.popitem(last=False)[1].wipe()

    def __repr__(self) -> str:
        return f"<KeyCache of {len(self._keys)}>"

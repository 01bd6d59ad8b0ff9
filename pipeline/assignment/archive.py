"""The second copy of a sealed private key, in Postgres: what is left of a key when etcd is lost.

Ciphertext only, as in etcd; the key-encryption key is elsewhere. A copy is made before the key is put into etcd.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

Key: TypeAlias = tuple[int, str]
"""Chain id and address."""


@dataclass(frozen=True, slots=True)
class KeptKey:
    """A key of a chain's pool."""

    chain_id: int
    address: str
    sealed: bytes = field(repr=False)
    start_nonce: int  #: its next nonce as long as the ledger knows none


class KeyArchive(Protocol):
    """Beside the ledger. Its methods raise DatabaseUnavailable."""

    async def keep_keys(self, keys: Sequence[KeptKey]) -> None:
        """Add copies of sealed keys. Idempotent; the copy that came last counts."""
        ...

    async def retire_key(self, chain_id: int, address: str) -> None:
        """Remember that a key is never lent again. Idempotent."""
        ...

    async def retired_keys(self) -> Collection[Key]:
        """Those that are never lent again."""
        ...

    async def set_apart(self, chain_id: int, address: str, *, apart: bool) -> None:
        """Remember that a key is for blob transactions alone, or is not any more. Idempotent."""
        ...

    async def keys_set_apart(self) -> Collection[Key]:
        """Those that are for blob transactions alone."""
        ...

    async def destroy_key(self, chain_id: int, address: str) -> None:
        """Delete every copy of a retired key's sealed bytes. Idempotent."""
        ...

"""How keys come into the pool: sealed under the key-encryption key that seals, beside keys that can all be opened."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from pipeline.assignment.administration import Resealed
from pipeline.assignment.records import KeyState
from pipeline.assignment.view import View
from pipeline.custody.generation import address_of, new_secret
from pipeline.custody.kek_ring import KekRing


class Sealer(Protocol):
    """Of private keys, for one address each: a KekRing, or one Kek."""

    def seal(self, secret: bytes, address: str) -> bytes:
        """Ciphertext."""
        ...


def made(chain_id: int, count: int, sealer: Sealer) -> list[tuple[int, str, bytes, int]]:
    """New private keys: (chain id, address, sealed key, start nonce) each, as KeyManager.import_keys takes them."""
    keys = []
    for _ in range(count):
        secret = new_secret()
        address = address_of(secret)
        keys.append((chain_id, address, sealer.seal(secret, address), 0))
    return keys


def load_keks(path: Path, view: View) -> KekRing:
    """The KEKs of a file, which open every key that may be lent. Raises SecretFileError, KeyStoreUnavailable."""
    keks = KekRing(path)
    require_opening(keks, view)
    return keks


def require_opening(keks: KekRing, view: View) -> None:
    """They open every key that may be lent: no nonce is given to a key that cannot sign. Raises SecretFileError."""
    for address in sorted(_lent(view)):
        keks.unseal(view.sealed.get(address, b""), address).wipe()


def resealed(view: View, keks: KekRing) -> list[Resealed]:
    """Every key that another KEK than the one that seals has sealed, under that one. Raises SecretFileError."""
    old = sorted((address, sealed) for address, sealed in view.sealed.items() if not keks.is_current(sealed))
    return [Resealed(address, sealed, keks.resealed(sealed, address)) for address, sealed in old]


def opened(view: View, keks: KekRing) -> str:
    """For a person: how many keys which KEK opens. Raises SecretFileError for the first that none opens."""
    for address, sealed in sorted(view.sealed.items()):
        keks.unseal(sealed, address).wipe()
    old = sum(not keks.is_current(sealed) for sealed in view.sealed.values())
    if old:
        named = ", ".join(known.hex() for known in keks.ids)
        return f"KEKs {named} open all {len(view.sealed)} keys; {old} are to be sealed by the first of them"
    return f"KEK {keks.id.hex()} opens all {len(view.sealed)} keys"


def _lent(view: View) -> set[str]:
    states = (KeyState.FREE, KeyState.LOCKED)
    return {held.record.address for held in view.keys.values() if held.record.state in states}

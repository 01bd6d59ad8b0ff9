"""How keys come into the pool: sealed under the one key-encryption key that opens all the others."""

from __future__ import annotations

from pathlib import Path

from pipeline.assignment.records import KeyState
from pipeline.assignment.view import View
from pipeline.custody.generation import address_of, new_secret
from pipeline.custody.sealing import Kek


def made(chain_id: int, count: int, kek: Kek) -> list[tuple[int, str, bytes, int]]:
    """New private keys: (chain id, address, sealed key, start nonce) each, as KeyManager.import_keys takes them."""
    keys = []
    for _ in range(count):
        secret = new_secret()
        address = address_of(secret)
        keys.append((chain_id, address, kek.seal(secret, address), 0))
    return keys


def load_kek(path: Path, view: View) -> Kek:
    """The KEK of a file, which opens every key that may be lent: no nonce is given to a key that cannot sign.

    Raises SecretFileError.
    """
    kek = Kek.load(path)
    lent = {held.record.address for held in view.keys.values() if held.record.state is not KeyState.DISABLED}
    for address in sorted(lent):
        kek.unseal(view.sealed.get(address, b""), address).wipe()
    return kek

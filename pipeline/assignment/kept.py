"""The second copy of a sealed private key, in Postgres: what is left of a key when etcd is lost.

Ciphertext only, as in etcd; the key-encryption key is elsewhere. A copy is made before the key is put into etcd.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.assignment.records import KeyState
from pipeline.assignment.view import View


@dataclass(frozen=True, slots=True)
class KeptKey:
    """A key of a chain's pool."""

    chain_id: int
    address: str
    sealed: bytes = field(repr=False)
    start_nonce: int  #: its next nonce as long as the ledger knows none


def kept_of(view: View) -> list[KeptKey]:
    """Every key whose sealed bytes etcd holds."""
    first = {(h.record.chain_id, h.record.address): h.record.first_nonce for h in view.assignments.values()}
    kept = []
    for (chain_id, address), held in sorted(view.keys.items()):
        key, sealed = held.record, view.sealed.get(address)
        if sealed is not None:
            locked = key.state is KeyState.LOCKED
            nonce = first.get((chain_id, address), key.next_nonce) if locked else key.next_nonce
            kept.append(KeptKey(chain_id, address, sealed, nonce))
    return kept

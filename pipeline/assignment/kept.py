"""What of a pool's keys the archive must have."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.assignment.archive import KeptKey
from pipeline.assignment.records import KeyState
from pipeline.assignment.view import View


def kept_of(view: View, sealed_bytes: Mapping[str, bytes] | None = None) -> list[KeptKey]:
    """Every key whose sealed bytes etcd holds; or those of some addresses, with bytes that are to take their place."""
    sealed_bytes = view.sealed if sealed_bytes is None else sealed_bytes
    first = {(h.record.chain_id, h.record.address): h.record.first_nonce for h in view.assignments.values()}
    kept = []
    for (chain_id, address), held in sorted(view.keys.items()):
        key, sealed = held.record, sealed_bytes.get(address)
        if sealed is not None and key.state is not KeyState.RETIRED:
            locked = key.state is KeyState.LOCKED
            nonce = first.get((chain_id, address), key.next_nonce) if locked else key.next_nonce
            kept.append(KeptKey(chain_id, address, sealed, nonce))
    return kept

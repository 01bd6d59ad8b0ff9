"""Nonces that are closed by transfers of nothing: what the ledger keeps of them, and pipeline.stages.gap signs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fill:
    """Nonces [first_nonce, first_nonce + count) of a sender, and the fees in wei per gas with which they are closed."""

    chain_id: int
    sender: str
    first_nonce: int
    count: int
    fee_cap: int
    priority_fee: int

    @property
    def end(self) -> int:
        """The first nonce after it."""
        return self.first_nonce + self.count

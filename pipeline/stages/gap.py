"""Closing a gap before a key's first nonce: transfers of nothing to the sender itself, each signed once.

A key that was imported with too high a nonce is stuck: its chain waits for nonces that the pool never gives out. They
are sworn to in the ledger's database before they are signed, with their fees, so that a repeat gives the same bytes and
no batch can ever have one of these nonces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from pipeline.custody.unsealed import UnsealedKey
from pipeline.errors import NonceMismatch, NotMined
from pipeline.ethereum.filler import transfers_to_self
from pipeline.fill import Fill
from pipeline.ports import Clock
from pipeline.stages.account import Answer, Reception
from pipeline.stages.nonces import CountingNode

FILLS_MAX: Final = 1_000
"""Nonces that are closed at once."""

MINED_WITHIN_S: Final = 120.0
LOOK_S: Final = 1.0


class FillLedger(Protocol):
    """Where fills are sworn to."""

    async def record_fill(self, fill: Fill, next_nonce: int) -> Fill:
        """The fill that is kept: an earlier one of the same nonces with its own fees. Durable on return.

        `next_nonce` is the first that the pool may still give out. Raises FillRefused for nonces that were, or could
        be, given out, or were filled otherwise; DatabaseUnavailable.
        """
        ...


class FillNode(CountingNode, Protocol):
    """An Ethereum node that takes transactions."""

    async def send(self, raw: Sequence[bytes]) -> Sequence[Answer]:
        """What it says of each, in order. Raises NodeUnavailable."""
        ...


def gap_of(latest: int, pending: int, first_nonce: int) -> tuple[int, int]:
    """First nonce and count of what is missing before a key's first nonce. Raises NonceMismatch when nothing is."""
    start = max(latest, pending)
    if start >= first_nonce:
        raise NonceMismatch(f"there is no gap before nonce {first_nonce}: the chain has come to {start}.")
    return start, min(first_nonce - start, FILLS_MAX)


async def close(
    fill: Fill, next_nonce: int, key: UnsealedKey, ledger: FillLedger, node: FillNode, clock: Clock
) -> list[str]:
    """Swear, sign, send, and see it mined; the hashes.

    Raises FillRefused, NotMined when the node refuses one or does not mine them in MINED_WITHIN_S (the same again is
    safe), DependencyDown.
    """
    kept = await ledger.record_fill(fill, next_nonce)
    signed = transfers_to_self(
        kept.chain_id, kept.sender, kept.first_nonce, kept.count, (kept.fee_cap, kept.priority_fee), key.reveal()
    )
    for (tx_hash, _), answer in zip(signed, await node.send([raw for _, raw in signed]), strict=True):
        if answer.reception is Reception.REFUSED:
            raise NotMined(f"the node refuses {tx_hash}: {answer.reason}")
    await _await_mined(kept, node, clock)
    return [tx_hash for tx_hash, _ in signed]


async def _await_mined(fill: Fill, node: FillNode, clock: Clock) -> None:
    deadline_s = clock.monotonic_s() + MINED_WITHIN_S
    while True:
        [(latest, _)] = await node.counts([fill.sender])
        if latest >= fill.end:
            return
        if clock.monotonic_s() > deadline_s:
            raise NotMined(
                f"nonces {latest} to {fill.end - 1} of {fill.sender} are not mined after {MINED_WITHIN_S:.0f} s.",
                hint="They are signed for good. The same command sends them again.",
            )
        await clock.sleep(LOOK_S)

"""What a chain says of the pool's nonces: where an imported key begins, and whether both agree later.

`eth_getTransactionCount` (execution-apis) at `latest` is how many transactions of an account are mined; at `pending`
the node adds those of its pool that follow without a gap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from pipeline.assignment.records import KeyRecord
from pipeline.errors import NonceMismatch, UsageError


class CountingNode(Protocol):
    """An Ethereum node. Its methods raise NodeUnavailable."""

    async def chain_id(self) -> int:
        """Of the chain that it follows."""
        ...

    async def counts(self, senders: Sequence[str]) -> Sequence[tuple[int, int]]:
        """Of each sender its transaction count at `latest` and at `pending`."""
        ...


class Verdict(StrEnum):
    """What the counts of a key mean; from bad to good."""

    USED_ELSEWHERE = "used elsewhere"  #: more is mined, or waits in the node, than the pool ever gave out
    GAP = "gap"  #: nonces before the first one that the pool gave out were never used: nothing after them is mined
    STUCK = "stuck"  #: the next nonce to be mined was given out, and this node has no transaction for it
    IN_POOL = "in the pool"  #: everything given out is mined, or waits in the node
    IN_STEP = "in step"  #: everything given out is mined


@dataclass(frozen=True, slots=True)
class Comparison:
    """A key beside its account on the chain."""

    address: str
    next_nonce: int  #: that the pool gives out
    latest: int
    pending: int
    verdict: Verdict
    detail: str


async def require_chain(node: CountingNode, chain_id: int) -> None:
    """Raises UsageError for a node of another chain, NodeUnavailable."""
    found = await node.chain_id()
    if found != chain_id:
        raise UsageError(f"the node is on chain {found}, the keys are for chain {chain_id}.")


async def start_nonces(
    node: CountingNode, chain_id: int, addresses: Sequence[str], *, with_pending: bool
) -> Sequence[int]:
    """Where each key begins: after all that is mined, or with `with_pending` after what waits in the node too.

    Raises NonceMismatch when an account has transactions that wait and nothing was said of them, UsageError for
    another chain, NodeUnavailable.
    """
    await require_chain(node, chain_id)
    counts = await node.counts(addresses)
    waiting = [address for address, (latest, pending) in zip(addresses, counts, strict=True) if latest != pending]
    if waiting and not with_pending:
        more = f" (and {len(waiting) - 1} more)" if len(waiting) > 1 else ""
        raise NonceMismatch(
            f"{waiting[0]} has transactions that wait in the node{more}.",
            hint="Nothing was imported. Wait until they are mined, or begin after them: --with-pending",
        )
    return [max(count) for count in counts]


async def compare(
    node: CountingNode, chain_id: int, keys: Sequence[KeyRecord], first_nonces: Mapping[str, int]
) -> list[Comparison]:
    """Every key beside the chain; `first_nonces` of those that have signed.

    Raises UsageError for another chain, NodeUnavailable.
    """
    await require_chain(node, chain_id)
    counts = await node.counts([key.address for key in keys])
    return [
        _compared(key, latest, pending, first_nonces.get(key.address, key.next_nonce))
        for key, (latest, pending) in zip(keys, counts, strict=True)
    ]


def _compared(key: KeyRecord, latest: int, pending: int, first_nonce: int) -> Comparison:
    verdict, detail = _judged(key.next_nonce, latest, pending, first_nonce)
    return Comparison(key.address, key.next_nonce, latest, pending, verdict, detail)


def _judged(next_nonce: int, latest: int, pending: int, first_nonce: int) -> tuple[Verdict, str]:
    most = max(latest, pending)
    if most > next_nonce:
        return Verdict.USED_ELSEWHERE, f"nonces {next_nonce} to {most - 1} were used by somebody else"
    if most < first_nonce:
        return Verdict.GAP, f"nonces {most} to {first_nonce - 1} were never given out"
    if latest == next_nonce:
        return Verdict.IN_STEP, ""
    if most == next_nonce:
        return Verdict.IN_POOL, f"{next_nonce - latest} wait to be mined"
    return Verdict.STUCK, f"nonce {most} was given out, and the node has no transaction for it"

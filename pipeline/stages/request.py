"""A request to a node: which transactions are offered in one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

from pipeline.stages.account import Account, Transaction

SEND_MAX: Final = 100
SEND_BYTES_MAX: Final = 1024 * 1024
"""Transactions, and their bytes with blobs, in one request; nodes take 1,000 and 5 MiB of hex digits (go-ethereum)."""

Offer: TypeAlias = tuple[Account, Transaction]


def within(due: Iterable[Transaction]) -> list[Transaction]:
    """The first of a sender, as many as a request holds, and one at least; the others are due at the next step."""
    taken: list[Transaction] = []
    size = 0
    for transaction in due:
        size += transaction.sent_bytes
        if taken and size > SEND_BYTES_MAX:
            break
        taken.append(transaction)
    return taken


def parts(offers: Sequence[Offer]) -> list[list[Offer]]:
    """In requests of a bounded size; a sender's transactions are in one, or its later ones could overtake."""
    by_sender: dict[str, list[Offer]] = {}
    for offer in offers:
        by_sender.setdefault(offer[0].sender, []).append(offer)
    requests: list[list[Offer]] = []
    size = SEND_BYTES_MAX
    for run in by_sender.values():
        length = sum(transaction.sent_bytes for _, transaction in run)
        if not requests or len(requests[-1]) + len(run) > SEND_MAX or size + length > SEND_BYTES_MAX:
            requests.append([])
            size = 0
        requests[-1] += run
        size += length
    return requests

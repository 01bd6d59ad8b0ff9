"""A gap before a key's first nonce: how large it is, and what becomes of its transfers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from eth_account import Account

from pipeline.custody.generation import address_of
from pipeline.custody.unsealed import UnsealedKey
from pipeline.errors import FillRefused, NonceMismatch, NotMined
from pipeline.ethereum.decoding import decode
from pipeline.fill import Fill
from pipeline.stages.account import Answer, Reception
from pipeline.stages.gap import FILLS_MAX, close, gap_of
from pipeline.testing.clock import TwinClock
from pipeline.testing.ledger import TwinLedger

SECRET = b"\x11" * 32
ADDRESS = address_of(SECRET)
FILL = Fill(1, ADDRESS, 2, 3, 50, 7)


@dataclass
class Node:
    """Mines what it takes, unless told otherwise."""

    answer: Answer = field(default_factory=lambda: Answer(Reception.TAKEN))
    mines: bool = True
    sent: list[bytes] = field(default_factory=list)

    async def chain_id(self) -> int:
        return 1

    async def counts(self, senders: Sequence[str]) -> Sequence[tuple[int, int]]:
        mined = 2 + len(self.sent) if self.mines else 2
        return [(mined, mined) for _ in senders]

    async def send(self, raw: Sequence[bytes]) -> Sequence[Answer]:
        self.sent += raw
        return [self.answer for _ in raw]


def key() -> UnsealedKey:
    return UnsealedKey(ADDRESS, SECRET)


@pytest.mark.parametrize(
    ("latest", "pending", "first", "gap"),
    [(0, 0, 5, (0, 5)), (3, 3, 5, (3, 2)), (3, 4, 5, (4, 1)), (4, 3, 5, (4, 1)), (0, 0, 10**6, (0, FILLS_MAX))],
)
def test_a_gap_is_what_is_missing(latest: int, pending: int, first: int, gap: tuple[int, int]) -> None:
    assert gap_of(latest, pending, first) == gap


@pytest.mark.parametrize(("latest", "pending"), [(5, 5), (4, 5), (9, 9)])
def test_what_is_no_gap_is_refused(latest: int, pending: int) -> None:
    with pytest.raises(NonceMismatch, match="there is no gap before nonce 5"):
        gap_of(latest, pending, 5)


async def test_transfers_of_nothing_close_it() -> None:
    clock, node = TwinClock(), Node()
    hashes = await clock.until(close(FILL, 5, key(), TwinLedger(), node, clock))
    found = [decode(raw) for raw in node.sent]
    assert [tx.nonce for tx in found] == [2, 3, 4]
    assert ["0x" + tx.hash.hex() for tx in found] == hashes
    for tx in found:
        assert (tx.sender, tx.to, tx.value, tx.data, tx.chain_id) == (ADDRESS, bytes.fromhex(ADDRESS[2:]), 0, b"", 1)
        assert (tx.max_fee, tx.priority, tx.gas_limit) == (50, 7, 21_000)
    reference = {"type": 2, "chainId": 1, "nonce": 2, "to": Account.from_key(SECRET).address, "value": 0, "gas": 21_000}
    signed = Account.sign_transaction(reference | {"maxFeePerGas": 50, "maxPriorityFeePerGas": 7, "data": b""}, SECRET)
    assert node.sent[0] == bytes(signed.raw_transaction)


async def test_a_repeat_sends_the_same_bytes() -> None:
    clock, ledger, first, second = TwinClock(), TwinLedger(), Node(mines=False), Node()
    with pytest.raises(NotMined, match=r"nonces 2 to 4 of .* are not mined after 120 s"):
        await clock.until(close(FILL, 5, key(), ledger, first, clock))
    other_fees = Fill(1, ADDRESS, 2, 3, 999, 9)
    await clock.until(close(other_fees, 5, key(), ledger, second, clock))
    assert second.sent == first.sent


async def test_nothing_is_signed_that_the_ledger_refuses() -> None:
    clock, node = TwinClock(), Node()
    with pytest.raises(FillRefused):
        await clock.until(close(FILL, 4, key(), TwinLedger(), node, clock))
    assert node.sent == []


async def test_a_refusal_of_the_node_is_told() -> None:
    clock, node = TwinClock(), Node(Answer(Reception.REFUSED, "insufficient funds"))
    with pytest.raises(NotMined, match=r"the node refuses 0x.*: insufficient funds"):
        await clock.until(close(FILL, 5, key(), TwinLedger(), node, clock))

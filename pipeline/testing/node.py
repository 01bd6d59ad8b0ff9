"""An Ethereum node in memory whose pool has the limits of go-ethereum's: beyond them it drops without a word.

It answers "success" to a transaction that it will not keep. Blocks are made when told to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from pipeline.errors import NodeUnavailable
from pipeline.ethereum.batch import BLOB_TYPE
from pipeline.ethereum.decoding import SignedTx, decode
from pipeline.ethereum.sidecar import has_blobs
from pipeline.stages.account import Answer, Reception
from pipeline.stages.node import Receipt

ACCOUNT_SLOTS: Final = 16
GLOBAL_SLOTS: Final = 5_120
ACCOUNT_QUEUE: Final = 64
GAS_USED: Final = 21_000


@dataclass
class TwinNode:
    """Fulfils stages.node.Node; the other fields are for a test to turn."""

    chain: int = 1
    account_slots: int = ACCOUNT_SLOTS
    global_slots: int = GLOBAL_SLOTS
    block_max: int = 2_000
    down: bool = False
    refuses: dict[bytes, str] = field(default_factory=dict)  #: by hash, what it says
    reverts: set[bytes] = field(default_factory=set)
    mute: bool = False  #: says "success" where it has no room (go-ethereum's eth/api_backend, if it tracks locals)
    delegates: set[str] = field(default_factory=set)  #: accounts that have delegated their code (EIP-7702)
    blocks: list[list[SignedTx]] = field(default_factory=list)
    pool: dict[str, dict[int, SignedTx]] = field(default_factory=dict)
    offered: int = 0

    async def chain_id(self) -> int:
        """See stages.node.Node."""
        self._answer()
        return self.chain

    async def head(self) -> int:
        """See stages.node.Node."""
        self._answer()
        return len(self.blocks)

    async def nonces(self, senders: Sequence[str], block: int) -> Sequence[int]:
        """See stages.node.Node."""
        self._answer()
        return [self.nonce(sender, block) for sender in senders]

    async def delegated(self, senders: Sequence[str]) -> Sequence[bool]:
        """See stages.node.Node."""
        self._answer()
        return [sender in self.delegates for sender in senders]

    async def receipts(self, hashes: Sequence[bytes]) -> Sequence[Receipt | None]:
        """See stages.node.Node."""
        self._answer()
        mined = {tx.hash: number for number, block in enumerate(self.blocks, start=1) for tx in block}
        return [Receipt(mined[h], h not in self.reverts, GAS_USED) if h in mined else None for h in hashes]

    async def send(self, raw: Sequence[bytes]) -> Sequence[Answer]:
        """See stages.node.Node."""
        self._answer()
        return [self._offer(one) for one in raw]

    async def close(self) -> None:
        """Nothing is held open."""

    def nonce(self, sender: str, block: int | None = None) -> int:
        """The next one of an account."""
        seen = self.blocks[:block]
        return max((tx.nonce + 1 for txs in seen for tx in txs if tx.sender == sender), default=0)

    def mine(self) -> list[SignedTx]:
        """One block of what can be executed."""
        block: list[SignedTx] = []
        for sender, waiting in self.pool.items():
            nonce = self.nonce(sender)
            while nonce in waiting and len(block) < self.block_max:
                block.append(waiting.pop(nonce))
                nonce += 1
        self.blocks.append(block)
        return block

    def reorganise(self, depth: int) -> None:
        """The last blocks are gone, and their transactions with them."""
        del self.blocks[len(self.blocks) - depth :]

    def _answer(self) -> None:
        if self.down:
            raise NodeUnavailable("connection refused")

    def _offer(self, raw: bytes) -> Answer:
        self.offered += 1
        signed = _signed(raw)
        tx = decode(signed)
        lacks = "missing sidecar in blob transaction" if has_blobs(raw) and signed == raw else ""
        if reason := lacks or self.refuses.get(tx.hash):
            return Answer(Reception.REFUSED, reason)
        waiting = self.pool.setdefault(tx.sender, {})
        if tx.nonce < self.nonce(tx.sender):
            return Answer(Reception.STALE, "nonce too low")
        if known := waiting.get(tx.nonce):
            same = known.hash == tx.hash
            return Answer(Reception.KNOWN if same else Reception.LATER, "already known" if same else "underpriced")
        if reason := self._no_room(tx):
            return Answer(Reception.TAKEN) if self.mute else Answer(Reception.LATER, reason)
        waiting[tx.nonce] = tx
        self._truncate()
        return Answer(Reception.TAKEN)

    def _no_room(self, tx: SignedTx) -> str:
        """As go-ethereum's txpool/reserver and legacypool, checkDelegationLimit. Empty: there is."""
        waiting, next_nonce = self.pool[tx.sender], self.nonce(tx.sender)
        if any((other.type == BLOB_TYPE) != (tx.type == BLOB_TYPE) for other in waiting.values()):
            return "address already reserved"
        if tx.sender not in self.delegates:
            return ""
        if next_nonce in waiting:
            return "in-flight transaction limit reached for delegated accounts"
        return "" if tx.nonce == next_nonce else "gapped-nonce tx from delegated accounts"

    def _truncate(self) -> None:
        """As go-ethereum's legacypool: too many in all cost the accounts with many; too many queued, the last."""
        executable = {sender: list(self._executable(sender)) for sender in self.pool}
        while sum(map(len, executable.values())) > self.global_slots:
            sender, most = max(executable.items(), key=lambda each: len(each[1]))
            if len(most) <= self.account_slots:
                return
            del self.pool[sender][most.pop()]
        for sender, waiting in self.pool.items():
            queued = sorted(set(waiting) - set(executable[sender]))
            for nonce in queued[ACCOUNT_QUEUE:]:
                del waiting[nonce]

    def _executable(self, sender: str) -> Iterator[int]:
        nonce = self.nonce(sender)
        while nonce in self.pool[sender]:
            yield nonce
            nonce += 1


def _signed(raw: bytes) -> bytes:
    """What was signed, of a network form (EIP-4844): the first item of its list. Both are longer than 55 bytes."""
    start = raw[1] - 0xF7 + 2
    if not has_blobs(raw) or raw[start] <= 0xF7:
        return raw
    content = start + 1 + raw[start] - 0xF7
    return raw[:1] + raw[start : content + int.from_bytes(raw[start + 1 : content], "big")]

"""What the broadcaster needs of an Ethereum node, and what a node needs beside a signed transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.stages.account import Answer


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where a transaction was mined, and how it went."""

    block: int
    succeeded: bool
    gas_used: int


class Node(Protocol):
    """An Ethereum node. Every method raises NodeUnavailable."""

    async def chain_id(self) -> int:
        """As the node says."""
        ...

    async def head(self) -> int:
        """The number of the last block."""
        ...

    async def nonces(self, senders: Sequence[str], block: int) -> Sequence[int]:
        """The next nonce of each after that block."""
        ...

    async def delegated(self, senders: Sequence[str]) -> Sequence[bool]:
        """Of each, whether it has now given its code to another account (EIP-7702)."""
        ...

    async def receipts(self, hashes: Sequence[bytes]) -> Sequence[Receipt | None]:
        """Of each; None for one that is in no block."""
        ...

    async def send(self, raw: Sequence[bytes]) -> Sequence[Answer]:
        """Offer signed transactions, in this order."""
        ...

    async def close(self) -> None:
        """Let the connection go."""
        ...


class Blobs(Protocol):
    """The blobs that transactions name."""

    async def network_form(self, raw: bytes) -> bytes | str:
        """What a node takes of a signed transaction with blobs, or why there is none."""
        ...

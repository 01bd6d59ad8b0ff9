"""Transactions with blobs (EIP-4844) on their way to a node: what was signed, and the blobs that it names beside it.

What is signed, hashed and mined has their versioned hashes alone. A node takes it in its network form, with the blobs
and their KZG commitments and proofs: one for each blob (EIP-4844) or one for each cell (EIP-7594, wrapper version 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from pipeline.ethereum.batch import BLOB_TYPE

HASHES_AT: Final = 10
"""Items before blob_versioned_hashes in a signed transaction (EIP-4844)."""

BLOB_BYTES: Final = 4_096 * 32
"""FIELD_ELEMENTS_PER_BLOB of 32 bytes (EIP-4844)."""

POINT_BYTES: Final = 48
"""A KZG commitment or proof: a compressed point of BLS12-381."""

CELLS: Final = 128
"""CELLS_PER_EXT_BLOB (EIP-7594): as many proofs has a blob."""

HASH_VERSION: Final = b"\x01"
"""VERSIONED_HASH_VERSION_KZG (EIP-4844)."""

WRAPPER_VERSION: Final = b"\x01"
"""Of the network form with cell proofs (EIP-7594)."""

SIDECAR_BYTES_MAX: Final = BLOB_BYTES + 4 + (1 + CELLS) * (1 + POINT_BYTES) + 24
"""What a blob adds to a transaction, with its commitment, a proof for each cell, and RLP's own bytes."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob and what proves it: one proof, or one for each cell."""

    data: bytes
    commitment: bytes
    proofs: tuple[bytes, ...]

    @property
    def in_cells(self) -> bool:
        """Whether there is a proof for each cell."""
        return len(self.proofs) == CELLS


def has_blobs(raw: bytes) -> bool:
    """Whether a signed transaction has to be put into its network form."""
    return raw[:1] == bytes([BLOB_TYPE])


def versioned_hash(commitment: bytes) -> bytes:
    """What a transaction names a blob by (EIP-4844, kzg_to_versioned_hash)."""
    return HASH_VERSION + sha256(commitment).digest()[1:]


def blob_hashes(raw: bytes) -> list[bytes]:
    """The versioned hashes in a signed transaction of type 3; the verifier has seen that it is well-formed."""
    pos, _ = _extent(raw, 1)
    for _ in range(HASHES_AT):
        _, pos = _extent(raw, pos)
    start, end = _extent(raw, pos)
    return [raw[at + 1 : at + 33] for at in range(start, end, 33)]


def network_form(raw: bytes, blobs: Sequence[Blob]) -> bytes:
    """What a node takes; the blobs in the order of their hashes, all with the same kind of proof."""
    lists = [[blob.data for blob in blobs], [blob.commitment for blob in blobs]]
    lists.append([proof for blob in blobs for proof in blob.proofs])
    version = WRAPPER_VERSION if any(blob.in_cells for blob in blobs) else b""  # such a byte is its own RLP
    return raw[:1] + _list(raw[1:] + version + b"".join(_list(b"".join(map(_string, each))) for each in lists))


def network_bytes(raw: bytes) -> int:
    """How many bytes a signed transaction takes in a request, at most."""
    return len(raw) + (SIDECAR_BYTES_MAX * len(blob_hashes(raw)) if has_blobs(raw) else 0)


def _string(content: bytes) -> bytes:
    """RLP (Yellow Paper, appendix B) of two bytes and more."""
    return _header(len(content), 0x80) + content


def _list(items: bytes) -> bytes:
    return _header(len(items), 0xC0) + items


def _header(length: int, short: int) -> bytes:
    if length <= 55:
        return bytes([short + length])
    digits = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([short + 55 + len(digits)]) + digits


def _extent(raw: bytes, pos: int) -> tuple[int, int]:
    """Where the content of an RLP item starts and ends."""
    first = raw[pos]
    if first < 0x80:
        return pos, pos + 1
    length = first - (0x80 if first < 0xC0 else 0xC0)
    start = pos + 1
    if length > 55:
        start += length - 55
        length = int.from_bytes(raw[pos + 1 : start], "big")
    return start, start + length

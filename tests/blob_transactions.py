"""Transactions with blobs for tests: signed by eth-account, which has their KZG commitments and proofs from ckzg."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ckzg
import orjson
from eth_account import Account
from eth_account.typed_transactions import base

from pipeline.ethereum.sidecar import Blob, versioned_hash


def data_of(number: int) -> bytes:
    """A blob whose field elements differ, and are below the modulus."""
    return b"".join(b"\x00" + sha256(bytes([number]) + at.to_bytes(2, "big")).digest()[1:] for at in range(4_096))


@cache
def kzg_setup() -> Any:
    """It takes five seconds to load, and eth-account would load it for each commitment and proof."""
    return ckzg.load_trusted_setup(base.TRUSTED_SETUP, 0)


@cache
def blob_of(number: int, *, in_cells: bool) -> Blob:
    setup, data = kzg_setup(), data_of(number)
    commitment = ckzg.blob_to_kzg_commitment(data, setup)
    if in_cells:
        return Blob(data, commitment, tuple(ckzg.compute_cells_and_kzg_proofs(data, setup)[1]))
    return Blob(data, commitment, (ckzg.compute_blob_kzg_proof(data, commitment, setup),))


def signed_blobs(secret: bytes, hashes: Sequence[bytes], blobs: Sequence[bytes] | None = None, **changes: Any) -> bytes:
    """As it is hashed and mined; with `blobs`, as eth-account gives it to a node."""
    fields = {
        "type": 3, "chainId": 1, "nonce": 0, "to": "0x" + "35" * 20, "value": 1, "data": "0x", "gas": 21_000,
        "maxFeePerGas": 20 * 10**9, "maxPriorityFeePerGas": 10**9, "maxFeePerBlobGas": 10**9,
        "blobVersionedHashes": list(hashes),
    }  # fmt: skip
    if blobs is not None:
        del fields["blobVersionedHashes"]
    with patch.object(base, "load_trusted_setup", lambda *_: kzg_setup()):
        return bytes(Account.sign_transaction(fields | changes, secret, blobs=blobs).raw_transaction)


def write(directory: Path, blob: Blob, /, **changes: Any) -> Path:
    """The file of a blob as docs/broadcast.md has it; a change of None leaves the name out."""
    proofs = ["0x" + proof.hex() for proof in blob.proofs]
    found: dict[str, Any] = {"blob": "0x" + blob.data.hex(), "commitment": "0x" + blob.commitment.hex()}
    found |= {"cell_proofs": proofs} if blob.in_cells else {"proof": proofs[0]}
    found = {name: value for name, value in (found | changes).items() if value is not None}
    path = directory / f"0x{versioned_hash(blob.commitment).hex()}.json"
    path.write_bytes(orjson.dumps(found))
    return path

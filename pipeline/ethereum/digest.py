"""The identity of a batch: SHA-256 over a canonical encoding of its header and its columns' content.

Not over Arrow IPC bytes, which differ between Arrow versions for equal content. The encoding, in this order:

    "oncesign-batch" NUL, then as UTF-8 lines ended by LF: codec, stream, seq, prev, cursor, chain_id, system_id,
    (in codecs 2 and 3) the version of the policy, (in codec 3) the pinned sender, rows
    then for each array below: its name as UTF-8, NUL, its length in bytes as 8 bytes little-endian, its bytes

    tx_id int64 · type uint8 · chain_id uint64 · to 20 bytes · to_valid uint8 · value 32 bytes · gas_limit uint64
    max_fee uint64 · priority uint64 · priority_valid uint8 · data_offsets int32 · data · list_valid uint8
    list_offsets int32 · addresses 20 bytes · key_offsets int32 · storage_keys 32 bytes · defect uint8
    and in codec 3: blob_fee uint64 · blob_fee_valid uint8 · blobs_valid uint8 · blob_offsets int32
    blob_hashes 32 bytes · auths_valid uint8 · auth_offsets int32 · auth_chain_ids uint64 · auth_addresses 20 bytes
    auth_nonces uint64 · auth_parities uint8 · auth_r 32 bytes · auth_s 32 bytes

Numbers are little-endian; offsets start at 0; a value under a null is zero, and its `_valid` byte is 0 instead of 1.
"""

from __future__ import annotations

import hashlib
import sys
from typing import Final

from pipeline.ethereum.columns import Columns, Extras

DOMAIN: Final = b"oncesign-batch\0"

if sys.byteorder != "little":  # pragma: no cover - no such machine runs Ray
    raise ImportError("the batch digest is defined over little-endian arrays")


def digest(header_lines: list[str], columns: Columns, extras: Extras | None = None) -> str:
    """Lower-case hex, 64 digits. `extras` are those of codec 3."""
    sha = hashlib.sha256(DOMAIN)
    for line in [*header_lines, str(len(columns.tx_id))]:
        sha.update(line.encode() + b"\n")
    for name, array in (columns._asdict() | (extras._asdict() if extras else {})).items():
        sha.update(name.encode() + b"\0" + array.nbytes.to_bytes(8, "little"))
        sha.update(array.data)
    return sha.hexdigest()

"""Transactions with blobs in the form that a node takes, and what becomes of files that are not as they must be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rlp

from pipeline.adapters.blobs import FILE_BYTES_MAX, BlobDirectory
from pipeline.ethereum.sidecar import BLOB_BYTES, CELLS, Blob, blob_hashes, network_bytes, network_form, versioned_hash
from tests.blob_transactions import blob_of, data_of, signed_blobs, write
from tests.ethereum_rows import SECRET

EACH = "0x" + "11" * 48


def hash_of(blob: Blob) -> bytes:
    return versioned_hash(blob.commitment)


def made_up(number: int, proofs: int = 1) -> Blob:
    """For what is not about KZG."""
    return Blob(data_of(number), bytes([number]) * 48, (bytes([number]) * 48,) * proofs)


@pytest.mark.parametrize("count", [1, 2])
async def test_with_cell_proofs_it_is_what_eth_account_gives(count: int, tmp_path: Path) -> None:
    blobs = [blob_of(number, in_cells=True) for number in range(1, count + 1)]
    for blob in blobs:
        write(tmp_path, blob)
    signed = signed_blobs(SECRET, [hash_of(blob) for blob in blobs])
    assert await BlobDirectory(tmp_path).network_form(signed) == signed_blobs(SECRET, [], [blob.data for blob in blobs])


@pytest.mark.parametrize("count", [1, 2, 6])
@pytest.mark.parametrize("proofs", [1, CELLS])
async def test_it_is_what_an_rlp_library_gives(count: int, proofs: int, tmp_path: Path) -> None:
    blobs = [made_up(number, proofs) for number in range(1, count + 1)]
    for blob in blobs:
        write(tmp_path, blob)
    signed = signed_blobs(SECRET, [hash_of(blob) for blob in blobs], data="0x" + "aa" * 300)
    found = await BlobDirectory(tmp_path).network_form(signed)
    payload = rlp.decode(signed[1:])
    lists = [[blob.data for blob in blobs], [blob.commitment for blob in blobs]]
    lists.append([proof for blob in blobs for proof in blob.proofs])
    assert found == b"\x03" + rlp.encode([payload, *([b"\x01"] if proofs == CELLS else []), *lists])
    assert blob_hashes(signed) == payload[10] == [hash_of(blob) for blob in blobs]
    assert len(found) <= network_bytes(signed) < len(found) * 1.05


def test_a_transaction_without_blobs_takes_its_own_bytes() -> None:
    assert network_bytes(b"\x02" + bytes(100)) == 101


async def test_a_file_that_is_put_there_mends_it(tmp_path: Path) -> None:
    blob = made_up(1)
    signed, directory = signed_blobs(SECRET, [hash_of(blob)]), BlobDirectory(tmp_path)
    name = f"{tmp_path}/0x{hash_of(blob).hex()}.json"
    assert await directory.network_form(signed) == f"{name}: No such file or directory"
    write(tmp_path, blob)
    assert await directory.network_form(signed) == network_form(signed, [blob])


async def test_without_a_directory_the_setting_is_named() -> None:
    blob = made_up(1)
    assert await BlobDirectory(None).network_form(signed_blobs(SECRET, [hash_of(blob)])) == (
        f"blob 0x{hash_of(blob).hex()}: ONCESIGN_BROADCAST__BLOBS_DIR names no directory of blobs"
    )


SHAPE = "should be an object with blob, commitment, and either proof or cell_proofs"
BLOB = f"blob should be 0x and the hex digits of {BLOB_BYTES:,} bytes"
COMMITMENT = "commitment should be 0x and the hex digits of 48 bytes"
PROOF = "a proof should be 0x and the hex digits of 48 bytes"
CELL_PROOFS = f"cell_proofs should be a list of {CELLS}"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"proof": None}, SHAPE),
        ({"cell_proofs": [EACH] * CELLS}, SHAPE),
        ({"blob": None}, BLOB),
        ({"blob": 5}, BLOB),
        ({"blob": "0x" + "00" * (BLOB_BYTES - 1)}, BLOB),
        ({"blob": "0x" + "00" * (BLOB_BYTES + 1)}, BLOB),
        ({"blob": "00" * (BLOB_BYTES + 1)}, BLOB),
        ({"blob": "0x" + "0g" * BLOB_BYTES}, BLOB),
        ({"blob": "0x" + " 0" * BLOB_BYTES}, BLOB),
        ({"commitment": "0x" + "01" * 47}, COMMITMENT),
        ({"commitment": EACH + "\n"}, COMMITMENT),
        ({"commitment": EACH}, f"its commitment is of 0x{versioned_hash(bytes([0x11]) * 48).hex()}"),
        ({"proof": "0x" + "01" * 49}, PROOF),
        ({"proof": [EACH]}, PROOF),
        ({"proof": None, "cell_proofs": EACH}, CELL_PROOFS),
        ({"proof": None, "cell_proofs": [EACH] * (CELLS - 1)}, CELL_PROOFS),
        ({"proof": None, "cell_proofs": [EACH] * (CELLS - 1) + ["0x"]}, PROOF),
    ],
)
async def test_what_is_wrong_with_a_file_is_told(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    blob = made_up(1)
    path = write(tmp_path, blob, **changes)
    assert await BlobDirectory(tmp_path).network_form(signed_blobs(SECRET, [hash_of(blob)])) == f"{path}: {says}"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b'{"blob": "0x', b" " * FILE_BYTES_MAX + b"{}", b"[]", b"null"]
)
async def test_what_is_no_object_is_told(content: bytes, tmp_path: Path) -> None:
    blob = made_up(1)
    path = write(tmp_path, blob)
    path.write_bytes(content)
    found = await BlobDirectory(tmp_path).network_form(signed_blobs(SECRET, [hash_of(blob)]))
    assert found in (f"{path}: is not JSON of at most 512 KiB", f"{path}: {SHAPE}")


async def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    blob = made_up(1)
    path = write(tmp_path, blob)
    path.unlink()
    path.mkdir()
    found = await BlobDirectory(tmp_path).network_form(signed_blobs(SECRET, [hash_of(blob)]))
    assert found == f"{path}: Is a directory"


async def test_two_kinds_of_proofs_in_one_transaction_are_told(tmp_path: Path) -> None:
    first, second = made_up(1), made_up(2, CELLS)
    write(tmp_path, first)
    path = write(tmp_path, second)
    signed = signed_blobs(SECRET, [hash_of(first), hash_of(second)])
    says = "its proof is of another kind than those of the transaction's first blob"
    assert await BlobDirectory(tmp_path).network_form(signed) == f"{path}: {says}"
    write(tmp_path, replace(second, proofs=second.proofs[:1]))
    assert isinstance(await BlobDirectory(tmp_path).network_form(signed), bytes)

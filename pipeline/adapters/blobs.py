"""Blobs in a directory, a JSON file each, named by its versioned hash (docs/broadcast.md)."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any, Final

import orjson

from pipeline.errors import InputFileError
from pipeline.ethereum.sidecar import BLOB_BYTES, CELLS, POINT_BYTES, Blob, blob_hashes, network_form, versioned_hash
from pipeline.settings import ENV_PREFIX

FILE_BYTES_MAX: Final = 512 * 1024
"""A blob in hex has half of it, its cell proofs 13 KB."""

SETTING: Final = f"{ENV_PREFIX}BROADCAST__BLOBS_DIR"


class BlobDirectory:
    """Fulfils stages.node.Blobs. What can be told without KZG is checked here; the proofs a node checks."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    async def network_form(self, raw: bytes) -> bytes | str:
        """See stages.node.Blobs."""
        return await asyncio.to_thread(self._network_form, raw)

    def _network_form(self, raw: bytes) -> bytes | str:
        try:
            return network_form(raw, self._blobs(blob_hashes(raw)))
        except InputFileError as error:
            return error.message

    def _blobs(self, hashes: list[bytes]) -> list[Blob]:
        """Raises InputFileError naming the first that is not there as it must be."""
        blobs: list[Blob] = []
        for hash_ in hashes:
            name = f"0x{hash_.hex()}"
            if self._directory is None:
                raise InputFileError(f"blob {name}: {SETTING} names no directory of blobs")
            path = self._directory / f"{name}.json"
            blob = _blob(path, _content(path))
            if versioned_hash(blob.commitment) != hash_:
                raise InputFileError(f"{path}: its commitment is of 0x{versioned_hash(blob.commitment).hex()}")
            if blobs and blob.in_cells != blobs[0].in_cells:
                raise InputFileError(f"{path}: its proof is of another kind than those of the transaction's first blob")
            blobs.append(blob)
        return blobs


def _content(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(FILE_BYTES_MAX + 1)
        found = orjson.loads(text)
    except OSError as error:
        raise InputFileError(f"{path}: {error.strerror}") from None
    except orjson.JSONDecodeError:
        raise InputFileError(f"{path}: is not JSON of at most {FILE_BYTES_MAX // 1024} KiB") from None
    if not isinstance(found, dict) or ("proof" in found) == ("cell_proofs" in found):
        raise InputFileError(f"{path}: should be an object with blob, commitment, and either proof or cell_proofs")
    return found


def _blob(path: Path, found: dict[str, Any]) -> Blob:
    proofs = [found["proof"]] if "proof" in found else found["cell_proofs"]
    if "cell_proofs" in found and (not isinstance(proofs, list) or len(proofs) != CELLS):
        raise InputFileError(f"{path}: cell_proofs should be a list of {CELLS}")
    return Blob(
        _bytes(path, "blob", found.get("blob"), BLOB_BYTES),
        _bytes(path, "commitment", found.get("commitment"), POINT_BYTES),
        tuple(_bytes(path, "a proof", proof, POINT_BYTES) for proof in proofs),
    )


def _bytes(path: Path, name: str, text: Any, size: int) -> bytes:
    if not isinstance(text, str) or not re.fullmatch(rf"0x[0-9a-fA-F]{{{2 * size}}}", text):
        raise InputFileError(f"{path}: {name} should be 0x and the hex digits of {size:,} bytes")
    return bytes.fromhex(text[2:])

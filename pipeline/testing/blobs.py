"""Blobs in memory, by the rules of adapters.blobs."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.ethereum.sidecar import Blob, blob_hashes, network_form


@dataclass(slots=True)
class TwinBlobs:
    """Fulfils stages.node.Blobs."""

    blobs: dict[bytes, Blob] = field(default_factory=dict)  #: by versioned hash

    async def network_form(self, raw: bytes) -> bytes | str:
        """See stages.node.Blobs."""
        for hash_ in (hashes := blob_hashes(raw)):
            if hash_ not in self.blobs:
                return f"0x{hash_.hex()}.json: No such file or directory"
        return network_form(raw, [self.blobs[hash_] for hash_ in hashes])

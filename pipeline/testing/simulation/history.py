"""What an all-seeing witness of a simulated cluster wrote down, which no process can."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.custody.unsealed import UnsealedKey
from pipeline.ethereum.batch import Batch
from pipeline.ethereum.kernel import SignedColumns
from pipeline.testing.invariants import Lent, Signature
from pipeline.testing.simulation.memory import RememberingKernel


@dataclass(slots=True)
class History:
    """Every signature that was ever made, published or not, and what else leaves no trace."""

    signatures: set[Signature] = field(default_factory=set)
    lent: list[tuple[Hashable, int, Lent]] = field(default_factory=list)  #: replies of key managers, in order
    members: int = 0

    def member(self) -> int:
        """A number that no member of the consumer group had before."""
        self.members += 1
        return self.members


class WitnessKernel(RememberingKernel):
    """Fulfils stages.signer.Kernel, and tells the history."""

    def __init__(self, history: History) -> None:
        self._history = history

    async def sign(self, batch: Batch, signable: NDArray[np.bool_], key: UnsealedKey, nonce: int) -> SignedColumns:
        """See stages.signer.Kernel."""
        signed = await super().sign(batch, signable, key, nonce)
        chain_id, source = batch.header.chain_id, batch.header.stream.source
        for index, tx_id in enumerate(batch.columns.tx_id[signable].tolist()):
            raw = signed.raw[signed.raw_offsets[index] : signed.raw_offsets[index + 1]].tobytes()
            self._history.signatures.add(Signature((chain_id, key.address), nonce + index, (source, tx_id), raw))
        return signed

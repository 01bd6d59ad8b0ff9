"""What an all-seeing witness of a simulated cluster wrote down, which no process can."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.assignment.paths import Paths
from pipeline.assignment.records import Assignment
from pipeline.custody.unsealed import UnsealedKey
from pipeline.ethereum.batch import Batch
from pipeline.ethereum.signed import SignedColumns
from pipeline.ports import Txn, TxnResult
from pipeline.testing.invariants import Lent, Signature
from pipeline.testing.simulation.memory import RememberingKernel
from pipeline.testing.store import TwinEtcd

PATHS: Final = Paths("local")

Loan: TypeAlias = tuple[Hashable, int, Lent]
"""Stream, batch, and what it was lent."""


def loan_of(a: Assignment) -> Loan:
    """As the checker of the invariants wants it."""
    key = (a.chain_id, a.address) if a.count else None
    return a.stream, a.seq, Lent((a.stream, a.seq), a.digest, key, a.first_nonce, a.count)


@dataclass(slots=True)
class History:
    """Every signature that was ever made, published or not, and what else leaves no trace."""

    signatures: set[Signature] = field(default_factory=set)
    lent: list[Loan] = field(default_factory=list)  #: what etcd and the replies of key managers say, in order
    members: int = 0

    def member(self) -> int:
        """A number that no member of the consumer group had before."""
        self.members += 1
        return self.members


@dataclass(slots=True)
class WitnessEtcd(TwinEtcd):
    """Tells the history what was assigned, also when the answer is lost."""

    history: History = field(default_factory=History)

    def commit(self, txn: Txn) -> TxnResult:
        """See TwinEtcd."""
        result = TwinEtcd.commit(self, txn)  # a dataclass with slots has no super()
        if result.succeeded:
            written = (value for path, value in txn.puts if path.startswith(PATHS.assignments))
            self.history.lent += [loan_of(Assignment.from_json(value)) for value in written]
        return result


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

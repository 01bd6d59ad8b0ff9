"""Witnesses of what key managers do, beside those of what is signed (simulation.history)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pipeline.assignment.view import View
from pipeline.ports import KeyValue, LedgerEntry, Txn, TxnResult
from pipeline.testing.ledger import TwinLedger
from pipeline.testing.network import Network
from pipeline.testing.simulation import evidence
from pipeline.testing.simulation.history import PATHS
from pipeline.testing.store import TwinEtcd, TwinStore


class WitnessStore(TwinStore):
    """Of one key manager; tells the history what it wrote while another one led."""

    def __init__(self, server: TwinEtcd, network: Network, ledger: TwinLedger, wrong: list[str]) -> None:
        super().__init__(server, network)
        self._ledger, self._wrong = ledger, wrong
        self._claim: tuple[int, bytes] | None = None
        self.behind: Sequence[str] = ()  #: what the ledger had, and etcd had not, when it began to lead
        self.heard = 0  #: answers of etcd

    def _commit(self, txn: Txn) -> TxnResult:
        self.server.expire()
        path = PATHS.leader
        leads = _claim_of(self.server.get(path))
        result = super()._commit(txn)
        self.heard += 1
        written = {key for key, _ in txn.puts} | set(txn.deletes)
        if result.succeeded and path in written:
            self._claim = _claim_of(self.server.get(path))
            self.behind = [*_behind(self._ledger.rows.values(), evidence.view(self.server))]
        elif result.succeeded and written and leads != self._claim:
            self._wrong.append(f"I7: {sorted(written)} were written under {self._claim}, while {leads} led")
        return result


def _claim_of(leader: KeyValue | None) -> tuple[int, bytes] | None:
    return None if leader is None else (leader.create_revision, leader.value)


def _behind(sworn: Iterable[LedgerEntry], view: View) -> Iterator[str]:
    for entry in sworn:
        key, end = view.keys.get((entry.chain_id, entry.sender)), entry.first_nonce + entry.count
        if entry.count and (key is None or key.record.next_nonce < end):
            yield f"batch {entry.seq} of {entry.stream} was sworn with {entry.sender} up to nonce {end - 1}"

"""What a simulated cluster holds, as the checker of the invariants wants it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from functools import partial
from typing import cast

from pipeline.assignment.records import KeyState
from pipeline.assignment.view import View
from pipeline.ethereum.rejected import Rejection
from pipeline.ethereum.signed import SignedHeader, SignedRecord
from pipeline.ports import LedgerEntry
from pipeline.stream import Stream
from pipeline.testing.invariants import Lent, Rest, Signature, breaches_at_rest, breaches_of_order, breaches_of_signing
from pipeline.testing.simulation.cluster import REJECTED, SIGNED, SOURCE, Cluster
from pipeline.testing.simulation.history import PATHS
from pipeline.testing.store import TwinEtcd


def is_settled(cluster: Cluster) -> bool:
    """Whether every committed row has an outcome, every assignment is released, and every process is at work.

    And all that was published can be read: the open transaction of a dead producer hides what others commit after it.
    """
    if len(cluster.outcomes.outcomes) < len(cluster.source.rows) or any(m.failed for m in cluster.members):
        return False
    if any(log.last_stable < log.end for topic in (SIGNED, REJECTED) for log in cluster.broker.topics[topic]):
        cluster.broker.expire()
        return False
    return not any(path.startswith(PATHS.assignments) for path in cluster.etcd.stored)


def unsettled(cluster: Cluster) -> str:
    """What is not, in a line."""
    missing = sorted(set(cluster.source.rows) - {tx_id for _, tx_id in cluster.outcomes.outcomes})
    assigned = [path.removeprefix(PATHS.assignments) for path in cluster.etcd.stored if PATHS.assignments in path]
    return f"rows without an outcome {missing}, assignments {assigned}"


def breaches_always(cluster: Cluster) -> Iterator[str]:
    """What is forbidden at any moment and after any disaster."""
    yield from breaches_of_signing(sorted(cluster.history.signatures))
    yield from breaches_of_order(cluster.history.lent, partial(_binds, cluster))


def _binds(cluster: Cluster, lent: Lent) -> bool:
    """Whether a loan is for ever: one that a restored etcd has forgotten binds only if the ledger has it."""
    if not cluster.etcd.restores:
        return True
    sworn = cluster.ledger.rows.get(cast("tuple[Stream, int]", lent.batch))
    return sworn is not None and lent_of(sworn) == lent


def stuck(cluster: Cluster) -> Iterator[str]:
    """I9: what ended or halted although nothing was lost."""
    yield from (f"I9: {m.name} ended for good: {m.failed!r}" for m in cluster.members if m.failed is not None)
    yield from (f"I9: an error that nobody saw: {error}" for error in cluster.loop.errors)
    for held in view(cluster.etcd).streams.values():
        if held.record.halted:
            yield f"I9: {held.record.stream} is halted: {held.record.halted}"


def breaches_when_settled(cluster: Cluster) -> Iterator[str]:
    """Everything that holds once nothing moves."""
    etcd = view(cluster.etcd)
    records = [SignedRecord.decode(value) for value in _seen(cluster, SIGNED)]
    rejected = [Rejection.from_json(value) for value in _seen(cluster, REJECTED)]
    rest = Rest(
        committed=[(SOURCE, tx_id) for tx_id in cluster.source.rows],
        signatures=[made for record in records for made in _signatures(record)],
        rejected=[(rejection.source, rejection.tx_id) for rejection in rejected],
        published=[lent_of(record.header) for record in records],
        ledger=[lent_of(entry) for entry in cluster.ledger.rows.values()],
        assigned=list(etcd.assignments),
        locked=[key for key, held in etcd.keys.items() if held.record.state is KeyState.LOCKED],
        next_nonces={key: held.record.next_nonce for key, held in etcd.keys.items()},
        first_nonces=dict.fromkeys(etcd.keys, 0),
        heads={stream: held.record.seq for stream, held in etcd.streams.items()},
        ledger_heads=_heads(cluster.ledger.rows),
        outcomes={transaction: outcome.status for transaction, outcome in cluster.outcomes.outcomes.items()},
        violations=[str(violation) for violation in cluster.outcomes.violations],
    )
    yield from breaches_at_rest(rest)


def view(etcd: TwinEtcd) -> View:
    """All that this etcd holds, as a key manager would read it."""
    found = View()
    found.load(PATHS, etcd.under(PATHS.root))
    return found


def _seen(cluster: Cluster, topic: str) -> Iterator[bytes]:
    for log in cluster.broker.topics[topic]:
        yield from (message.value for message in log.read(log.start, log.end + 1)[0])


def _heads(rows: Mapping[tuple[Stream, int], LedgerEntry]) -> dict[Hashable, int]:
    heads: dict[Hashable, int] = {}
    for stream, seq in rows:
        heads[stream] = max(seq, heads.get(stream, 0))
    return heads


def lent_of(made: LedgerEntry | SignedHeader) -> Lent:
    """What a batch was lent, by its ledger row or its signed record."""
    key = (made.chain_id, made.sender) if made.count else None
    return Lent((made.stream, made.seq), made.digest, key, made.first_nonce, made.count)


def _signatures(record: SignedRecord) -> Iterator[Signature]:
    header = record.header
    for row in record.rows.to_pylist():
        transaction = header.stream.source, row["tx_id"]
        yield Signature((header.chain_id, header.sender), row["nonce"], transaction, row["raw"])

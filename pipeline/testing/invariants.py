"""What must hold whatever happens: I1 to I9, one checker for every layer of the proof (docs/proof.md).

Keys, transactions and batches are any hashable values: the model has numbers, the simulation and the real stack have
addresses and row ids. Every function yields one line per breach, beginning with the invariant's name.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Signature(NamedTuple):
    """One signature that was made, published or not."""

    key: Hashable  #: chain and sender
    nonce: int
    transaction: Hashable  #: source and row
    raw: Hashable  #: the signed bytes


class Lent(NamedTuple):
    """A batch with what it was given: an assignment, a ledger row, or a published record."""

    batch: Hashable
    digest: Hashable
    key: Hashable  #: None for a batch without a signable row
    first_nonce: int
    signable: int  #: rows


@dataclass(frozen=True, slots=True)
class Rest:
    """Everything at rest: faults are over, what could be settled is, and nothing moves."""

    committed: Collection[Hashable]  #: transactions in the source
    signatures: Collection[Signature]  #: that are published
    rejected: Collection[Hashable]  #: transactions, once per record
    published: Collection[Lent]  #: once per record
    ledger: Collection[Lent]
    assigned: Collection[Hashable]  #: batches that etcd still holds an assignment of
    locked: Collection[Hashable]  #: keys
    next_nonces: Mapping[Hashable, int]  #: of etcd's keys
    first_nonces: Mapping[Hashable, int]  #: with which they came into the pool
    heads: Mapping[Hashable, int]  #: stream → seq in etcd
    ledger_heads: Mapping[Hashable, int]  #: stream → seq in the ledger
    outcomes: Mapping[Hashable, str]  #: transaction → signed or rejected
    violations: Collection[str]  #: that the verifier found


def breaches_of_signing(signatures: Iterable[Signature]) -> Iterator[str]:
    """I1, I2 and I5, at any moment and over every signature that ever left a signer."""
    by_nonce: dict[tuple[Hashable, int], Signature] = {}
    by_transaction: dict[Hashable, Signature] = {}
    for made in signatures:
        other = by_nonce.setdefault((made.key, made.nonce), made)
        if other.transaction != made.transaction:
            yield f"I1: nonce {made.nonce} of {made.key} was given to {other.transaction} and to {made.transaction}"
        other = by_transaction.setdefault(made.transaction, made)
        if (other.key, other.nonce) != (made.key, made.nonce):
            places = f"{other.key} at nonce {other.nonce} and {made.key} at nonce {made.nonce}"
            yield f"I2: {made.transaction} was signed by {places}"
        elif other.raw != made.raw:
            yield f"I5: {made.transaction} was signed twice with different bytes"


def breaches_of_order(
    assigned: Iterable[tuple[Hashable, int, Lent]], binds: Callable[[Lent], bool] = lambda _: True
) -> Iterator[str]:
    """I5 and I8, over the replies to every request for a key, in order: (stream, seq, what was lent).

    A loan that does not bind may be followed by another one for the same batch.
    """
    heads: dict[Hashable, int] = defaultdict(int)
    first: dict[tuple[Hashable, int], Lent] = {}
    for stream, seq, lent in assigned:
        if seq > heads[stream] + 1:
            yield f"I8: batch {seq} of {stream} was assigned after batch {heads[stream]}"
        heads[stream] = max(heads[stream], seq)
        other = first.setdefault((stream, seq), lent) if binds(lent) else lent
        if other != lent:
            yield f"I5: batch {seq} of {stream} was lent {other} and then {lent}"


def breaches_at_rest(rest: Rest) -> Iterator[str]:
    """I3, I4, I5, I6 and I7."""
    yield from breaches_of_signing(rest.signatures)
    yield from _unsettled(rest)
    yield from _gaps(rest)
    yield from _repeats(rest)
    yield from _unpublished(rest)
    yield from _left_in_etcd(rest)
    yield from _untold(rest)
    yield from (f"I6: {violation}" for violation in rest.violations)


def _unsettled(rest: Rest) -> Iterator[str]:
    settled = Counter(made.transaction for made in rest.signatures)
    settled.update(rest.rejected)
    for transaction in rest.committed:
        if settled[transaction] != 1:
            yield f"I3: {transaction} was committed, and has {settled[transaction]} outcomes"
    for transaction in settled.keys() - set(rest.committed):
        yield f"I3: {transaction} was never committed, and has an outcome"


def _gaps(rest: Rest) -> Iterator[str]:
    used: dict[Hashable, list[int]] = defaultdict(list)
    for made in rest.signatures:
        used[made.key].append(made.nonce)
    for key, nonces in used.items():
        first = rest.first_nonces.get(key, 0)
        if sorted(nonces) != list(range(first, first + len(nonces))):
            yield f"I4: the nonces of {key} from {first} on are {sorted(nonces)}"


def _repeats(rest: Rest) -> Iterator[str]:
    for lent, times in Counter(lent.batch for lent in rest.published).items():
        if times != 1:
            yield f"I5: batch {lent} was published {times} times"


def _unpublished(rest: Rest) -> Iterator[str]:
    promised = {lent.batch: lent for lent in rest.ledger}
    published = {lent.batch: lent for lent in rest.published}
    for batch in promised.keys() | published.keys():
        if promised.get(batch) != published.get(batch):
            yield f"I7: batch {batch}: the ledger has {promised.get(batch)}, published was {published.get(batch)}"


def _left_in_etcd(rest: Rest) -> Iterator[str]:
    yield from (f"I7: etcd still holds an assignment of {batch}" for batch in rest.assigned)
    yield from (f"I7: {key} is still locked" for key in rest.locked)
    for stream in rest.heads.keys() | rest.ledger_heads.keys():
        known, sworn = rest.heads.get(stream, 0), rest.ledger_heads.get(stream, 0)
        if known != sworn:
            yield f"I7: {stream} has come to batch {known} in etcd, to batch {sworn} in the ledger"
    lent: dict[Hashable, int] = dict(rest.first_nonces)
    for promise in rest.ledger:
        if promise.signable:
            lent[promise.key] = lent.get(promise.key, 0) + promise.signable
    for key in lent.keys() | rest.next_nonces.keys():
        if lent.get(key) != rest.next_nonces.get(key):
            yield f"I7: {key} is at nonce {rest.next_nonces.get(key)} in etcd, at {lent.get(key)} in the ledger"


def _untold(rest: Rest) -> Iterator[str]:
    signed = {made.transaction for made in rest.signatures}
    told = {transaction for transaction, status in rest.outcomes.items() if status == "signed"}
    rejected = {transaction for transaction, status in rest.outcomes.items() if status == "rejected"}
    for transaction in (signed ^ told) | (set(rest.rejected) ^ rejected):
        yield f"I7: {transaction} has the outcome {rest.outcomes.get(transaction)}, published was otherwise"

"""One sender's transactions on their way into a block: which to send, which to send again, which are settled. Pure.

    settled ≤ latest ≤ sent_to ≤ loaded_to

Nonces below `settled` are decided, below `latest` used on the chain, below `sent_to` sent, below `loaded_to` at hand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from pipeline.ethereum.sidecar import has_blobs, network_bytes
from pipeline.ethereum.signed import SignedRecord

SLOT_BYTES: Final = 32 * 1024
"""A pool counts a transaction once for each of these (go-ethereum, core/txpool/legacypool, txSlotSize)."""

DELEGATED_IN_FLIGHT_MAX: Final = 1
"""Of an account that has delegated its code (EIP-7702); pools keep no more (go-ethereum, core/txpool/legacypool,
ErrInflightTxLimitReached)."""

BLOBS_RESEND_FACTOR: Final = 4
"""Times as long is waited before a transaction with blobs is offered again: each blob costs 137 KB on the way."""

LATER_S: Final = 2.0
REFUSED_S: Final = 30.0
"""Until a transaction that the node would not take is offered again: it was full; it said no."""


class Reception(StrEnum):
    """What a node did with a transaction."""

    TAKEN = "taken"
    KNOWN = "known"  #: it had it
    STALE = "stale"  #: its nonce is used: by itself, or by another
    LATER = "later"  #: the node has no room for it now
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Answer:
    """A node's answer to one transaction, and its own words."""

    reception: Reception
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Transaction:
    """A signed transaction; `tx_id` is None for a filler."""

    source: str
    tx_id: int | None
    nonce: int
    hash: bytes
    raw: bytes

    @property
    def slots(self) -> int:
        """Places in a node's pool."""
        return -(-len(self.raw) // SLOT_BYTES)

    @property
    def has_blobs(self) -> bool:
        """Whether it goes into the node's pool of blobs."""
        return has_blobs(self.raw)

    @property
    def sent_bytes(self) -> int:
        """In a request to the node, with its blobs."""
        return network_bytes(self.raw)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing of a sender moves, and until when nothing is tried."""

    nonce: int
    answer: Answer
    until_s: float


@dataclass(slots=True)
class Flight:
    """When a transaction was last offered, in how many slots of which pool, and how often the node has taken it."""

    at_s: float
    slots: int
    has_blobs: bool
    takes: int = 0

    def is_overdue(self, now_s: float, resend_after_s: float) -> bool:
        """Whether to offer it again."""
        return now_s - self.at_s >= resend_after_s * (BLOBS_RESEND_FACTOR if self.has_blobs else 1)


@dataclass(slots=True)
class Account:
    """A sender with work. Times are of a monotonic clock, in seconds."""

    sender: str
    settled: int
    latest: int | None = None  #: not looked at yet
    sent_to: int = 0
    refusal: Refusal | None = None
    delegated: bool = False  #: its code, to another account (EIP-7702)
    unsure: bool = True  #: whether it is delegated is to be asked: it is new, or the node has not kept all of it
    flights: dict[int, Flight] = field(default_factory=dict)
    missed: int = 0  #: looks in which the first unsettled nonce was used, and had no receipt
    _records: deque[SignedRecord] = field(default_factory=deque)

    @property
    def loaded_to(self) -> int:
        """The nonce after the last one at hand."""
        return self.ends(self._records[-1]) if self._records else self.settled

    @property
    def slots(self) -> int:
        """Places that its transactions take in the node's pool."""
        return sum(flight.slots for flight in self.flights.values())

    @property
    def size(self) -> int:
        """Bytes of what is at hand."""
        return sum(record.rows.nbytes for record in self._records)

    @property
    def blocked(self) -> bool:
        """Whether the next nonce of the chain is the one that the node refuses."""
        return self.refusal is not None and self.latest is not None and self.latest >= self.refusal.nonce

    def load(self, record: SignedRecord) -> None:
        """The batch that begins at `loaded_to`. Raises ValueError for another."""
        if (record.header.sender, record.header.first_nonce) != (self.sender, self.loaded_to):
            raise ValueError(f"{record.header} does not follow nonce {self.loaded_to} of {self.sender}")
        self._records.append(record)

    def at(self, nonce: int) -> Transaction:
        """The transaction of a nonce at hand. Raises KeyError."""
        for record in self._records:
            row = nonce - record.header.first_nonce
            if 0 <= row < record.header.count:
                tx_id, hash_, raw = (record.rows.column(name)[row].as_py() for name in ("tx_id", "hash", "raw"))
                return Transaction(record.header.stream.source, tx_id, nonce, hash_, raw)
        raise KeyError(nonce)

    def advance(self, latest: int) -> None:
        """The chain's next nonce, as just seen; a lower one than before is a reorganisation: it is sent again."""
        self.latest = latest
        self.sent_to = max(self.sent_to, self.settled, min(latest, self.loaded_to))
        self.flights = {nonce: flight for nonce, flight in self.flights.items() if nonce >= latest}
        if self.refusal is not None and self.refusal.nonce < latest:
            self.refusal = None

    def gap(self) -> str:
        """Why nothing can be mined: nonces are missing on the chain that nothing of ours will use. Empty: none are."""
        if self.latest is None or self.latest >= self.settled:
            return ""
        return f"the chain expects nonce {self.latest}, the first that was signed is {self.settled}"

    def due(self, now_s: float, resend_after_s: float, in_flight_max: int, slots: int) -> Iterator[Transaction]:
        """What to offer to the node now, in the order of nonces: what is overdue, then new ones while there is room.

        New ones take at most `slots` places in all. Of a delegated account one is in flight, whatever was before. No
        transaction with blobs is in flight beside one without: an account is in one of a node's pools at a time
        (go-ethereum, core/txpool/reserver.go).
        """
        if self.latest is None or (self.refusal is not None and now_s < self.refusal.until_s):
            return
        most = min(in_flight_max, DELEGATED_IN_FLIGHT_MAX) if self.delegated else in_flight_max
        end = min(self.loaded_to, self.latest + most)
        pool: bool | None = None
        for nonce in range(max(self.latest, self.settled), end):
            flight = self.flights.get(nonce)
            if flight is not None and not flight.is_overdue(now_s, resend_after_s):
                pool = flight.has_blobs
                continue
            transaction = self.at(nonce)
            slots -= transaction.slots if nonce >= self.sent_to else 0
            if slots < 0 or pool not in (None, transaction.has_blobs):
                return
            pool = transaction.has_blobs
            yield transaction

    def answered(self, transaction: Transaction, answer: Answer, now_s: float) -> bool:
        """Take the node's answer; whether it took the transaction again, for it had vanished."""
        nonce = transaction.nonce
        if answer.reception in (Reception.LATER, Reception.REFUSED):
            pause_s = LATER_S if answer.reception is Reception.LATER else REFUSED_S
            self.unsure |= answer.reception is Reception.LATER
            self.flights.pop(nonce, None)
            if self.refusal is None or nonce <= self.refusal.nonce:
                self.refusal = Refusal(nonce, answer, now_s + pause_s)
            return False
        if self.refusal is not None and self.refusal.nonce == nonce:
            self.refusal = None
        flight = self.flights.setdefault(nonce, Flight(now_s, transaction.slots, transaction.has_blobs))
        flight.at_s = now_s
        flight.takes += answer.reception is Reception.TAKEN
        self.sent_to = max(self.sent_to, nonce + 1)
        self.unsure |= flight.takes > 1
        return flight.takes > 1

    def used(self, confirmed: int) -> Iterator[Transaction]:
        """What is at hand and not settled, and has a nonce that the chain has used."""
        for nonce in range(self.settled, min(confirmed, self.loaded_to)):
            yield self.at(nonce)

    def settle(self, nonce: int) -> None:
        """The first unsettled nonce is decided."""
        self.settled, self.missed = nonce + 1, 0
        self.sent_to = max(self.sent_to, self.settled)
        self.flights.pop(nonce, None)
        while self._records and self.ends(self._records[0]) <= self.settled:
            self._records.popleft()

    def decided_by(self, nonce: int) -> int | None:
        """The nonce after the last batch that is decided when this nonce is, if any is."""
        return max((end for record in self._records if (end := self.ends(record)) <= nonce + 1), default=None)

    @staticmethod
    def ends(record: SignedRecord) -> int:
        """The nonce after a batch."""
        return record.header.first_nonce + record.header.count

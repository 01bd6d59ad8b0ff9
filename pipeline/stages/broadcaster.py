"""The broadcaster: sends what was signed to an Ethereum node, each sender's transactions in the order of their nonces.

The ledger is its work list and one number per sender its memory, so that a crash leaves no gap: it goes on with the
first batch that is not decided, and what the node has already is not doubled, for the bytes are the same. It sends what
the verifier has seen and found nothing against. A node's "success" is no delivery: pools drop what is beyond their
limits without a word, so what is in flight stays below them, a receipt alone counts, and what vanished is sent again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Protocol

from pipeline.errors import DependencyDown, MalformedBatch
from pipeline.ethereum.signed import SignedRecord
from pipeline.journal import Journal
from pipeline.ports import BatchLog, Clock, Message, Place
from pipeline.settings import BroadcastSettings
from pipeline.stages.account import REFUSED_S, Account, Answer, Reception, Refusal, Transaction
from pipeline.stages.backoff import Backoff
from pipeline.stages.node import Blobs, Node, Receipt
from pipeline.stages.request import Offer, parts, within

journal = Journal(__name__, "broadcaster")

LOOK_S: Final = 0.5
"""Between two questions for the node's last block."""

LOAD_S: Final = 1.0
"""Between two looks for more to send, when the last one found nothing."""

LOAD_MAX: Final = 64
"""Batches of other senders read before the chain is looked at again."""

GAP_MAX: Final = 32
"""Records that are read for nothing between two that are wanted."""

REQUESTS_MAX: Final = 4
"""Requests to the node at once."""

MISSES_MAX: Final = 5
"""Looks at a used nonce without a receipt of ours, each at another block, before another transaction must have it."""

ACCOUNTS_MAX: Final = 2_048
HELD_BYTES_MAX: Final = 256 * 1024**2
"""Senders, and bytes of their signed batches, at hand at once; more wait until one of these has ended its batch."""


@dataclass(frozen=True, slots=True)
class NextBatch:
    """The batch of a sender that is to be decided next, and where its signed record is."""

    sender: str
    first_nonce: int
    place: Place


@dataclass(frozen=True, slots=True)
class Fate:
    """What has become of a transaction: taken by a node, mined (with a receipt) or failed (with a reason)."""

    sender: str
    transaction: Transaction
    takes: int = 0
    receipt: Receipt | None = None
    reason: str = ""


class Broadcasts(Protocol):
    """What was broadcast, in the database that has ledger and sightings. Every method raises DatabaseUnavailable."""

    async def claim(self, chain_id: int) -> None:
        """Raises NotLeader while another broadcaster serves this chain."""
        ...

    async def next_batches(self, chain_id: int, besides: Sequence[str], limit: int) -> Sequence[NextBatch]:
        """Of senders that have one, verified and without a violation; the oldest first."""
        ...

    async def batches_at(self, chain_id: int, nonces: Mapping[str, int]) -> Sequence[NextBatch]:
        """The verified batches that begin at these nonces of these senders."""
        ...

    async def undecided(self, chain_id: int) -> int:
        """Nonces that were signed, and are neither mined nor lost to another transaction."""
        ...

    async def save(self, chain_id: int, fates: Sequence[Fate], decided: Mapping[str, int]) -> None:
        """In one transaction; `decided` moves senders to the nonce after a batch. What is mined stays mined."""
        ...

    async def close(self) -> None:
        """Let the connection go."""
        ...


@dataclass(frozen=True, slots=True)
class BroadcasterPorts:
    """What the broadcaster needs of the world."""

    node: Node
    blobs: Blobs
    log: BatchLog
    broadcasts: Broadcasts
    clock: Clock


@dataclass(slots=True)
class BroadcastCount:
    """What a broadcaster has done since it started, and how it stands."""

    sent: int = 0
    sent_again: int = 0  #: had vanished from the node's pool
    mined: int = 0
    reverted: int = 0  #: of the mined
    failed: int = 0  #: the nonce was used by another transaction
    in_flight: int = 0
    block: int = 0


class Broadcaster:
    """Serves one chain through one node."""

    def __init__(self, ports: BroadcasterPorts, chain_id: int, settings: BroadcastSettings) -> None:
        self._ports = ports
        self._chain_id = chain_id
        self._settings = settings
        self._accounts: dict[str, Account] = {}
        self._aside: dict[str, Refusal] = {}  #: senders of which nothing is at hand, because nothing can move
        self._told: set[str] = set()
        self._loaded_s = -LOAD_S
        self._looked_at: tuple[int, frozenset[str]] = (-1, frozenset())
        self.count = BroadcastCount()

    def refusals(self) -> dict[str, str]:
        """By sender, why nothing of it moves."""
        active = {sender: account.refusal for sender, account in self._accounts.items() if account.refusal is not None}
        return {sender: f"nonce {r.nonce}: {r.answer.reason}" for sender, r in (self._aside | active).items()}

    async def run(self, stop: asyncio.Event, *, until_mined: bool = False) -> None:
        """Until told to stop, or until nothing is left that can be mined.

        Raises NotLeader beside another broadcaster of the chain, DependencyDown after bounded retries.
        """
        await self._ports.broadcasts.claim(self._chain_id)
        backoff = Backoff(self._ports.clock)
        while not stop.is_set():
            try:
                moved = await self.step()
                if until_mined and not moved and await self._is_done():
                    return
                backoff.reset()
            except DependencyDown as error:
                journal.failed("tries again", error=error)
                await backoff.pause(error)
                continue
            if not moved:
                await self._ports.clock.sleep(LOOK_S)

    async def undecided(self) -> int:
        """Signed nonces that are not decided, of batches that are not verified, too. Raises DatabaseUnavailable."""
        return await self._ports.broadcasts.undecided(self._chain_id)

    async def step(self) -> bool:
        """Take more work, look at the chain, send; whether anything was done. Raises DependencyDown."""
        loaded = await self._load()
        settled = await self._look()
        sent = await self._send()
        self.count.in_flight = sum(len(account.flights) for account in self._accounts.values())
        return loaded or settled or sent

    async def _is_done(self) -> bool:
        """Nothing is at hand, nothing can be loaded, and nobody waits for more than a mended cause."""
        if self._accounts or any(r.answer.reception is Reception.LATER for r in self._aside.values()):
            return False
        return not await self._ports.broadcasts.next_batches(self._chain_id, [*self._aside], 1)

    # ── more work ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _load(self) -> bool:
        now_s = self._ports.clock.monotonic_s()
        if now_s - self._loaded_s < LOAD_S:
            return False
        self._aside = {sender: refusal for sender, refusal in self._aside.items() if refusal.until_s > now_s}
        batches = await self._wanted()
        starts = {topic: await self._ports.log.starts(topic) for topic in {batch.place.topic for batch in batches}}
        for run in _runs(batches):
            await self._take(run, starts[run[0].place.topic][run[0].place.partition])
        if not batches:
            self._loaded_s = now_s
        return bool(batches)

    async def _wanted(self) -> list[NextBatch]:
        """Other senders' batches first; the next ones of those at hand when nobody else waits."""
        room = min(LOAD_MAX, ACCOUNTS_MAX - len(self._accounts))
        if room <= 0 or sum(account.size for account in self._accounts.values()) > HELD_BYTES_MAX:
            return []
        away = [*self._accounts, *self._aside]
        batches = [*await self._ports.broadcasts.next_batches(self._chain_id, away, room)]
        short = {a.sender: a.loaded_to for a in self._accounts.values() if self._runs_short(a)}
        if short and len(batches) < room:
            batches += await self._ports.broadcasts.batches_at(self._chain_id, short)
        return batches

    def _runs_short(self, account: Account) -> bool:
        return account.refusal is None and account.loaded_to - account.sent_to < self._settings.in_flight_per_sender

    async def _take(self, run: Sequence[NextBatch], kept_from: int) -> None:
        """Batches of one partition, in one go; `kept_from` is its oldest offset."""
        topic, partition = run[0].place.topic, run[0].place.partition
        first, end = run[0].place.offset, run[-1].place.offset + 1
        found: dict[int, Message] = {}
        wanted = {batch.place.offset for batch in run}
        async with aclosing(self._ports.log.scan(topic, partition, max(first, kept_from), end)) as messages:
            async for message in messages:
                if message.place.offset in wanted:
                    found[message.place.offset] = message
        for batch in run:
            account = self._accounts.get(batch.sender) or Account(batch.sender, batch.first_nonce)
            record = self._record(batch, found.get(batch.place.offset))
            if isinstance(record, str):
                self._deny(account, record)
                continue
            account.load(record)
            self._accounts[batch.sender] = account

    def _record(self, batch: NextBatch, message: Message | None) -> SignedRecord | str:
        """The signed record, or why there is none."""
        if message is None:
            return f"Kafka no longer keeps its signed record {batch.place}"
        try:
            record = SignedRecord.decode(message.value)
        except MalformedBatch as error:
            return f"{batch.place}: {error}"
        found = record.header.chain_id, record.header.sender, record.header.first_nonce
        if found != (self._chain_id, batch.sender, batch.first_nonce):
            return f"{batch.place} holds chain, sender and nonce {found}, not what the ledger says"
        return record

    def _deny(self, account: Account, reason: str) -> None:
        """Nothing of it can move until an operator has acted; its place is another's."""
        if account.sender not in self._told:
            journal.denied("nothing of a sender moves", sender=account.sender, reason=reason)
        self._told.add(account.sender)
        self._accounts.pop(account.sender, None)
        until_s = self._ports.clock.monotonic_s() + REFUSED_S
        self._aside[account.sender] = Refusal(account.settled, Answer(Reception.REFUSED, reason), until_s)

    # ── the chain ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _look(self) -> bool:
        """At each new block, and for each new sender: which nonces are used, and what our transactions came to."""
        if not self._accounts:
            return False
        head = await self._ports.node.head()
        if self._looked_at == (head, frozenset(self._accounts)):
            return False
        accounts = [*self._accounts.values()]
        senders = [account.sender for account in accounts]
        latest = await self._ports.node.nonces(senders, head)
        confirmed = latest
        if depth := self._settings.confirmations:
            confirmed = await self._ports.node.nonces(senders, max(0, head - depth))
        used = [
            (account, transaction)
            for account, nonce in zip(accounts, confirmed, strict=True)
            for transaction in account.used(nonce)
        ]
        receipts = await self._ports.node.receipts([transaction.hash for _, transaction in used]) if used else []
        for account, nonce in zip(accounts, latest, strict=True):
            account.advance(nonce)
        await self._settle(zip(used, receipts, strict=True))
        for account in accounts:
            if reason := account.gap():
                self._deny(account, reason)
        self.count.block = head
        self._looked_at = (head, frozenset(self._accounts))
        return bool(used)

    async def _settle(self, found: Iterable[tuple[tuple[Account, Transaction], Receipt | None]]) -> None:
        """Decide each sender's nonces in their order; saved first, so that a crash repeats and forgets nothing."""
        fates: dict[str, list[Fate]] = {}
        for (account, transaction), receipt in found:
            decided = fates.setdefault(account.sender, [])
            if transaction.nonce == account.settled + len(decided) and not self._must_wait(account, receipt):
                reason = "" if receipt else "the nonce was used by another transaction"
                decided.append(Fate(account.sender, transaction, 0, receipt, reason))
        last = {sender: decided[-1].transaction.nonce for sender, decided in fates.items() if decided}
        ends = {sender: self._accounts[sender].decided_by(nonce) for sender, nonce in last.items()}
        every = [fate for decided in fates.values() for fate in decided]
        await self._ports.broadcasts.save(self._chain_id, every, {s: end for s, end in ends.items() if end is not None})
        for fate in every:
            self._accounts[fate.sender].settle(fate.transaction.nonce)
            self._tally(fate)
        for sender in last:
            account = self._accounts[sender]
            if account.loaded_to == account.settled:
                del self._accounts[sender]  # its turn is over; its next batch waits like everybody's

    def _must_wait(self, account: Account, receipt: Receipt | None) -> bool:
        """A node behind a balancer may be a block behind the one that was asked before, and know no receipt yet."""
        if receipt is not None or account.missed + 1 >= MISSES_MAX:
            return False
        account.missed += 1
        return True

    def _tally(self, fate: Fate) -> None:
        if fate.receipt is not None:
            self.count.mined += 1
            self.count.reverted += not fate.receipt.succeeded
            return
        self.count.failed += 1
        journal.ended("a nonce is lost", sender=fate.sender, nonce=fate.transaction.nonce, reason=fate.reason)

    # ── sending ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _send(self) -> bool:
        await self._find_delegated()
        now_s, per_sender = self._ports.clock.monotonic_s(), self._settings.in_flight_per_sender
        room = self._settings.in_flight_max - sum(account.slots for account in self._accounts.values())
        offers: list[Offer] = []
        for account in self._accounts.values():
            due = within(account.due(now_s, self._settings.resend_after_s, per_sender, room))
            room -= sum(t.slots for t in due if t.nonce >= account.sent_to)
            offers += [(account, transaction) for transaction in due]
        gate = asyncio.Semaphore(REQUESTS_MAX)
        await asyncio.gather(*(self._offer(part, gate) for part in parts(offers)))
        for account in [*self._accounts.values()]:
            if account.refusal is not None and account.blocked:
                self._aside[account.sender] = account.refusal
                del self._accounts[account.sender]
        return bool(offers)

    async def _find_delegated(self) -> None:
        """Among senders that are new here, and those of which the node would not take or keep more."""
        unsure = [account for account in self._accounts.values() if account.unsure]
        found = await self._ports.node.delegated([account.sender for account in unsure]) if unsure else []
        for account, delegated in zip(unsure, found, strict=True):
            account.delegated, account.unsure = delegated, False

    async def _offer(self, offers: Sequence[Offer], gate: asyncio.Semaphore) -> None:
        async with gate:
            answered = await self._answers(offers)
        now_s = self._ports.clock.monotonic_s()
        fates = []
        for account, transaction, answer in answered:
            again = account.answered(transaction, answer, now_s)
            self.count.sent_again += again
            if answer.reception is Reception.TAKEN:
                self.count.sent += not again
                fates.append(Fate(account.sender, transaction, 1))
            if answer.reception is Reception.REFUSED:
                fates.append(Fate(account.sender, transaction, 0, None, answer.reason))
        await self._ports.broadcasts.save(self._chain_id, fates, {})

    async def _answers(self, offers: Sequence[Offer]) -> list[tuple[Account, Transaction, Answer]]:
        """The node's, or why something is not offered to it; a sender's later transactions wait with that one."""
        offered: list[Offer] = []
        forms: list[bytes] = []
        withheld: dict[str, tuple[Account, Transaction, Answer]] = {}
        for account, transaction in offers:
            if account.sender in withheld:
                continue
            form = await self._form(transaction)
            if isinstance(form, str):
                withheld[account.sender] = account, transaction, Answer(Reception.REFUSED, form)
            else:
                offered.append((account, transaction))
                forms.append(form)
        answers = await self._ports.node.send(forms) if forms else []
        return [(*offer, answer) for offer, answer in zip(offered, answers, strict=True)] + [*withheld.values()]

    async def _form(self, transaction: Transaction) -> bytes | str:
        return await self._ports.blobs.network_form(transaction.raw) if transaction.has_blobs else transaction.raw


def _runs(batches: Iterable[NextBatch]) -> list[list[NextBatch]]:
    """Of one partition each, near enough to each other to read what is between: a jump costs a tenth of a second."""
    runs: list[list[NextBatch]] = []
    for batch in sorted(batches, key=lambda each: (each.place.topic, each.place.partition, each.place.offset)):
        place, before = batch.place, runs[-1][-1].place if runs else None
        near = before and (before.topic, before.partition) == (place.topic, place.partition)
        if before is None or not near or place.offset - before.offset > GAP_MAX:
            runs.append([])
        runs[-1].append(batch)
    return runs

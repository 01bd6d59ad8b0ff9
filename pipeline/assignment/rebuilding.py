"""etcd as it must be, from what the ledger, Kafka and Postgres hold: facts → records and differences. Pure.

    key         next nonce = the ledger's watermark; locked only for a batch that was sworn and not published
    stream      has come to the last batch that the ledger has, or to the last one assigned after it
    assignment  one for each batch that was sworn and not published, with the very key, nonces and fence of the ledger;
                one that was never sworn stays if it fits, under a new fence; a batch before the ledger's last one
                that has neither (batches of a stream are signed side by side) gets a new one

The ledger is believed: a key goes back to its watermark when the assignment that took it further was never sworn. What
cannot be told, or says that the ledger itself has lost rows, is a problem, and nothing is written while there is one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from pipeline.assignment.archive import KeptKey, Key
from pipeline.assignment.records import Assignment, Holder, KeyRecord, KeyState, StreamRecord
from pipeline.assignment.rules import NONCE_END, Batch, denial
from pipeline.assignment.view import GENERATION_SHIFT, View, turn
from pipeline.ethereum.reasons import Reason
from pipeline.ports import AssignRequest, LedgerEntry
from pipeline.stream import Cursor, Stream

WORKER: Final = "recover"
"""Who holds a rebuilt assignment until a worker asks for its batch."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is left of a deployment beside etcd, once nothing moves any more."""

    watermarks: Mapping[Key, int]
    kept: Mapping[Key, KeptKey]
    heads: Mapping[Stream, LedgerEntry] = field(default_factory=dict)  #: the ledger's last row of each stream
    unpublished: Mapping[Batch, LedgerEntry] = field(default_factory=dict)  #: in the ledger, and not on tx.signed
    sworn: frozenset[Batch] = frozenset()  #: of the batches that etcd has an assignment for, those in the ledger
    holes: frozenset[Batch] = frozenset()  #: batches below a head that are not in the ledger
    batches: Mapping[Batch, AssignRequest] = field(default_factory=dict)  #: on tx.batches, as far as they are needed
    cursors: Mapping[Stream, Cursor] = field(default_factory=dict)  #: of the heads
    chains: Mapping[Stream, tuple[int, str]] = field(default_factory=dict)  #: chain and system id, by the settings
    retired: Collection[Key] = frozenset()  #: never lent again
    apart: Collection[Key] = frozenset()  #: lent for blob transactions alone
    generation: int = 0  #: of the ledger: what was assigned in an earlier one and is not in it, it refuses
    problems: tuple[str, ...] = ()  #: what could not be told while the facts were gathered


@dataclass(frozen=True, slots=True)
class Difference:
    """One record of etcd that is not as it must be."""

    what: str  #: genesis, sealed key, key, stream, assignment
    name: str
    found: str  #: "" = nothing
    wanted: str  #: "" = nothing
    why: str


@dataclass(slots=True)
class Rebuilt:
    """Every record as it must be. A sealed key is only ever added."""

    keys: dict[Key, KeyRecord] = field(default_factory=dict)
    streams: dict[Stream, StreamRecord] = field(default_factory=dict)
    assignments: dict[Batch, Assignment] = field(default_factory=dict)
    sealed: dict[str, bytes] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def rebuild(view: View, facts: Facts, fence: int | None, node: str, now_ms: int) -> Rebuilt:
    """What etcd must hold instead of `view`; what was never sworn is assigned under `fence`.

    Without one it is a look: an assignment that fits keeps the fence that it has.
    """
    return _Rebuilding(view, facts, fence, node, max(now_ms, view.latest_ms)).rebuilt()


class _Rebuilding:
    def __init__(self, view: View, facts: Facts, fence: int | None, node: str, now_ms: int) -> None:
        self._view, self._facts = view, facts
        self._kept_under, self._fence = fence, fence or 0
        self._node, self._now_ms = node, now_ms
        self._made = Rebuilt(problems=list(facts.problems))
        self._taken: dict[Key, Batch] = {}
        self._why: dict[Batch, str] = {}

    def rebuilt(self) -> Rebuilt:
        self._bring_back_sealed()
        for batch, entry in sorted(self._facts.unpublished.items()):
            self._sworn(batch, entry)
        self._never_sworn()
        for batch in sorted(self._facts.holes):
            if batch not in self._made.assignments:
                self._hole(batch)
        self._streams()
        self._keys()
        self._compare()
        return self._made

    # ── sealed keys ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _bring_back_sealed(self) -> None:
        for key in self._facts.kept.values():
            if key.address not in self._view.sealed:
                self._made.sealed[key.address] = key.sealed

    def _can_sign(self, key: Key) -> bool:
        return key[1] in self._view.sealed or key[1] in self._made.sealed

    def _known(self) -> set[Key]:
        return {*self._view.keys, *self._facts.kept, *self._facts.watermarks, *self._facts.retired}

    def _base(self, key: Key) -> int:
        """Its next nonce if it is not locked."""
        if key in self._facts.watermarks:
            return self._facts.watermarks[key]
        if key in self._facts.kept:
            return self._facts.kept[key].start_nonce
        if key not in self._view.keys:
            return 0
        held = self._view.keys[key].record
        if held.state is KeyState.LOCKED and held.holder is not None:
            lent = self._view.assignments.get((held.holder.stream, held.holder.seq))
            if lent is not None and lent.record.address == held.address:
                return lent.record.first_nonce
        return held.next_nonce

    # ── assignments ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _sworn(self, batch: Batch, entry: LedgerEntry) -> None:
        held = self._view.assignments.get(batch)
        if held is not None and _is_sworn_as(held.record, entry):
            self._take(batch, held.record, "")
            return
        request = self._facts.batches.get(batch)
        name = f"batch {entry.seq} of {entry.stream}"
        if request is None:
            self._made.problems.append(f"{name} was sworn and not published, and is not on its topic any more")
        elif request.digest != entry.digest:
            self._made.problems.append(f"{name} is on its topic with another digest than the ledger's")
        elif entry.count == 0 < request.count and request.sender and request.chain_id == entry.chain_id:
            # The ledger says that it was denied, not why: what the pool says now is as good a reason.
            why = denial(self._record(request.chain_id, request.sender), request) or Reason.SENDER_DISABLED
            made = self._assignment(request, "", 0, entry.fence, why.code)
            self._take(batch, made, "the ledger has it, tx.signed does not")
        elif (request.chain_id, request.count) != (entry.chain_id, entry.count):
            self._made.problems.append(
                f"{name} has {request.count} signable rows for chain {request.chain_id} by this version's rules, the "
                f"ledger has {entry.count} for chain {entry.chain_id}"
            )
        elif entry.sender and not self._can_sign((entry.chain_id, entry.sender)):
            self._made.problems.append(
                f"{name} was sworn and not published, and its key {entry.sender} is neither in etcd nor in Postgres"
            )
        else:
            made = self._assignment(request, entry.sender, entry.first_nonce, entry.fence)
            self._take(batch, made, "the ledger has it, tx.signed does not")

    def _never_sworn(self) -> None:
        """Assignments that no signer ever wrote down: they are bound for ever too, as long as everything fits."""
        open_ends: set[Stream] = set()
        for batch, held in sorted(self._view.assignments.items()):
            stream, seq = batch
            lent = held.record
            if batch in self._facts.sworn or stream in open_ends:
                continue
            if seq > self._head(stream) and seq != self._come_to(stream) + 1:
                open_ends.add(stream)
            elif self._fits(batch, lent):
                # Whoever still has it from before must not write it down beside what is made of it now.
                kept = replace(lent, fence=self._kept_fence(lent))
                self._take(batch, kept, "it was never signed: it goes on under a new fence")
            elif seq > self._head(stream):
                open_ends.add(stream)

    def _kept_fence(self, lent: Assignment) -> int:
        if self._kept_under is not None:
            return self._kept_under
        return max(lent.fence, self._facts.generation << GENERATION_SHIFT)

    def _fits(self, batch: Batch, lent: Assignment) -> bool:
        request = self._facts.batches.get(batch)
        if request is not None and request.digest != lent.digest:
            return False
        if not lent.address:
            return True
        key = lent.chain_id, lent.address
        free = key in self._view.keys and key not in self._taken and key not in self._facts.retired
        return free and self._can_sign(key) and self._base(key) == lent.first_nonce

    def _hole(self, batch: Batch) -> None:
        request = self._facts.batches.get(batch)
        name = f"batch {batch[1]} of {batch[0]}"
        if request is None:
            self._made.problems.append(f"{name} was never signed, and is not on its topic any more")
            return
        address, nonce, denied = "", 0, ""
        if request.count and request.sender:
            why = denial(self._record(request.chain_id, request.sender), request)
            denied = why.code if why is not None else ""
        if request.count and not denied:
            key = self._free_key(request)
            if key is None:
                missing = f"a key, and none of chain {request.chain_id} is free"
                lacks = f"{request.sender}, which is not free" if request.sender else missing
                self._made.problems.append(f"{name} needs {lacks}")
                return
            address, nonce = key[1], self._base(key)
        made = self._assignment(request, address, nonce, self._fence, denied)
        self._take(batch, made, "later batches of its stream are in the ledger, it is not")

    def _record(self, chain_id: int, address: str) -> KeyRecord | None:
        """A key as it will be, but for what it is locked for; None for one that cannot sign."""
        key = chain_id, address
        if key not in self._known() or not self._can_sign(key):
            return None
        held = self._view.keys.get(key)
        record = held.record if held is not None else self._new_key(key)
        return self._unlocked(record, self._base(key))

    def _new_key(self, key: Key) -> KeyRecord:
        state = KeyState.FREE if self._can_sign(key) else KeyState.DISABLED
        return KeyRecord(*key, state, self._base(key), self._now_ms, 0, set_apart=key in self._facts.apart)

    def _free_key(self, request: AssignRequest) -> Key | None:
        """Of those that etcd knows the one whose turn it is, else the first of those that come back."""
        known = [held.record for key, held in self._view.keys.items() if key not in self._taken]
        lendable = [
            key for key in known if key.state in (KeyState.FREE, KeyState.LOCKED) and not key.disable_on_release
        ]
        keys = [(key.chain_id, key.address) for key in sorted(lendable, key=turn)]
        keys += sorted(set(self._facts.kept) - set(self._view.keys) - set(self._taken))
        keys = [key for key in keys if key not in self._facts.retired]
        keys = [key for key in keys if key[0] == request.chain_id and (key in self._facts.apart) is request.blobs]
        keys = [key for key in keys if request.sender in ("", key[1])]
        fits = (k for k in keys if self._can_sign(k) and self._base(k) + request.count <= NONCE_END)
        return next(fits, None)

    def _assignment(
        self, request: AssignRequest, address: str, first_nonce: int, fence: int, denied: str = ""
    ) -> Assignment:
        return Assignment(
            stream=request.stream,
            seq=request.seq,
            prev=request.prev,
            cursor=request.cursor,
            digest=request.digest,
            chain_id=request.chain_id,
            address=address,
            first_nonce=first_nonce,
            count=0 if denied else request.count,
            rows=request.rows,
            rules_version=request.rules_version,
            fence=fence,
            worker=request.worker,
            node=request.node,
            since_unix_ms=self._now_ms,
            batch_offset=request.batch_offset,
            signed_from=request.signed_from,
            denied=denied,
        )

    def _take(self, batch: Batch, made: Assignment, why: str) -> None:
        self._made.assignments[batch] = made
        self._why[batch] = why
        if made.address:
            other = self._taken.setdefault((made.chain_id, made.address), batch)
            if other != batch:
                self._made.problems.append(f"{made.address} is sworn to two batches that are not published")

    # ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _head(self, stream: Stream) -> int:
        head = self._facts.heads.get(stream)
        return head.seq if head is not None else 0

    def _come_to(self, stream: Stream) -> int:
        """The ledger's last batch, or the last one assigned in a row after it."""
        seq = self._head(stream)
        while (stream, seq + 1) in self._made.assignments:
            seq += 1
        return seq

    def _streams(self) -> None:
        for stream in sorted({*self._view.streams, *self._facts.heads}):
            held = self._view.streams.get(stream)
            seq = self._come_to(stream)
            last = self._made.assignments.get((stream, seq))
            head = self._facts.heads.get(stream)
            digest = last.digest if last is not None else head.digest if head is not None else ""
            if held is not None and (held.record.seq, held.record.digest) == (seq, digest):
                self._made.streams[stream] = held.record
                continue
            record = held.record if held is not None else self._new_stream(stream)
            cursor = last.cursor if last is not None else self._facts.cursors.get(stream) if seq else None
            if record is None or (seq and cursor is None):
                if record is not None:
                    self._made.problems.append(f"nothing says where batch {seq} of {stream} ends")
                continue
            start = StreamRecord(stream, record.chain_id, record.system_id)
            self._made.streams[stream] = replace(record, seq=seq, cursor=cursor or start.cursor, digest=digest)

    def _new_stream(self, stream: Stream) -> StreamRecord | None:
        head = self._facts.heads[stream]
        if stream not in self._facts.chains:
            self._made.problems.append(f"the ledger has stream {stream}, and no source of the settings has it")
            return None
        chain_id, system_id = self._facts.chains[stream]
        if chain_id != head.chain_id:
            self._made.problems.append(f"the ledger has {stream} on chain {head.chain_id}, the settings on {chain_id}")
            return None
        return StreamRecord(stream, chain_id, system_id)

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _keys(self) -> None:
        for key in sorted(self._known()):
            held = self._view.keys.get(key)
            batch = self._taken.get(key)
            record = held.record if held is not None else self._new_key(key)
            record = replace(record, set_apart=key in self._facts.apart)
            if held is not None and record.state is not KeyState.LOCKED and record.next_nonce > self._base(key):
                # Only a published batch frees a key, and only one that was sworn is published: the ledger has lost it.
                self._made.problems.append(
                    f"etcd would lend nonce {record.next_nonce} of {record.address} next, the ledger says "
                    f"{self._base(key)}: it has lost rows"
                )
            if batch is not None:
                self._made.keys[key] = self._locked(record, self._made.assignments[batch])
            else:
                self._made.keys[key] = self._unlocked(record, self._base(key))

    def _locked(self, key: KeyRecord, lent: Assignment) -> KeyRecord:
        holder = key.holder
        if holder is None or (holder.stream, holder.seq) != (lent.stream, lent.seq):
            holder = Holder(lent.stream, lent.seq, lent.worker, lent.node, self._fence)
        return replace(
            key,
            state=KeyState.LOCKED,
            next_nonce=lent.first_nonce + lent.count,
            since_unix_ms=key.since_unix_ms if key.state is KeyState.LOCKED else self._now_ms,
            holder=holder,
            disable_on_release=key.disable_on_release or key.state is KeyState.DISABLED,
        )

    def _unlocked(self, key: KeyRecord, next_nonce: int) -> KeyRecord:
        if (key.chain_id, key.address) in self._facts.retired:
            key = replace(key, state=KeyState.RETIRED, disable_on_release=False)
        if key.state is not KeyState.LOCKED:
            return replace(key, next_nonce=next_nonce, holder=None)
        return replace(
            key,
            state=KeyState.DISABLED if key.disable_on_release else KeyState.FREE,
            next_nonce=next_nonce,
            since_unix_ms=self._now_ms,
            holder=None,
            disable_on_release=False,
        )

    # ── what differs ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _compare(self) -> None:
        add = self._made.differences.append
        for address in sorted(self._made.sealed):
            add(Difference("sealed key", address, "", "its sealed bytes", "Postgres has its copy"))
        for key, record in self._made.keys.items():
            held = self._view.keys.get(key)
            if held is None or held.record != record:
                name = f"{key[1]} on chain {key[0]}"
                found, wanted = _told_key(held.record) if held else "", _told_key(record)
                add(Difference("key", name, found, wanted, self._why_key(key, known=held is not None)))
        for stream, wanted_stream in self._made.streams.items():
            known = self._view.streams.get(stream)
            if known is None or known.record != wanted_stream:
                found = _told_stream(known.record) if known else ""
                why = "the ledger and the assignments say so"
                add(Difference("stream", str(stream), found, _told_stream(wanted_stream), why))
        self._compare_assignments()

    def _compare_assignments(self) -> None:
        for batch in sorted({*self._view.assignments, *self._made.assignments}):
            held, wanted = self._view.assignments.get(batch), self._made.assignments.get(batch)
            if held is not None and held.record == wanted:
                continue
            found = _told_assignment(held.record) if held else ""
            why = self._why.get(batch, "")
            if wanted is None:
                why = "it was published" if batch in self._facts.sworn else "it was never signed, and does not fit"
            said = _told_assignment(wanted) if wanted else ""
            self._made.differences.append(Difference("assignment", f"{batch[0]} batch {batch[1]}", found, said, why))

    def _why_key(self, key: Key, *, known: bool) -> str:
        if not known:
            if key in self._facts.retired:
                return "it was retired"
            if not self._can_sign(key):
                return "the ledger has its signatures; its private key must be imported again"
            return "Postgres has its copy; if it was disabled, disable it again"
        if key in self._facts.retired and self._view.keys[key].record.state is not KeyState.RETIRED:
            return "it was retired"
        if key in self._taken:
            return "its last batch is not published"
        return "the ledger says so" if key in self._facts.watermarks else "it has signed nothing"


def _is_sworn_as(lent: Assignment, entry: LedgerEntry) -> bool:
    return (lent.digest, lent.chain_id, lent.address, lent.first_nonce, lent.count, lent.fence) == (
        entry.digest, entry.chain_id, entry.sender, entry.first_nonce, entry.count, entry.fence
    )  # fmt: skip


def _told_key(key: KeyRecord) -> str:
    held = f" for {key.holder.stream} batch {key.holder.seq}" if key.holder else ""
    return f"{key.state.value}{held}, next nonce {key.next_nonce}"


def _told_stream(stream: StreamRecord) -> str:
    return f"at batch {stream.seq}, cursor {stream.cursor}" + (", halted" if stream.halted else "")


def _told_assignment(lent: Assignment) -> str:
    if not lent.address:
        return "no key"
    return f"{lent.address}, nonces {lent.first_nonce} to {lent.first_nonce + lent.count - 1}, fence {lent.fence}"

"""Which batch gets which key and nonces: pure functions from a view and requests to a plan and replies.

The rules are those of the protocol (docs/protocol.md). A reply is true only once the plan's transaction succeeded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

from pipeline.assignment.budget import Budget
from pipeline.assignment.plan import Plan
from pipeline.assignment.records import Assignment, Holder, KeyRecord, KeyState, StreamRecord
from pipeline.assignment.view import Guard, View, turn
from pipeline.errors import NotReleasable
from pipeline.ethereum.reasons import Reason
from pipeline.ports import Assigned, AssignReply, AssignRequest, Published, Refused, Waiting
from pipeline.stream import Stream

NONCE_END: Final = 2**64 - 1
"""EIP-2681: a nonce is below 2^64 - 1."""

WRITES_PER_BATCH: Final = 3
"""Assignment, stream and key, which may only be relied on."""

WRITES_MAX: Final = 120
"""With the three compares of the guard, within etcd's 128 operations (--max-txn-ops)."""

Batch: TypeAlias = tuple[Stream, int]
Pool: TypeAlias = tuple[int, bool]
"""A chain, and whether its keys are set apart for blob transactions."""

NO_BUDGETS: Final[Mapping[str, Budget]] = {}


class Assigning:
    """One group of requests on its way to one transaction."""

    def __init__(
        self,
        view: View,
        guard: Guard,
        now_ms: int,
        ledger: Mapping[Batch, str | None],
        budgets: Mapping[str, Budget] = NO_BUDGETS,
    ) -> None:
        """`ledger` holds the digests of batches at or below their stream's seq, None where the ledger has no row.

        `budgets` are by source.
        """
        self.plan = Plan(guard, view)
        self._now_ms = max(now_ms, view.latest_ms)
        self._ledger = ledger
        self._free: dict[Pool, list[KeyRecord]] = {}  # in turn
        self._starved: set[Pool] = set()
        self._held_back: set[Stream] = set()
        self._budgets = budgets
        self.over_budget: set[str] = set()  #: sources with a batch that waits for the next period

    def replies(self, requests: Sequence[AssignRequest]) -> list[AssignReply]:
        """Replies in order, for as many as fit one transaction; fills the plan."""
        replies: list[AssignReply] = []
        for request in requests:
            if self.plan.size() + WRITES_PER_BATCH > WRITES_MAX:
                break
            replies.append(self._reply(request))
        return replies

    def _reply(self, request: AssignRequest) -> AssignReply:
        stream = self.plan.stream(request.stream)
        if stream is None:
            self.plan.rely_on_stream(request.stream)
            return Refused(f"stream {request.stream} is unknown")
        if stream.halted:
            self.plan.rely_on_stream(request.stream)
            return Refused(stream.halted)
        existing = self.plan.assignment(request.stream, request.seq)
        if existing is not None:
            return self._again(stream, existing, request)
        if request.seq <= stream.seq:
            return self._published(stream, request)
        return Waiting() if request.stream in self._held_back else self._next(stream, request)

    def _next(self, stream: StreamRecord, request: AssignRequest) -> AssignReply:
        mismatch = _mismatch(stream, request)
        return self._halt(stream, mismatch) if mismatch else self._assign(stream, request)

    def _again(self, stream: StreamRecord, existing: Assignment, request: AssignRequest) -> AssignReply:
        """The same batch once more: the same key and nonces, held by whoever has the batch now."""
        if existing.digest != request.digest:
            return self._halt(stream, f"batch {request.seq} came with another digest than the one assigned")
        key = self.plan.key(existing.chain_id, existing.address) if existing.address else None
        if existing.address and not is_locked_for(key, existing):
            return self._halt(stream, f"batch {request.seq} has the key {existing.address}, which is not locked for it")
        assignment = replace(existing, worker=request.worker, node=request.node)
        if assignment != existing:
            self.plan.put(assignment)
            if key is not None:
                self.plan.put(replace(key, holder=self._holder(assignment)))
        else:
            self.plan.rely_on_assignment(request.stream, request.seq)
        return self._assigned(assignment)

    def _published(self, stream: StreamRecord, request: AssignRequest) -> AssignReply:
        """Its assignment is gone, so it was published; the ledger must know the same batch."""
        batch = request.stream, request.seq
        if batch not in self._ledger:  # the view was read again since the ledger was asked; it will be asked next time
            self._held_back.add(request.stream)
            return Waiting()
        digest = self._ledger[batch]
        if digest == request.digest:
            self.plan.rely_on_stream(request.stream)
            return Published()
        found = "no row" if digest is None else "another digest"
        return self._halt(stream, f"batch {request.seq} was published, but the ledger has {found} for it")

    def _assign(self, stream: StreamRecord, request: AssignRequest) -> AssignReply:
        if request.count and request.sender:
            pinned = self.plan.key(request.chain_id, request.sender)
            if denied := denial(pinned, request):
                self.plan.rely_on_key(request.chain_id, request.sender)
                return self._lend(stream, request, None, denied.code)
        if not self._affords(request):
            self.over_budget.add(request.stream.source)
            self._held_back.add(request.stream)
            return Waiting()
        key = self._key_for(request) if request.count else None
        if key is None and request.count:
            self._held_back.add(request.stream)
            return Waiting()
        return self._lend(stream, request, key)

    def _lend(
        self, stream: StreamRecord, request: AssignRequest, key: KeyRecord | None, denied: str = ""
    ) -> AssignReply:
        assignment = self._made(request, key, denied)
        self.plan.put(assignment)
        charged = stream if denied else self._charged(stream, request)
        self.plan.put(replace(charged, seq=request.seq, cursor=request.cursor, digest=request.digest))
        if key is not None:
            self.plan.put(
                replace(
                    key,
                    state=KeyState.LOCKED,
                    next_nonce=key.next_nonce + request.count,
                    since_unix_ms=self._now_ms,
                    holder=self._holder(assignment),
                )
            )
        return self._assigned(assignment)

    def _affords(self, request: AssignRequest) -> bool:
        budget = self._budgets.get(request.stream.source)
        if budget is None or not request.count:
            return True
        streams = (self.plan.stream(stream) for stream in self.plan.view.streams)
        records = [record for record in streams if record is not None and record.stream.source == request.stream.source]
        return budget.spent(records, self._now_ms) + request.spend <= budget.wei

    def _charged(self, stream: StreamRecord, request: AssignRequest) -> StreamRecord:
        budget = self._budgets.get(request.stream.source)
        return stream if budget is None else budget.charged(stream, request.spend, self._now_ms)

    def _key_for(self, request: AssignRequest) -> KeyRecord | None:
        """The pinned one if it is free; else the one whose turn it is."""
        if request.sender:
            pinned = self.plan.key(request.chain_id, request.sender)
            return pinned if pinned is not None and pinned.state is KeyState.FREE else None
        pool = request.chain_id, request.blobs
        key = None if pool in self._starved else self._choose(pool, request.count)
        if key is None:
            # First come, first served: nobody behind this request may take the next key of its pool.
            self._starved.add(pool)
        return key

    def _choose(self, pool: Pool, count: int) -> KeyRecord | None:
        """The free key of the pool that has been free for longest, taken off the list of this group."""
        if pool not in self._free:
            held = (h.record for h in self.plan.view.keys.values() if (h.record.chain_id, h.record.set_apart) == pool)
            self._free[pool] = sorted((key for key in held if key.state is KeyState.FREE), key=turn)
        free = self._free[pool]
        fits = (at for at, key in enumerate(free) if key.next_nonce + count <= NONCE_END and self._is_free(key))
        at = next(fits, None)
        return None if at is None else free.pop(at)

    def _is_free(self, key: KeyRecord) -> bool:
        """Still: a request of this group may have it pinned."""
        planned = self.plan.key(key.chain_id, key.address)
        return planned is not None and planned.state is KeyState.FREE

    def _made(self, request: AssignRequest, key: KeyRecord | None, denied: str) -> Assignment:
        return Assignment(
            stream=request.stream,
            seq=request.seq,
            prev=request.prev,
            cursor=request.cursor,
            digest=request.digest,
            chain_id=request.chain_id,
            address=key.address if key else "",
            first_nonce=key.next_nonce if key else 0,
            count=0 if denied else request.count,
            rows=request.rows,
            rules_version=request.rules_version,
            fence=self.plan.guard.lasting_fence,
            worker=request.worker,
            node=request.node,
            since_unix_ms=self._now_ms,
            batch_offset=request.batch_offset,
            signed_from=request.signed_from,
            denied=denied,
        )

    def _holder(self, a: Assignment) -> Holder:
        return Holder(a.stream, a.seq, a.worker, a.node, self.plan.guard.lasting_fence)

    def _assigned(self, assignment: Assignment) -> Assigned:
        return Assigned(assignment, self.plan.view.sealed.get(assignment.address, b""))

    def _halt(self, stream: StreamRecord, reason: str) -> Refused:
        self.plan.put(replace(stream, halted=reason))
        return Refused(reason)


def _mismatch(stream: StreamRecord, request: AssignRequest) -> str:
    """Why a new batch does not continue its stream, or nothing."""
    if request.chain_id != stream.chain_id:
        return f"batch {request.seq} is for chain {request.chain_id}, the stream is for chain {stream.chain_id}"
    if request.system_id != stream.system_id:
        return f"batch {request.seq} was read from Postgres {request.system_id}, the stream is of {stream.system_id}"
    if request.seq != stream.seq + 1 or request.prev != stream.cursor:
        return (
            f"batch {request.seq} starts after {request.prev}, but the stream has come to batch {stream.seq} at "
            f"{stream.cursor}"
        )
    return ""


def denial(key: KeyRecord | None, request: AssignRequest) -> Reason | None:
    """Why the sender that a request names is not lent for it, whether it is free or not."""
    if key is None:
        return Reason.SENDER_UNKNOWN
    if key.state in (KeyState.DISABLED, KeyState.RETIRED) or key.disable_on_release:
        return Reason.SENDER_DISABLED
    if key.next_nonce + request.count > NONCE_END:
        return Reason.SENDER_DISABLED
    return Reason.SENDER_SET_APART if key.set_apart is not request.blobs else None


def is_locked_for(key: KeyRecord | None, assignment: Assignment) -> bool:
    """Whether the key is locked for this very batch."""
    if key is None or key.state is not KeyState.LOCKED or key.holder is None:
        return False
    return (key.holder.stream, key.holder.seq) == (assignment.stream, assignment.seq)


def plan_release(view: View, guard: Guard, batches: Sequence[Batch], now_ms: int) -> Plan:
    """Free the keys of published batches and forget their assignments; what is gone already is left out."""
    plan = Plan(guard, view)
    now_ms = max(now_ms, view.latest_ms)
    for stream, seq in batches:
        assignment = plan.assignment(stream, seq)
        if assignment is None:
            continue
        plan.delete(assignment)
        key = plan.key(assignment.chain_id, assignment.address)
        if key is not None and is_locked_for(key, assignment):
            plan.put(_freed(key, now_ms))
    return plan


def plan_release_held(view: View, guard: Guard, batches: Sequence[Batch], worker: str, now_ms: int) -> Plan:
    """The same for what one worker holds. Raises NotReleasable for a batch that another has."""
    for stream, seq in batches:
        held = view.assignments.get((stream, seq))
        if held is not None and held.record.worker != worker:
            raise NotReleasable(str(stream), seq, f"is held by {held.record.worker}, not by {worker}")
    return plan_release(view, guard, batches, now_ms)


def _freed(key: KeyRecord, now_ms: int) -> KeyRecord:
    return replace(
        key,
        state=KeyState.DISABLED if key.disable_on_release else KeyState.FREE,
        since_unix_ms=now_ms,
        uses=key.uses + 1,
        holder=None,
        disable_on_release=False,
    )

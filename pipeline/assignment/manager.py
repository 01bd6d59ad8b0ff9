"""The key manager: the one writer to etcd. Takes requests in the order in which they came, writes them in groups.

One transaction is under way at a time. Its answer may be lost: then the identical transaction is sent again, and its
ELSE branch says whether it had been applied. Nothing is ever decided from a plain read.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from pipeline.assignment import startup
from pipeline.assignment.administration import lost_of, plan_halt, plan_lost, plan_open, plan_own, unowned
from pipeline.assignment.budget import Budget
from pipeline.assignment.kept import kept_of
from pipeline.assignment.key_life import GROUP_MAX, KeyLife
from pipeline.assignment.leadership import Claim, Leadership
from pipeline.assignment.paths import Paths
from pipeline.assignment.pending import Command, Pending, Queued
from pipeline.assignment.plan import Plan
from pipeline.assignment.records import Assignment, KeyRecord, KeyState, Leader, StreamRecord
from pipeline.assignment.rules import NO_BUDGETS, Assigning, plan_release, plan_release_held
from pipeline.assignment.view import Guard, View
from pipeline.assignment.writing import send
from pipeline.errors import NotLeader, NotReleasable, OncesignError, StoreUnavailable, StreamHalted, UsageError
from pipeline.journal import Journal
from pipeline.ports import AssignReply, AssignRequest, Clock, Ledger, Store, TxnResult, Waiting
from pipeline.settings import Settings
from pipeline.stream import Stream

journal = Journal(__name__, "key-manager")

QUEUE_MAX: Final = 1024
"""Requests that may wait for a key; more are told to come again."""

REPLANS_MAX: Final = 5
IDLE_S: Final = 0.25
"""How often the writer looks for requests whose deadline has passed."""


class KeyManager(KeyLife):
    """Fulfils ports.Assigner for one deployment."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        clock: Clock,
        settings: Settings,
        fence_lost: Callable[[], None] = lambda: None,
        budgets: Mapping[str, Budget] = NO_BUDGETS,
    ) -> None:
        """`fence_lost` is called once when another may lead; the process must not go on as key manager.

        `budgets` are by source.
        """
        self._budgets = budgets
        self._over_budget: set[str] = set()
        self._store = store
        self._ledger = ledger
        self._clock = clock
        self._node = settings.node
        self._fence_lost = fence_lost
        self._paths = Paths(settings.deployment)
        self._leadership = Leadership(store, self._paths, clock, settings.etcd)
        self._view = View()
        self._guard: Guard | None = None
        self._claim: Claim | None = None
        self._stale = False
        self._lost = False
        self._trouble: OncesignError | None = None
        self._pending: deque[Pending] = deque()
        self._commands: deque[Command] = deque()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Lead, load, compare with the ledger. Raises NotLeader, DeploymentHalted, DependencyDown."""
        me = Leader(str(uuid.uuid4()), self._node, os.getpid(), self._clock.unix_ms())
        self._claim = await self._leadership.claim(me)
        keeping = asyncio.create_task(self._keep(self._claim), name="keep-alive")
        try:
            genesis = await startup.genesis_of(self._store, self._ledger, self._paths, self._claim, self._clock)
            generation = await self._ledger.generation()
            self._guard = startup.guard_of(self._paths, self._claim, genesis, generation)
            await self._reload()
            await self._own_keys()
            await self._ledger.keep_keys(kept_of(self._view))
        except BaseException:
            keeping.cancel()
            await self._leadership.resign(self._claim)
            raise
        writer = asyncio.create_task(self._write(), name="writer")
        writer.add_done_callback(self._writer_ended)
        self._tasks = [keeping, writer]

    async def stop(self) -> None:
        """Finish nothing, lead no more. Waiting requests are told NotLeader."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks, self._guard = [], None
        self._fail_all(NotLeader("the key manager has stopped."))
        if self._claim is not None:
            await self._leadership.resign(self._claim)
            self._claim = None

    async def _keep(self, claim: Claim) -> None:
        await self._leadership.keep(claim)
        self._lose("the leader record is no longer ours")

    def _writer_ended(self, writer: asyncio.Task[None]) -> None:
        if not writer.cancelled() and (error := writer.exception()) is not None:
            journal.ended("its writer ended", frames=error, error=error)
            self._lose("its writer ended; a new process starts from what etcd holds")

    def _lose(self, reason: str) -> None:
        if self._lost:
            return
        journal.denied("halted", reason=reason)
        self._lost, self._guard = True, None
        self._fail_all(NotLeader(f"the key manager leads no more: {reason}."))
        self._fence_lost()

    async def _reload(self) -> None:
        view = await startup.load(self._store, self._paths)
        await startup.check(view, self._ledger)
        self._view, self._stale = view, False

    async def _own_keys(self) -> None:
        """Say of keys from before there were owners, or before a recovery, whose they are. Raises DeploymentHalted."""
        while part := unowned(self._view, self._paths.deployment)[:GROUP_MAX]:
            await self._own(part)

    async def _own(self, addresses: Sequence[str]) -> None:
        now_ms = self._clock.unix_ms()
        await self._carry_out(lambda: plan_own(self._view, self._leading(), addresses, now_ms))

    # ── what clients call ────────────────────────────────────────────────────────────────────────────────────────────

    async def assign(self, requests: Sequence[AssignRequest], deadline_s: float) -> Sequence[AssignReply]:
        """See ports.Assigner.

        Requests without a key wait in line, but not when others of the same call were served: what is assigned should
        not wait for what is not. A caller that goes away, or is told to wait, may leave an assignment behind; whoever
        asks for the batch next inherits it.
        """
        self._leading()
        now_s = self._clock.monotonic_s()
        loop = asyncio.get_running_loop()
        waiting = [Pending(request, loop.create_future(), now_s, now_s + deadline_s) for request in requests]
        room = QUEUE_MAX - len(self._pending)
        queued = waiting[:room]
        self._pending.extend(queued)
        self._wake.set()
        try:
            if queued:
                await asyncio.wait([pending.reply for pending in queued], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pending in waiting:
                if not pending.reply.done():
                    pending.reply.set_result(Waiting())
            self._drop_answered()
        return await asyncio.gather(*(pending.reply for pending in waiting))

    async def release(self, batches: Sequence[tuple[Stream, int]], worker: str) -> None:
        """See ports.Assigner."""
        for start in range(0, len(batches), GROUP_MAX):
            part = batches[start : start + GROUP_MAX]
            await self._do(partial(plan_release, batches=part, now_ms=self._clock.unix_ms()))
            journal.succeeded("released", worker=worker, batches=len(part))

    async def release_held(self, batches: Sequence[tuple[Stream, int]], worker: str) -> None:
        """Release, all or nothing, what this very worker holds; what is released already is left out.

        For workers of which nothing is known: one that frees the key of a batch which the ledger does not have would
        make the next key manager halt. At most GROUP_MAX batches. Raises NotReleasable.
        """
        for stream, seq in batches:
            if (stream, seq) in self.view().assignments and await self._ledger.entry(stream, seq) is None:
                raise NotReleasable(str(stream), seq, "is not in the signing ledger, so nobody has signed it")
        await self._do(partial(plan_release_held, batches=batches, worker=worker, now_ms=self._clock.unix_ms()))

    async def halt(self, stream: Stream, reason: str) -> None:
        """See ports.Assigner."""
        await self._do(partial(plan_halt, stream=stream, reason=reason))

    async def unhalt(self, stream: Stream) -> None:
        """Let a halted stream go on; the operator's word that its cause is gone."""
        await self._do(partial(plan_halt, stream=stream, reason=""))

    async def lose(self, stream: Stream, end: int) -> None:
        """The partition of this stream was made anew and ends at `end`: what was assigned beyond is for the sweeper."""
        while lost_of(self._view, stream, end):
            await self._do(partial(plan_lost, stream=stream, end=end))

    async def open_stream(self, record: StreamRecord) -> StreamRecord:
        """The stream's record, made if there is none.

        Raises StreamHalted when it belongs to another chain or another Postgres.
        """
        await self._do(partial(plan_open, record=record))
        found = self._view.streams[record.stream].record
        if found.chain_id != record.chain_id:
            raise StreamHalted(
                str(record.stream), f"it is for chain {found.chain_id}, the settings say chain {record.chain_id}"
            )
        if found.system_id != record.system_id:
            raise StreamHalted(
                str(record.stream), f"it was read from Postgres {found.system_id}, this one is {record.system_id}"
            )
        return found

    async def list_keys(self) -> list[KeyRecord]:
        """In the order in which free ones are lent."""
        self._leading()
        return self._view.oldest_first()

    async def list_assignments(self) -> list[Assignment]:
        """What was not released yet."""
        self._leading()
        return [held.record for held in self._view.assignments.values()]

    async def list_streams(self) -> list[StreamRecord]:
        """All streams, by name."""
        self._leading()
        return [self._view.streams[stream].record for stream in sorted(self._view.streams)]

    def list_queue(self) -> list[Queued]:
        """Who waits for a key, first come first."""
        now_s = self._clock.monotonic_s()
        return [Queued(pending.request, now_s - pending.since_s) for pending in self._pending]

    @property
    def budgets(self) -> Mapping[str, Budget]:
        """By source, of those that have one."""
        return self._budgets

    @property
    def trouble(self) -> OncesignError | None:
        """What kept it from its last write, until one succeeds."""
        return self._trouble

    def view(self) -> View:
        """All that etcd holds, as it is believed to be. Raises NotLeader."""
        self._leading()
        return self._view

    def status(self) -> dict[str, Any]:
        """Counts for people and metrics."""
        now_s, now_ms = self._clock.monotonic_s(), self._clock.unix_ms()
        locked_ms = self._view.locked_since_ms()
        return {
            "keys": {state.value: self._view.keys_in(state) for state in KeyState},
            "lock_oldest_s": 0.0 if locked_ms is None else max(0, now_ms - locked_ms) / 1000,
            "assignments": len(self._view.assignments),
            "queue": len(self._pending),
            "queue_oldest_s": round(now_s - self._pending[0].since_s, 3) if self._pending else 0.0,
            "no_keys": self._missing(blobs=False),
            "no_blob_keys": self._missing(blobs=True),
            "over_budget": sorted(self._over_budget) if self._pending else [],
            "halted": {str(s): h.record.halted for s, h in self._view.streams.items() if h.record.halted},
            "fence": self._guard.fence if self._guard else 0,
        }

    def _missing(self, *, blobs: bool) -> list[int]:
        """Chains for which a batch waits, and there is no key that may sign it."""
        held = [h.record for h in self._view.keys.values()]
        waiting = [p.request for p in self._pending if p.request.count and not p.request.sender]
        wanted = {request.chain_id for request in waiting if request.blobs is blobs}
        return sorted(wanted - {key.chain_id for key in held if key.set_apart is blobs})

    # ── the writer ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _write(self) -> None:
        while True:
            self._wake.clear()  # before looking: what comes while we look must wake us
            try:
                if self._stale:
                    await self._reload()
                progressed = await self._run_command() or await self._run_group()
                self._trouble = None
            except NotLeader as error:
                self._lose(error.message.rstrip("."))
                return
            except OncesignError as error:
                journal.failed("tries again", error=error)
                self._fail_all(error)
                self._stale, self._trouble = True, error
                await self._clock.sleep(IDLE_S)
                continue
            if not progressed:
                await self._sleep()

    async def _sleep(self) -> None:
        """Until something comes, or a request may be over its deadline."""
        if not self._pending:
            await self._wake.wait()
            return
        look = asyncio.ensure_future(self._clock.sleep(IDLE_S))
        look.add_done_callback(self._look_again)
        try:
            await self._wake.wait()
        finally:
            look.remove_done_callback(self._look_again)
            look.cancel()

    def _look_again(self, _: asyncio.Task[None]) -> None:
        self._wake.set()

    async def _run_command(self) -> bool:
        if not self._commands:
            return False
        command = self._commands[0]
        try:
            await self._carry_out(lambda: command.plan(self._view, self._leading()))
        except UsageError as error:
            command.settle(error)
        else:
            command.settle(None)
        self._commands.popleft()
        return True

    async def _run_group(self) -> bool:
        """Answer the requests at the head of the queue; True when any was answered."""
        group = list(self._pending)
        if not group:
            return False
        requests = [pending.request for pending in group]
        ledger = await self._ledger_digests(requests)
        replies: list[AssignReply] = []

        def plan() -> Plan:
            assigning = Assigning(self._view, self._leading(), self._clock.unix_ms(), ledger, self._budgets)
            replies[:] = assigning.replies(requests)
            self._tell_over_budget(assigning.over_budget)
            return assigning.plan

        await self._carry_out(plan)
        now_s = self._clock.monotonic_s()
        answered = 0
        for pending, reply in zip(group, replies, strict=False):
            if pending.reply.done() or (isinstance(reply, Waiting) and now_s < pending.deadline_s):
                continue
            pending.reply.set_result(reply)
            answered += 1
        self._drop_answered()
        return bool(answered)

    def _tell_over_budget(self, sources: set[str]) -> None:
        for source in sorted(sources - self._over_budget):
            journal.denied("budget spent: batches wait for the next period", source=source)
        self._over_budget = sources

    def _drop_answered(self) -> None:
        self._pending = deque(pending for pending in self._pending if not pending.reply.done())

    async def _ledger_digests(self, requests: Sequence[AssignRequest]) -> dict[tuple[Stream, int], str | None]:
        digests: dict[tuple[Stream, int], str | None] = {}
        for request in requests:
            held = self._view.streams.get(request.stream)
            batch = request.stream, request.seq
            if held is not None and request.seq <= held.record.seq and batch not in self._view.assignments:
                entry = await self._ledger.entry(*batch)
                digests[batch] = entry.digest if entry else None
        return digests

    async def _carry_out(self, make: Callable[[], Plan]) -> None:
        """Plan and write; plan anew after a reload when the view turns out to be out of date.

        Raises NotLeader, DeploymentHalted, DependencyDown.
        """
        for _ in range(REPLANS_MAX):
            plan = make()
            if not plan:
                return
            result = await self._commit(plan)
            if result.succeeded:
                plan.apply(result.revision)
                return
            plan.guard.check(result.reads)
            if plan.is_applied(result.reads):
                plan.apply(result.revision, result.reads)
                return
            journal.failed("its view of etcd was out of date; reads all of it again")
            await self._reload()
        raise StoreUnavailable("its records keep changing under the key manager", hint="Who else writes to etcd?")

    async def _commit(self, plan: Plan) -> TxnResult:
        """Send, and send the identical transaction again while there is no answer. Raises StoreUnavailable."""
        return await send(self._store, self._clock, plan.txn())

    # ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _do(self, plan: Callable[[View, Guard], Plan]) -> None:
        self._leading()
        command = Command(plan, asyncio.get_running_loop().create_future())
        self._commands.append(command)
        self._wake.set()
        await command.done

    def _leading(self) -> Guard:
        if self._guard is None or self._lost:
            raise NotLeader("this key manager does not lead.")
        return self._guard

    def _fail_all(self, error: OncesignError) -> None:
        pending, self._pending = self._pending, deque()
        commands, self._commands = self._commands, deque()
        for waiting in pending:
            if not waiting.reply.done():
                waiting.reply.set_exception(error)
        for command in commands:
            command.settle(error)

"""The batch consumer: batches in, signed records out, each in the Kafka transaction that commits its offset.

Three loops share the queues. Only the first touches the subscription, and only it resets:

    poll     Kafka → queues             never stops; a full partition is paused
    assign   NEW → key and nonces → signer pool, several batches in flight
    commit   DONE heads → one Kafka transaction {signed, rejected, offsets last} → release

A failed round, or a new generation of the group, throws away everything between poll and commit and goes back to the
committed offsets: the assignments are bound for ever, so the same batches come out as the same bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipeline.errors import (
    AmbiguousRound,
    BusUnavailable,
    DependencyDown,
    LedgerRefused,
    MalformedBatch,
    NotLeader,
    RoundAborted,
    RuntimeFault,
    SigningRefused,
)
from pipeline.journal import Journal
from pipeline.ports import (
    Assigned,
    Assigner,
    AssignReply,
    BatchLog,
    BatchSubscription,
    Clock,
    Message,
    Published,
    Refused,
    RoundWriter,
    Signers,
)
from pipeline.settings import PoolSettings
from pipeline.stages.admission import Admission
from pipeline.stages.backoff import Backoff
from pipeline.stages.loops import cancel, first_end
from pipeline.stages.publication import Outlets, records_of, traced
from pipeline.stages.release import Releases
from pipeline.stages.work import Partition, Queues, Round, State, Work
from pipeline.stream import Stream
from pipeline.telemetry import BATCH_SECONDS, SILENT, Telemetry
from pipeline.tracing import span

journal = Journal(__name__, "consumer")

POLL_MESSAGES_MAX: Final = 32
POLL_TIMEOUT_S: Final = 0.25
POLL_PAUSED_S: Final = 0.1
"""While a partition is paused: its queue may be half empty soon."""

ASSIGN_DEADLINE_S: Final = 2.0
ASSIGN_PAUSE_MAX_S: Final = 0.3
"""Between two tries: no batch moves until there is a key manager."""

ASSIGN_AHEAD: Final = 4
"""Batches that may have a key before a signer is free for them, so that no signer waits for the key manager."""

ASSIGN_GROUP_MIN: Final = 3
"""While more batches wait than may be asked for, keys are asked for this many at once: one etcd transaction for all."""

ROUND_LINGER_SHARE: Final = 0.5
"""While other batches are being signed, a signed one waits for them: one Kafka transaction for all. It waits this share
of the time that signing a batch took, so that small batches are not held up."""

ROUND_LINGER_MAX_S: Final = 0.1
BACKLOG_LINGER_S: Final = 0.4
"""When the batches that wait for a signer take longer than this, a signed one waits this long: nobody is held up."""

ENDS_REFRESH_S: Final = 5.0
DRAIN_S: Final = 20.0
DRAIN_LOOK_S: Final = 0.05
WAKE_S: Final = 1.0
"""A loop looks again after this long even if nobody woke it."""


@dataclass(frozen=True, slots=True)
class Worker:
    """Who holds a key: a consumer slot's incarnation, and where it runs."""

    name: str
    node: str


@dataclass(slots=True)
class ConsumerCount:
    """What a consumer has done since it started."""

    batches: int = 0
    signed: int = 0
    rejected: int = 0
    skipped: int = 0
    rounds: int = 0
    rounds_aborted: int = 0
    waiting_for_key: int = 0
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class ConsumerPorts:
    """What a consumer needs of the world."""

    subscription: BatchSubscription
    writer: RoundWriter
    assigner: Assigner
    signers: Signers
    log: BatchLog
    clock: Clock
    telemetry: Telemetry = SILENT


class BatchConsumer:
    """One member of the consumer group, with its own transactional producer."""

    def __init__(
        self, worker: Worker, ports: ConsumerPorts, admission: Admission, outlets: Outlets, settings: PoolSettings
    ) -> None:
        self._worker = worker
        self._subscription = ports.subscription
        self._writer = ports.writer
        self._assigner = ports.assigner
        self._releases = Releases(ports.assigner, worker.name)
        self._signers = ports.signers
        self._log = ports.log
        self._clock = ports.clock
        self._telemetry = ports.telemetry
        self._admission = admission
        self._outlets = outlets
        self._settings = settings
        self._queues = Queues()
        self._epoch = 0
        self._generation: Any = None
        self._broken = True  # the first poll opens the writer
        self._committing = asyncio.Lock()
        self._changed = asyncio.Event()
        self._signing: set[asyncio.Task[None]] = set()
        self._signing_s = 0.0  #: that the last batch took
        self._full: frozenset[Partition] = frozenset()
        self._signed_from: tuple[int, ...] = ()
        self._ends_at_s = 0.0
        self._failure: Exception | None = None
        self._unwritten: set[Partition] = set()  # halted, and the key manager could not be told
        self.halted: dict[Partition, str] = {}
        self.count = ConsumerCount()

    def halted_streams(self) -> dict[Stream, str]:
        """Streams that this consumer cannot go on with, and why."""
        return {self._admission.stream(*partition): reason for partition, reason in self.halted.items()}

    async def run(self, stop: asyncio.Event) -> None:
        """Until told to stop, then finish what has a key.

        Raises ProducerFenced, DeploymentHalted, SecretFileError when a signer cannot open a key, and DependencyDown
        after bounded retries.
        """
        loops = [
            asyncio.create_task(self._poll(stop), name="poll"),
            asyncio.create_task(self._assign(stop), name="assign"),
            asyncio.create_task(self._commit(), name="commit"),
            asyncio.create_task(self._releases.run(), name="release"),
        ]
        try:
            await first_end(loops, stop)
            await self._drain(loops)
        finally:
            await cancel([*loops, *self._signing])

    # ── poll ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _poll(self, stop: asyncio.Event) -> None:
        backoff = Backoff(self._clock)
        while True:
            if self._failure is not None:
                raise self._failure
            try:
                if self._broken:
                    await self._reset()
                await self._refresh_ends()
                await self._subscription.pause(self._pausing())
                timeout_s = POLL_PAUSED_S if self._full else POLL_TIMEOUT_S
                messages = await self._subscription.poll(POLL_MESSAGES_MAX, timeout_s)
                backoff.reset()
            except DependencyDown as error:
                journal.failed("tries again", worker=self._worker.name, error=error)
                self._broken = True
                await backoff.pause(error)
                continue
            self._forget_revoked()
            if not stop.is_set():
                await self._accept(messages)

    async def _accept(self, messages: Sequence[Message]) -> None:
        if messages and messages[0].generation != self._generation:
            # Work of an older generation may belong to another member by now; none of it is committed.
            self._generation = messages[0].generation
            self._broken = True
            return
        for message in messages:
            if (message.place.topic, message.place.partition) in self.halted:
                continue
            try:
                request = self._admission.request(message, self._worker.name, self._worker.node, self._signed_from)
            except MalformedBatch as error:
                await self._halt(message, str(error), persist=True)
            else:
                self._queues.add(Work(message, request))
        if messages:
            self._changed.set()

    async def _reset(self) -> None:
        """Throw away what is not committed; settle what the writer left; go back to the committed offsets."""
        self._epoch += 1
        await cancel(self._signing)
        self._signing.clear()
        self._queues.clear()
        while self._unwritten:
            self.halted.pop(self._unwritten.pop(), None)
        async with self._committing:  # a commit under way must end before its offsets are read
            await self._writer.open()
            await self._subscription.rewind(self._subscription.assigned())
            self._broken = False

    async def _refresh_ends(self) -> None:
        now = self._clock.monotonic_s()
        if not self._signed_from or now - self._ends_at_s > ENDS_REFRESH_S:
            self._signed_from = await self._log.ends(self._outlets.signed)
            self._ends_at_s = now

    def _pausing(self) -> frozenset[Partition]:
        # A pause throws away what the client has fetched ahead, so a full partition goes on when it is half empty.
        bound = self._settings.buffered_batches_max
        self._full = self._queues.full(bound) | (self._full & self._queues.full(bound // 2 + 1))
        return self._full | frozenset(self.halted)

    def _forget_revoked(self) -> None:
        mine = self._subscription.assigned()
        self._queues.drop({p for p in self._queues.by_partition if p not in mine})
        for partition, reason in self._subscription.halted().items():
            if partition not in self.halted:
                journal.denied("partition halted", topic=partition[0], partition=partition[1], reason=reason)
                self.halted[partition] = reason

    async def _halt(self, message: Message, reason: str, *, persist: bool) -> None:
        partition = (message.place.topic, message.place.partition)
        stream = self._admission.stream(*partition)
        journal.denied("stream halted", stream=stream, offset=message.place.offset, reason=reason)
        self.halted[partition] = reason
        # What is ahead of the halting batch is finished and committed; the batch and what follows it is not.
        queue = self._queues.by_partition.get(partition)
        while queue and queue[-1].message.place.offset >= message.place.offset:
            queue.pop()
        if persist:
            try:
                await self._assigner.halt(stream, reason)
            except (DependencyDown, NotLeader, RuntimeFault) as error:
                journal.failed("the halt is not written down, met again", stream=stream, error=error)
                self._unwritten.add(partition)
                self._broken = True

    # ── assign and sign ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _assign(self, stop: asyncio.Event) -> None:
        backoff = Backoff(self._clock, longest_s=ASSIGN_PAUSE_MAX_S)
        while not stop.is_set():
            if not (works := self._assignable()):
                await self._wait_for_change()
                continue
            try:
                await self._ask(works)
                backoff.reset()
            except (DependencyDown, NotLeader, RuntimeFault) as error:
                journal.failed("no answer from the key manager", worker=self._worker.name, error=error)
                await backoff.pause(error)

    def _assignable(self) -> list[Work]:
        under_way = self._queues.in_state(State.ASKED, State.SIGNING)
        room = self._signers.slots() + ASSIGN_AHEAD - under_way
        if room <= 0 or (room < ASSIGN_GROUP_MIN and self._queues.in_state(State.NEW) > room):
            return []
        return self._queues.to_assign(room)

    async def _ask(self, works: list[Work]) -> None:
        epoch, begun_s = self._epoch, self._clock.monotonic_s()
        for work in works:
            work.state = State.ASKED
        try:
            replies = await self._assigner.assign([work.request for work in works], ASSIGN_DEADLINE_S)
        except BaseException:
            for work in works:
                work.state = State.NEW
            raise
        if any(isinstance(reply, Assigned) for reply in replies):  # the others wait for a key, not for us
            self._telemetry.observe(BATCH_SECONDS, self._clock.monotonic_s() - begun_s, stage="assign")
        if epoch != self._epoch:
            return
        for work, reply in zip(works, replies, strict=True):
            await self._take(work, reply)
        self.count.waiting_for_key = sum(work.state is State.NEW for work in works)
        self.count.in_flight = self._queues.in_state(State.SIGNING)

    async def _take(self, work: Work, reply: AssignReply) -> None:
        match reply:
            case Assigned():
                work.state = State.SIGNING
                work.assignment = reply.assignment
                task = asyncio.create_task(self._sign(work, reply, self._epoch))
                self._signing.add(task)
                task.add_done_callback(self._signing.discard)
            case Published():
                work.state = State.DONE
                self._changed.set()
            case Refused(reason):
                work.state = State.NEW
                await self._halt(work.message, reason, persist=False)
            case _:  # Waiting
                work.state = State.NEW

    async def _sign(self, work: Work, assigned: Assigned, epoch: int) -> None:
        """A failure that asking again does not mend ends the stage: the batch has a key, and must not be forgotten."""
        try:
            await self._signed(work, assigned, epoch)
        except Exception as error:  # noqa: BLE001 - raised where the stage is carried
            self._failure = self._failure or error

    async def _signed(self, work: Work, assigned: Assigned, epoch: int) -> None:
        backoff = Backoff(self._clock)
        begun_s = self._clock.monotonic_s()
        while True:
            try:
                with span("sign", work.request.stream, work.request.seq, work.message.traceparent):
                    signed = await self._signers.sign(work.message.value, assigned)
                break
            except (LedgerRefused, SigningRefused) as error:
                if epoch == self._epoch:
                    await self._halt(work.message, str(error), persist=True)
                return
            except (DependencyDown, RuntimeFault) as error:
                journal.failed("signed again", stream=work.request.stream, seq=work.request.seq, error=error)
                await backoff.pause(error)
        if epoch == self._epoch:
            self._signing_s = self._clock.monotonic_s() - begun_s
            self._telemetry.observe(BATCH_SECONDS, self._signing_s, stage="sign")
            work.signed = signed
            work.state = State.DONE
            self._changed.set()

    # ── commit ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _commit(self) -> None:
        while True:
            if self._broken or self._queues.next_round(self._settings.round_bytes_max) is None:
                await self._wait_for_change()
                continue
            await self._linger()
            async with self._committing:
                done = self._queues.next_round(self._settings.round_bytes_max)
                if done is not None and not self._broken:
                    with traced(done):
                        await self._commit_round(done)

    async def _linger(self) -> None:
        if not self._queues.in_state(State.SIGNING):
            return
        backlog_s = self._queues.in_state(State.NEW) * self._signing_s / self._signers.slots()
        if backlog_s > BACKLOG_LINGER_S and not self.count.waiting_for_key:
            await self._clock.sleep(BACKLOG_LINGER_S)
        else:
            await self._clock.sleep(min(self._signing_s * ROUND_LINGER_SHARE, ROUND_LINGER_MAX_S))

    async def _commit_round(self, done: Round) -> None:
        records = [record for work in done.works for record in self._records(work)]
        begun_s = self._clock.monotonic_s()
        try:
            certain = await self._writer.commit(records, done.progress(), done.generation)
        except (RoundAborted, AmbiguousRound, BusUnavailable) as error:
            journal.failed("round: everything is read again", worker=self._worker.name, error=error)
            self.count.rounds_aborted += 1
            self._broken = True
            return
        self._telemetry.observe(BATCH_SECONDS, self._clock.monotonic_s() - begun_s, stage="commit")
        self._queues.remove(done)
        self._tally(done)
        for work in done.works:
            journal.succeeded("published", stream=work.request.stream, seq=work.request.seq, worker=self._worker.name)
        if certain:
            self._releases.add((w.request.stream, w.request.seq) for w in done.works if w.assignment is not None)
        else:
            # It committed, but slower than socket.timeout.ms: the sweeper releases it after reading it back.
            self._broken = True
        self._changed.set()

    def _records(self, work: Work) -> list[Any]:
        if work.assignment is None or work.signed is None:
            return []
        return records_of(work.assignment, work.signed, self._outlets, work.traceparent)

    def _tally(self, done: Round) -> None:
        self.count.rounds += 1
        for work in done.works:
            if work.assignment is None:
                self.count.skipped += 1
                continue
            self.count.batches += 1
            self.count.signed += work.assignment.count
            self.count.rejected += work.assignment.rows - work.assignment.count

    # ── ending ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _drain(self, loops: list[asyncio.Task[None]]) -> None:
        """Commit what has a key; polling goes on so that the group keeps us."""
        deadline_s = self._clock.monotonic_s() + DRAIN_S
        while self._clock.monotonic_s() < deadline_s:
            busy = self._queues.in_state(State.ASKED, State.SIGNING, State.DONE) or self._releases
            if not busy or any(loop.done() for loop in loops if loop.get_name() != "assign"):
                return
            await self._clock.sleep(DRAIN_LOOK_S)

    async def _wait_for_change(self) -> None:
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAKE_S):
                await self._changed.wait()

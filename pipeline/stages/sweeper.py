"""The sweeper: what became of assignments that nobody released?

Most were published, and the process died before the release: the sweeper reads them back from tx.signed and releases
them. A few can be lost to Kafka (a recreated topic, offsets set forward by hand): their nonces are taken, so they are
signed again, to the same bytes, and published. What the consumer group has not committed yet is left alone: Kafka
delivers it again.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final, Protocol

from pipeline.assignment.records import NOWHERE, Assignment
from pipeline.errors import DeploymentHalted, MalformedBatch, OncesignError, ProducerFenced
from pipeline.ethereum.batch import Batch, BatchHeader
from pipeline.ethereum.signed import header_of
from pipeline.journal import Journal
from pipeline.ports import Assigned, Assigner, AssignRequest, BatchLog, Clock, RoundWriter, Signers, Source
from pipeline.stages.consumer import Worker
from pipeline.stages.policies import Policies
from pipeline.stages.publication import Outlets, partition_of, records_of
from pipeline.stages.reader import judged, lane_of
from pipeline.stream import Stream

journal = Journal(__name__, "sweeper")

SWEEP_EVERY_S: Final = 2.0
SWEEP_AGE_S: Final = 4.0
"""Younger assignments are on their way."""

ASSIGN_DEADLINE_S: Final = 5.0
SWEEP_MAX: Final = 256
"""Assignments looked after in one sweep, the oldest first."""


class Desk(Assigner, Protocol):
    """The key manager, as the sweeper sees it."""

    async def assignments(self) -> Sequence[Assignment]:
        """All assignments that were not released."""
        ...


@dataclass(slots=True)
class SweepCount:
    """What the sweeper has done since it started."""

    released: int = 0
    signed_again: int = 0


@dataclass(frozen=True, slots=True)
class SweeperPorts:
    """What the sweeper needs of the world."""

    desk: Desk
    signers: Signers
    log: BatchLog
    writer: RoundWriter  #: its transactional.id is the deployment's one sweeper
    sources: Mapping[str, Source]
    policies: Policies
    batch_topics: Mapping[str, str]  #: by source
    clock: Clock


class Sweeper:
    """One per deployment; a second one fences the first."""

    def __init__(self, worker: Worker, ports: SweeperPorts, outlets: Outlets) -> None:
        self._worker = worker
        self._ports = ports
        self._outlets = outlets
        self._seen_s: dict[tuple[Stream, int], float] = {}  #: when this sweeper saw an assignment first
        self.count = SweepCount()

    async def run(self, stop: asyncio.Event) -> None:
        """Sweep until told to stop; a failed sweep is tried again. Raises ProducerFenced, DeploymentHalted."""
        while not stop.is_set():
            try:
                await self.sweep()
            except (ProducerFenced, DeploymentHalted):
                raise
            except OncesignError as error:
                journal.failed("tries again", error=error)
            await self._ports.clock.sleep(SWEEP_EVERY_S)

    async def sweep(self) -> None:
        """One look at everything that is older than SWEEP_AGE_S."""
        aged = self._aged(await self._ports.desk.assignments())
        if not aged:
            return
        lost = await self._look(aged)
        if lost:
            # Fence an earlier sweeper first: whatever it had under way is then settled and seen by the second look.
            await self._ports.writer.open()
            for assignment in await self._look(lost):
                await self._publish_again(assignment)

    async def release_published(self, assignments: Sequence[Assignment]) -> None:
        """Release those that are on tx.signed, however young; call it while nothing else runs."""
        await self._look(list(assignments))

    def _aged(self, assignments: Sequence[Assignment]) -> list[Assignment]:
        """By the assignment's own time, or by ours where the wall clocks of two machines disagree."""
        now_s = self._ports.clock.monotonic_s()
        self._seen_s = {(a.stream, a.seq): self._seen_s.get((a.stream, a.seq), now_s) for a in assignments}
        before_ms, before_s = self._ports.clock.unix_ms() - int(SWEEP_AGE_S * 1000), now_s - SWEEP_AGE_S
        aged = [a for a in assignments if a.since_unix_ms <= before_ms or self._seen_s[a.stream, a.seq] <= before_s]
        return sorted(aged, key=lambda a: a.since_unix_ms)[:SWEEP_MAX]

    # ── look ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _look(self, assignments: list[Assignment]) -> list[Assignment]:
        """Release what was published; give back what the consumers have gone past and that is not in tx.signed.

        The order of the three reads is the proof: what the consumers committed was in a transaction that is part of
        the log up to the high watermark read afterwards, and that stretch is only searched when no transaction in it
        is still open (last stable offset = high watermark).
        """
        past = await self._past(assignments)
        marks = await self._ports.log.ends(self._outlets.signed, committed=False)
        stable = await self._ports.log.ends(self._outlets.signed, committed=True)
        starts = await self._ports.log.starts(self._outlets.signed)
        published: list[tuple[Stream, int]] = []
        lost: list[Assignment] = []
        for partition, group in self._by_partition(assignments).items():
            if stable[partition] < marks[partition]:
                continue  # a transaction is open; the next sweep sees how it ended
            found = await self._find(partition, group, starts[partition], marks[partition])
            published += [(a.stream, a.seq) for a in group if (a.stream, a.seq) in found]
            missing = [a for a in group if (a.stream, a.seq) not in found and (a.stream, a.seq) in past]
            lost += [a for a in missing if self._is_told(a, partition, starts[partition])]
        if published:
            await self._ports.desk.release(published, self._worker.name)
            self.count.released += len(published)
        return lost

    async def _past(self, assignments: list[Assignment]) -> set[tuple[Stream, int]]:
        """Which of these batches the consumers have committed, by their offsets."""
        sources = {a.stream.source for a in assignments}
        progress = {name: await self._ports.log.progress(self._ports.batch_topics[name]) for name in sources}
        return {
            (a.stream, a.seq)
            for a in assignments
            if (at := progress[a.stream.source].get(a.stream.shard)) is not None and at.offset > a.batch_offset
        }

    def _by_partition(self, assignments: list[Assignment]) -> Mapping[int, list[Assignment]]:
        groups: dict[int, list[Assignment]] = defaultdict(list)
        for assignment in assignments:
            groups[self._partition(assignment)].append(assignment)
        return groups

    def _partition(self, assignment: Assignment) -> int:
        return partition_of(assignment.address, assignment.stream.shard, self._outlets.signed_partitions)

    def _is_told(self, a: Assignment, partition: int, kept_from: int) -> bool:
        """Whether tx.signed still holds everything since the assignment; else nobody can say that it is not there."""
        told = a.signed_from[partition] >= kept_from
        if not told:
            journal.denied("batch left alone: tx.signed is not kept since it was assigned", stream=a.stream, seq=a.seq)
        return told

    async def _find(
        self, partition: int, assignments: list[Assignment], kept_from: int, end: int
    ) -> set[tuple[Stream, int]]:
        """Which of these batches are on a partition of tx.signed before `end`, with the digest that was assigned."""
        wanted = {(a.stream, a.seq): a.digest for a in assignments}
        start = max(kept_from, min(a.signed_from[partition] for a in assignments))
        if start > end:  # the topic was made anew by hand
            start = kept_from
        found: set[tuple[Stream, int]] = set()
        async for message in self._ports.log.scan(self._outlets.signed, partition, start, end):
            header = header_of(message.value)
            batch = header.stream, header.seq
            if batch not in wanted:
                continue
            if header.digest != wanted[batch]:
                await self._ports.desk.halt(
                    header.stream, f"{message.place} holds batch {header.seq} of another digest"
                )
                continue
            found.add(batch)
            if len(found) == len(wanted):
                break
        return found

    # ── publish again ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _publish_again(self, assignment: Assignment) -> None:
        try:
            batch = await self._batch(assignment)
        except MalformedBatch as error:
            await self._ports.desk.halt(assignment.stream, str(error))
            return
        [reply] = await self._ports.desk.assign([self._request(assignment)], ASSIGN_DEADLINE_S)
        if not isinstance(reply, Assigned):
            return
        signed = await self._ports.signers.sign(batch, reply)
        records = records_of(reply.assignment, signed, self._outlets)
        journal.failed("batch lost by Kafka, signed again", stream=assignment.stream, seq=assignment.seq)
        if await self._ports.writer.commit(records, {}, None):
            await self._ports.desk.release([(assignment.stream, assignment.seq)], self._worker.name)
        else:
            await self._ports.writer.open()  # the next sweep reads it back and releases it
        self.count.signed_again += 1

    def _request(self, a: Assignment) -> AssignRequest:
        return AssignRequest(
            stream=a.stream,
            seq=a.seq,
            prev=a.prev,
            cursor=a.cursor,
            digest=a.digest,
            chain_id=a.chain_id,
            system_id="",
            rows=a.rows,
            count=a.count,
            rules_version=a.rules_version,
            worker=self._worker.name,
            node=self._worker.node,
            batch_offset=a.batch_offset,
            signed_from=a.signed_from,
        )

    async def _batch(self, assignment: Assignment) -> bytes:
        """The batch as Kafka has it, else as Postgres has it. Raises MalformedBatch when neither is the right one."""
        topic, shard = self._ports.batch_topics[assignment.stream.source], assignment.stream.shard
        start = assignment.batch_offset
        kept = (await self._ports.log.starts(topic))[shard], (await self._ports.log.ends(topic))[shard]
        if start != NOWHERE and kept[0] <= start < kept[1]:
            async for message in self._ports.log.scan(topic, shard, start, start + 1):
                if Batch.decode(message.value).digest == assignment.digest:
                    return message.value
        return await self._rebuilt(assignment)

    async def _rebuilt(self, assignment: Assignment) -> bytes:
        name = assignment.stream.source
        source = self._ports.sources[name]
        table = await source.rows_between(assignment.stream.shard, assignment.prev, assignment.cursor)
        header = BatchHeader(
            assignment.stream,
            assignment.seq,
            assignment.prev,
            assignment.cursor,
            assignment.chain_id,
            await source.system_id(),
        )
        rows = table.combine_chunks().to_batches()
        policies = [*(await self._ports.policies.versions(name)).values(), None] if rows else []
        # Only one of them makes the digest; rows that need a wide batch now may have been cut when there were none.
        headers = dict.fromkeys((header, lane_of(header, rows[0]))) if rows else ()
        for lane, policy in product(headers, policies):
            batch = judged(lane, rows[0], policy)
            if batch.digest == assignment.digest:
                return batch.encode()
        raise MalformedBatch(
            f"batch {assignment.seq} is no longer in Kafka or Postgres as it was assigned (digest {assignment.digest})."
        )

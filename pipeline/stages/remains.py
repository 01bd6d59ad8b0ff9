"""What is left of a deployment beside etcd: read from the ledger, Kafka and Postgres. Nothing here changes anything.

Of the ledger's rows only few can be unpublished. A key is lent again only after its batch was published, so of the rows
of one key only the last one; and of the batches without a key only those that the consumers have not committed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from pipeline.assignment.archive import KeptKey
from pipeline.assignment.rebuilding import WORKER, Facts
from pipeline.assignment.rules import Batch
from pipeline.assignment.view import View
from pipeline.errors import MalformedBatch
from pipeline.ethereum.batch import BatchHeader
from pipeline.ethereum.batch import header_of as batch_header_of
from pipeline.ethereum.signed import SignedHeader, header_of
from pipeline.ports import (
    AssignRequest,
    BatchLog,
    Ledger,
    LedgerEntry,
    Message,
    Progress,
    ReaderPosition,
    Source,
    StreamWriter,
)
from pipeline.settings import SourceSettings
from pipeline.stages.admission import Admission
from pipeline.stages.publication import Outlets, partition_of
from pipeline.stream import Cursor, Stream

PAGE: Final = 500
"""Rows of the ledger read at once."""

OFFSETS_PER_BATCH: Final = 3
"""How far apart two batches of a stream are on its partition, at the most, if nothing was aborted there."""

SLACK_OFFSETS: Final = 64


class RemainingLedger(Ledger, Protocol):
    """The ledger, as a recovery reads it."""

    async def bar_signers(self) -> bool:
        """Keep every signer away from the ledger until `close`; False while one is connected.

        Called again it says whether that still holds. Raises DatabaseUnavailable, also when it held and was lost.
        """
        ...

    async def begin_generation(self, node: str) -> int:
        """From now on nothing new is written for assignments made before; call it while signers are barred."""
        ...

    async def last_rows(self) -> Sequence[LedgerEntry]:
        """Of each sender the row with its highest nonces."""
        ...

    async def entries(self, stream: Stream, after: int, limit: int) -> Sequence[LedgerEntry]:
        """A page of a stream's rows, seq > `after`, in order."""
        ...

    async def holes(self) -> Sequence[Batch]:
        """Batches below the last one of their stream that have no row."""
        ...

    async def kept_keys(self) -> Sequence[KeptKey]:
        """The copy of every sealed key that was made last."""
        ...


class Sightings(Protocol):
    """What the verifier has seen on tx.signed."""

    async def positions(self) -> Mapping[tuple[str, int], int]:
        """See stages.verifier.Outcomes."""
        ...

    async def sighted(self, batches: Sequence[Batch]) -> frozenset[Batch]:
        """Those of them that it has seen."""
        ...


class GroupLog(BatchLog, Protocol):
    """Topics and the consumers' group, from outside."""

    async def members(self) -> int:
        """How many members the consumers' group has. Raises BusUnavailable."""
        ...


class PositionedWriter(StreamWriter, Protocol):
    """A reader's writer that can also only be asked."""

    async def position(self) -> ReaderPosition | None:
        """As `open` gives it, without fencing anybody. Raises BusUnavailable."""
        ...


@dataclass(frozen=True, slots=True)
class RemainsPorts:
    """Where the facts are."""

    ledger: RemainingLedger
    log: GroupLog
    sightings: Sightings
    sources: Mapping[str, Source]
    streams: Mapping[Stream, PositionedWriter]


@dataclass(slots=True)
class _Found:
    """What has been learned so far."""

    problems: list[str] = field(default_factory=list)
    batches: dict[Batch, AssignRequest] = field(default_factory=dict)
    follows: dict[Stream, Cursor] = field(default_factory=dict)  #: where the batch after a head begins


class Remains:
    """Gathers facts."""

    def __init__(
        self, ports: RemainsPorts, sources: Sequence[SourceSettings], admission: Admission, outlets: Outlets, node: str
    ) -> None:
        self._ports = ports
        self._sources = {source.name: source for source in sources}
        self._admission = admission
        self._outlets = outlets
        self._node = node

    async def facts(self, view: View) -> Facts:
        """Everything that `rebuild` needs beside what etcd holds. Raises DependencyDown."""
        ledger, found = self._ports.ledger, _Found()
        watermarks = await ledger.watermarks()
        kept = {(key.chain_id, key.address): key for key in await ledger.kept_keys()}
        heads = await self._heads()
        holes = frozenset(await ledger.holes())
        progress = await self._progress()
        sworn = await self._sworn(view)
        candidates = {(entry.stream, entry.seq): entry for entry in await ledger.last_rows()}
        candidates |= {batch: entry for batch, entry in sworn.items() if not entry.count}
        candidates |= await self._without_key(heads, progress)
        unpublished = await self._unpublished(candidates, progress, watermarks, found)
        wanted = {batch: entry.digest for batch, entry in (sworn | unpublished).items()}
        wanted |= {batch: held.record.digest for batch, held in view.assignments.items()}
        wanted |= {(stream, head.seq): head.digest for stream, head in heads.items()}
        needed = {*unpublished, *holes, *((stream, head.seq) for stream, head in heads.items())}
        await self._read_batches(needed | (view.assignments.keys() - sworn.keys()), wanted, heads, progress, found)
        return Facts(
            watermarks=watermarks,
            kept=kept,
            retired=await ledger.retired_keys(),
            apart=await ledger.keys_set_apart(),
            heads=heads,
            unpublished=unpublished,
            sworn=frozenset(sworn),
            holes=holes,
            batches=found.batches,
            cursors=await self._cursors(view, heads, found),
            chains=await self._chains(),
            generation=await ledger.generation(),
            problems=tuple(found.problems),
        )

    async def facts_of_ledger(self) -> Facts:
        """The same of a deployment without topics: nothing of it was ever assigned. Raises DatabaseUnavailable."""
        ledger = self._ports.ledger
        return Facts(
            watermarks=await ledger.watermarks(),
            kept={(key.chain_id, key.address): key for key in await ledger.kept_keys()},
            retired=await ledger.retired_keys(),
            apart=await ledger.keys_set_apart(),
            generation=await ledger.generation(),
        )

    # ── the ledger ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _heads(self) -> dict[Stream, LedgerEntry]:
        heads = {}
        for stream, seq in (await self._ports.ledger.heads()).items():
            entry = await self._ports.ledger.entry(stream, seq)
            if entry is not None:
                heads[stream] = entry
        return heads

    async def _sworn(self, view: View) -> dict[Batch, LedgerEntry]:
        found = {batch: await self._ports.ledger.entry(*batch) for batch in view.assignments}
        return {batch: entry for batch, entry in found.items() if entry is not None}

    async def _without_key(
        self, heads: Mapping[Stream, LedgerEntry], progress: Mapping[Stream, Progress]
    ) -> dict[Batch, LedgerEntry]:
        found: dict[Batch, LedgerEntry] = {}
        for stream in heads:
            after = progress[stream].seq if stream in progress else 0
            while page := await self._ports.ledger.entries(stream, after, PAGE):
                found |= {(stream, entry.seq): entry for entry in page if not entry.count}
                after = page[-1].seq
        return found

    # ── what was published ───────────────────────────────────────────────────────────────────────────────────────────

    async def _progress(self) -> dict[Stream, Progress]:
        found = {}
        for name in self._sources:
            for shard, at in (await self._ports.log.progress(self._admission.topic(name))).items():
                found[Stream(name, shard)] = at
        return found

    async def _unpublished(
        self,
        candidates: Mapping[Batch, LedgerEntry],
        progress: Mapping[Stream, Progress],
        watermarks: Mapping[tuple[int, str], int],
        found: _Found,
    ) -> dict[Batch, LedgerEntry]:
        """Candidates that neither the verifier has seen nor tx.signed holds."""
        seen = await self._ports.sightings.sighted(sorted(candidates))
        untold: set[int] = set()
        published = await self._scan_signed(watermarks, untold, found)
        unpublished = {}
        for batch, entry in candidates.items():
            if batch in seen:
                continue
            if batch in published:
                found.problems += _contradictions(entry, published[batch])
                continue
            partition = partition_of(entry.sender, entry.stream.shard, self._outlets.signed_partitions)
            at = progress.get(entry.stream)
            if partition not in untold:
                unpublished[batch] = entry
            elif at is None or at.seq < entry.seq:
                found.problems.append(
                    f"{self._outlets.signed}[{partition}] is not kept since batch {entry.seq} of {entry.stream} was "
                    "signed: whether it was published is not known (oncesign verify, then try again)"
                )
        return unpublished

    async def _scan_signed(
        self, watermarks: Mapping[tuple[int, str], int], untold: set[int], found: _Found
    ) -> dict[Batch, SignedHeader]:
        """What is on tx.signed from where the verifier has come to; adds partitions that lack a part before that."""
        topic = self._outlets.signed
        positions = await self._ports.sightings.positions()
        starts, ends = await self._ports.log.starts(topic), await self._ports.log.ends(topic)
        published: dict[Batch, SignedHeader] = {}
        for partition, (start, end) in enumerate(zip(starts, ends, strict=True)):
            at = positions.get((topic, partition), 0)
            if not start <= at <= end:
                untold.add(partition)
            begin = at if start <= at <= end else start
            async for message in self._ports.log.scan(topic, partition, begin, end):
                try:
                    header = header_of(message.value)
                except MalformedBatch:
                    continue  # the verifier reports it
                published[header.stream, header.seq] = header
                if header.count and header.first_nonce + header.count > watermarks.get(
                    (header.chain_id, header.sender), 0
                ):
                    found.problems.append(f"{message.place} holds nonces of {header.sender} that the ledger has lost")
        return published

    # ── what is on the topics of batches ─────────────────────────────────────────────────────────────────────────────

    async def _read_batches(
        self,
        needed: Iterable[Batch],
        wanted: Mapping[Batch, str],
        heads: Mapping[Stream, LedgerEntry],
        progress: Mapping[Stream, Progress],
        found: _Found,
    ) -> None:
        signed_from = await self._ports.log.ends(self._outlets.signed, committed=False)
        by_stream: dict[Stream, set[int]] = defaultdict(set)
        for stream, seq in needed:
            if stream.source in self._sources and stream.shard < self._sources[stream.source].shards:
                by_stream[stream].add(seq)
        for stream, seqs in sorted(by_stream.items()):
            head = heads[stream].seq if stream in heads else 0
            reading = _Reading(stream, seqs, head, wanted, signed_from)
            topic = self._admission.topic(stream.source)
            start = (await self._ports.log.starts(topic))[stream.shard]
            end = (await self._ports.log.ends(topic))[stream.shard]
            likely = _likely_start(progress.get(stream), min(seqs), start, end)
            await self._read(reading, topic, likely, end, found)
            if any((stream, seq) not in found.batches for seq in seqs):
                await self._read(reading, topic, start, likely, found)

    async def _read(self, reading: _Reading, topic: str, start: int, end: int, found: _Found) -> None:
        async for message in self._ports.log.scan(topic, reading.stream.shard, start, end):
            try:
                header = batch_header_of(message.value)
            except MalformedBatch:
                continue
            if header.stream != reading.stream:
                continue
            if header.seq == reading.head + 1:
                found.follows.setdefault(reading.stream, header.prev)
            if header.seq in reading.seqs:
                self._take(reading, header, message, found)
            if header.seq > reading.last:
                return

    def _take(self, reading: _Reading, header: BatchHeader, message: Message, found: _Found) -> None:
        batch = reading.stream, header.seq
        try:
            request = self._admission.request(message, WORKER, self._node, reading.signed_from)
        except MalformedBatch:
            return
        if batch not in found.batches or request.digest == reading.wanted.get(batch):
            found.batches[batch] = request

    async def _cursors(self, view: View, heads: Mapping[Stream, LedgerEntry], found: _Found) -> dict[Stream, Cursor]:
        cursors: dict[Stream, Cursor] = {}
        for stream, head in heads.items():
            held, request = view.streams.get(stream), found.batches.get((stream, head.seq))
            if held is not None and (held.record.seq, held.record.digest) == (head.seq, head.digest):
                cursors[stream] = held.record.cursor
            elif request is not None and request.digest == head.digest:
                cursors[stream] = request.cursor
            elif stream in found.follows:
                cursors[stream] = found.follows[stream]
            elif stream in self._ports.streams:
                position = await self._ports.streams[stream].position()
                if position is not None and (position.seq, position.digest) == (head.seq, head.digest):
                    cursors[stream] = position.cursor
        return cursors

    async def _chains(self) -> dict[Stream, tuple[int, str]]:
        chains: dict[Stream, tuple[int, str]] = {}
        for name, source in self._sources.items():
            system_id = await self._ports.sources[name].system_id()
            chains |= {Stream(name, shard): (source.chain_id, system_id) for shard in range(source.shards)}
        return chains


@dataclass(frozen=True, slots=True)
class _Reading:
    """What is looked for on one partition."""

    stream: Stream
    seqs: set[int]
    head: int
    wanted: Mapping[Batch, str]
    signed_from: tuple[int, ...]

    @property
    def last(self) -> int:
        """Nothing after this batch is needed."""
        return max(self.head + 1, *self.seqs)


def _likely_start(at: Progress | None, first: int, start: int, end: int) -> int:
    """Where batch `first` is not before, unless many rounds were aborted there."""
    if at is None or not start <= at.offset <= end:
        return start
    before = max(0, at.seq - first + 1) * OFFSETS_PER_BATCH + SLACK_OFFSETS
    return max(start, at.offset - before)


def _contradictions(entry: LedgerEntry, header: SignedHeader) -> list[str]:
    sworn = entry.digest, entry.chain_id, entry.sender, entry.first_nonce, entry.count, entry.fence
    seen = header.digest, header.chain_id, header.sender, header.first_nonce, header.count, header.fence
    return [] if sworn == seen else [f"batch {entry.seq} of {entry.stream} was published otherwise than it was sworn"]

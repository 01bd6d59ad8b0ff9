"""The verifier: follows tx.signed and tx.rejected, decides the outcome of each row, and proves that nothing is missing.

It needs Kafka and Postgres, not etcd and not the key manager: what it says rests on what was published, on the source
and on the ledger. Outcomes, findings and its own position are one Postgres transaction, so a crash repeats nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from pipeline.assignment.records import Assignment
from pipeline.errors import DependencyDown, MalformedBatch
from pipeline.ethereum.policy import Policy
from pipeline.ethereum.rejected import Rejection
from pipeline.ethereum.signed import SignedRecord
from pipeline.journal import Journal
from pipeline.ports import BatchLog, Clock, Ledger, Message, Place, Source
from pipeline.settings import SourceSettings
from pipeline.stages.backoff import Backoff
from pipeline.stages.inspection import (
    Finding,
    inspect_record,
    inspect_rejection,
    lent,
    merged,
    promised,
    source_rows,
    unsound,
)
from pipeline.stages.policies import Policies
from pipeline.stages.violation import Violation, ViolationKind
from pipeline.stream import Stream
from pipeline.telemetry import BATCH_SECONDS, SILENT, Telemetry
from pipeline.tracing import span

journal = Journal(__name__, "verifier")

RECORDS_MAX: Final = 32
"""Signed records looked at before their outcomes are written; going to another partition costs a tenth of a second."""

RECORD_BYTES_MAX: Final = 16 * 1024 * 1024
"""The record that reaches this is the last of its stretch."""

REJECTIONS_MAX: Final = 1_000
IDLE_FIRST_S: Final = 0.25
IDLE_MAX_S: Final = 1.0
SETTLE_S: Final = 30.0
"""How long a batch that was sworn may take to appear, a death of its worker included."""

SETTLE_LOOK_S: Final = 2.0
KEPT_VIOLATIONS_MAX: Final = 100
"""Findings kept in memory for a report; all of them are in the table `violations`."""


class Outcomes(Protocol):
    """Where outcomes, sightings, violations and the verifier's positions are kept."""

    async def positions(self) -> Mapping[tuple[str, int], int]:
        """(topic, partition) → the next offset to look at."""
        ...

    async def save(self, finding: Finding, topic: str, partition: int, next_offset: int) -> Sequence[Violation]:
        """All of it in one transaction; the violations that the tables' own keys found beside those given."""
        ...

    async def reconcile(
        self, source: SourceSettings, limit: int, heads: Mapping[Stream, int] | None = None
    ) -> Sequence[Violation]:
        """What is missing: gaps, rows without an outcome, batches never published; at most `limit` of each.

        With `heads` a pipeline runs, and only what is due by now can be missing: batches up to these, and rows that
        later rows of their stream have overtaken.
        """
        ...

    async def counts(self) -> Mapping[str, int]:
        """Rows by status."""
        ...


@dataclass(frozen=True, slots=True)
class VerifierPorts:
    """What the verifier needs of the world."""

    log: BatchLog
    sources: Mapping[str, Source]
    ledger: Ledger
    outcomes: Outcomes
    policies: Policies
    clock: Clock
    telemetry: Telemetry = SILENT


@dataclass(slots=True)
class VerifierCount:
    """What a verifier has done since it started."""

    signed: int = 0
    rejected: int = 0
    violations: int = 0
    caught_up_ms: int = 0  #: when it last began a look that found nothing new
    first: list[str] = field(default_factory=list)


class Verifier:
    """Looks at every published record once."""

    def __init__(self, ports: VerifierPorts, sources: Sequence[SourceSettings], topics: tuple[str, str]) -> None:
        """`topics` are those of signed and of rejected rows."""
        self._ports = ports
        self._settings = {source.name: source for source in sources}
        self._signed_topic, self._rejected_topic = topics
        self._positions: dict[tuple[str, int], int] = {}
        self._policies: dict[tuple[str, int], Policy] = {}  #: by source and version
        self.count = VerifierCount()

    def counts(self) -> dict[str, Any]:
        """For status and metrics."""
        c = self.count
        return {
            "verified": c.signed,
            "rejected": c.rejected,
            "violations": c.violations,
            "caught_up_ms": c.caught_up_ms,
        }

    async def run(self, stop: asyncio.Event) -> None:
        """Follow until told to stop. Raises DependencyDown after bounded retries."""
        backoff, idle_s = Backoff(self._ports.clock), IDLE_FIRST_S
        while not stop.is_set():
            try:
                moved = await self.step()
                backoff.reset()
            except DependencyDown as error:
                journal.failed("tries again", error=error)
                self._positions.clear()
                await backoff.pause(error)
                continue
            if moved:
                idle_s = IDLE_FIRST_S
                continue
            await self._ports.clock.sleep(idle_s)
            idle_s = min(idle_s * 2, IDLE_MAX_S)

    async def catch_up(self) -> None:
        """Look at everything that is published now, not at what follows meanwhile. Raises DependencyDown."""
        ends = await self._ends()
        while await self._look(ends):
            pass

    async def step(self) -> bool:
        """One stretch of each partition; whether there was any. Raises DependencyDown."""
        began_ms = self._ports.clock.unix_ms()
        moved = await self._look(await self._ends())
        if not moved:
            self.count.caught_up_ms = began_ms
        return moved

    async def _ends(self) -> dict[tuple[str, int], int]:
        topics = (self._signed_topic, self._rejected_topic)
        return {(topic, p): end for topic in topics for p, end in enumerate(await self._ports.log.ends(topic))}

    async def _look(self, ends: Mapping[tuple[str, int], int]) -> bool:
        if not self._positions:
            await self._resume(ends)
        moved = False
        for (topic, partition), end in ends.items():
            start = self._positions[topic, partition]
            if start < end:
                await self._stretch(topic, partition, (start, end))
                moved = True
        return moved

    async def _resume(self, ends: Mapping[tuple[str, int], int]) -> None:
        """Go on where the last look ended; what Kafka has lost since is a finding."""
        known = await self._ports.outcomes.positions()
        starts = {(topic, p): at for topic, _ in ends for p, at in enumerate(await self._ports.log.starts(topic))}
        for (topic, partition), end in ends.items():
            at, start = known.get((topic, partition), 0), starts[topic, partition]
            if not start <= at <= end:
                detail = f"{topic}[{partition}] has records {start} to {end}, the next to look at would be {at}"
                await self._keep(
                    Finding(violations=[Violation(ViolationKind.RECORDS_GONE, detail)]), topic, partition, start
                )
                at = start
            self._positions[topic, partition] = at

    async def reconcile(self, heads: Mapping[Stream, int] | None = None) -> list[Violation]:
        """What is missing or was found earlier, over everything; without `heads` nothing may be under way."""
        violations: list[Violation] = []
        for source in self._settings.values():
            violations += await self._ports.outcomes.reconcile(source, KEPT_VIOLATIONS_MAX, heads)
        return violations

    async def reconcile_running(self) -> list[Violation]:
        """The same beside a pipeline that runs: what a second look still finds after SETTLE_S at the most.

        Kafka's partitions are not read at one moment, so a single look can miss what is there.
        """
        heads = await self._ports.ledger.heads()
        await self.catch_up()
        found = await self.reconcile(heads)
        deadline_s = self._ports.clock.monotonic_s() + SETTLE_S
        while found and self._ports.clock.monotonic_s() < deadline_s:
            await self._ports.clock.sleep(SETTLE_LOOK_S)
            await self.catch_up()
            before = {_subject(violation) for violation in found}
            found = [violation for violation in await self.reconcile(heads) if _subject(violation) in before]
        return found

    async def compare(self, assignments: Sequence[Assignment]) -> list[Violation]:
        """Assignments that are under way against the ledger; one that was not sworn yet has no row there."""
        violations = []
        for assignment in assignments:
            entry = await self._ports.ledger.entry(assignment.stream, assignment.seq)
            if entry is not None and promised(entry) != lent(assignment):
                detail = f"lent was {lent(assignment)}, the ledger has {promised(entry)}"
                violations.append(Violation(ViolationKind.LEDGER_MISMATCH, detail, assignment.stream, assignment.seq))
        return violations

    # ── one stretch of a partition ───────────────────────────────────────────────────────────────────────────────────

    async def _stretch(self, topic: str, partition: int, bounds: tuple[int, int]) -> None:
        signed, clock = topic == self._signed_topic, self._ports.clock
        begun_s = clock.monotonic_s()
        messages, reached = await self._read(topic, partition, bounds, RECORDS_MAX if signed else REJECTIONS_MAX)
        finding = await (self._signed(messages) if signed else self._rejected(messages))
        await self._keep(finding, topic, partition, reached)
        self._ports.telemetry.observe(BATCH_SECONDS, clock.monotonic_s() - begun_s, stage="verify")

    async def _read(self, topic: str, partition: int, bounds: tuple[int, int], most: int) -> tuple[list[Message], int]:
        """Up to `most` records, and the offset after them."""
        messages: list[Message] = []
        size = 0
        async with aclosing(self._ports.log.scan(topic, partition, *bounds)) as scan:
            async for message in scan:
                messages.append(message)
                size += len(message.value)
                if len(messages) == most or size >= RECORD_BYTES_MAX:
                    return messages, message.place.offset + 1
        return messages, bounds[1]

    async def _keep(self, finding: Finding, topic: str, partition: int, reached: int) -> None:
        found = await self._ports.outcomes.save(finding, topic, partition, reached)
        self._positions[topic, partition] = reached
        self._tally(finding, [*finding.violations, *found])

    async def _signed(self, messages: Sequence[Message]) -> Finding:
        findings = []
        for message in messages:
            try:
                record = SignedRecord.decode(message.value)
            except MalformedBatch as error:
                findings.append(_unreadable(message.place, str(error)))
                continue
            header = record.header
            if problem := unsound(header) or await self._unknown(header.stream.source, header.policy):
                findings.append(_unreadable(message.place, problem))
                continue
            ids = [tx_id for tx_id in record.rows.column("tx_id").to_pylist() if tx_id is not None]
            with span("verify", header.stream, header.seq, message.traceparent):
                rows = await self._rows(header.stream.source, ids)
                ledger = await self._ports.ledger.entry(header.stream, header.seq)
                policy = self._policies.get((header.stream.source, header.policy))
                findings.append(inspect_record(record, message.place, rows, ledger, policy))
        return merged(findings)

    async def _rejected(self, messages: Sequence[Message]) -> Finding:
        findings = []
        rejections: dict[str, list[tuple[Message, Rejection]]] = {}
        for message in messages:
            try:
                rejection = Rejection.from_json(message.value)
            except MalformedBatch as error:
                findings.append(_unreadable(message.place, str(error)))
                continue
            if problem := unsound(rejection) or await self._unknown(rejection.source, rejection.policy):
                findings.append(_unreadable(message.place, problem))
                continue
            rejections.setdefault(rejection.source, []).append((message, rejection))
        for source, group in rejections.items():
            rows = await self._rows(source, [rejection.tx_id for _, rejection in group])
            findings += [
                inspect_rejection(rejection, message.place, rows, self._policies.get((source, rejection.policy)))
                for message, rejection in group
            ]
        return merged(findings)

    async def _rows(self, source: str, ids: Sequence[int]) -> Mapping[int, Any]:
        if not ids:
            return {}
        table = await self._ports.sources[source].rows_of(ids)
        return source_rows(table, source, self._settings[source].chain_id)

    async def _unknown(self, source: str, policy: int) -> str:
        """What a record speaks of that there is not, or empty."""
        if source not in self._settings:
            return f"no source is called {source!r}"
        if policy and (source, policy) not in self._policies:
            versions = await self._ports.policies.versions(source)
            self._policies |= {(source, version): found for version, found in versions.items()}
        return "" if not policy or (source, policy) in self._policies else f"{source} never had a policy {policy}"

    def _tally(self, finding: Finding, violations: Sequence[Violation]) -> None:
        signed = sum(outcome.status == "signed" for outcome in finding.outcomes)
        self.count.signed += signed
        self.count.rejected += len(finding.outcomes) - signed
        self.count.violations += len(violations)
        for violation in violations:
            journal.denied("violation", stream=violation.stream, seq=violation.seq, reason=violation)
        room = KEPT_VIOLATIONS_MAX - len(self.count.first)
        self.count.first += [str(violation) for violation in violations[:room]]


def _subject(violation: Violation) -> tuple[object, ...]:
    """What a violation is about; the rest of its text changes while a pipeline runs."""
    return violation.kind, violation.stream, violation.seq, violation.tx_id, violation.detail.split(":")[0]


def _unreadable(place: Place, problem: str) -> Finding:
    return Finding(violations=[Violation(ViolationKind.UNREADABLE, f"{place}: {problem}")])

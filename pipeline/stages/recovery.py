"""The recovery of etcd after it was lost or restored from a backup: alone, then gather, then write.

Alone means that nothing can sign or publish any more: this process leads, no signer is connected to the ledger, the
consumers' group is empty, every transactional.id is taken over, and no transaction is open on tx.signed. Only then it
is known for good what was published. A new generation of the ledger then refuses for good what was assigned before and
not sworn, should anybody still have it.

A crash at any point is harmless. Streams that go back are written first, and a key manager halts at an assignment that
its stream has not come to; streams that go forward are written last, and until then it halts at the ledger's head. A
key and its assignment are one transaction. Whoever runs it again goes on from what etcd holds then.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.assignment import startup
from pipeline.assignment.leadership import Claim, Leadership
from pipeline.assignment.paths import Paths
from pipeline.assignment.plan import Plan
from pipeline.assignment.rebuilding import Difference, Rebuilt, rebuild
from pipeline.assignment.records import Assignment, Leader, Record
from pipeline.assignment.rules import WRITES_MAX, WRITES_PER_BATCH
from pipeline.assignment.view import Guard, View
from pipeline.assignment.writing import send
from pipeline.errors import DependencyDown, DeploymentHalted, OncesignError, RuntimeFault, StoreUnavailable
from pipeline.ports import Clock, RoundWriter, Store
from pipeline.settings import EtcdSettings
from pipeline.stages.remains import Remains, RemainsPorts

log = logging.getLogger(__name__)

ALONE_S: Final = 20.0
"""How long is waited for signers and consumers that are dead already; their servers notice within 12 s."""

SETTLED_S: Final = 45.0
"""How long is waited for open transactions: a broker looks every 10 s for those that are over their 12 s."""

LOOK_S: Final = 0.5

STOP_IT: Final = "Stop the pipeline and its processes, then run the same command again."


@dataclass(frozen=True, slots=True)
class RecoveryPorts:
    """What a recovery needs of the world."""

    store: Store
    remains: RemainsPorts
    rounds: Sequence[RoundWriter]  #: of every consumer slot and of the sweeper
    clock: Clock


class Recovery:
    """Of one deployment. `look` tells, `repair` writes."""

    def __init__(
        self, deployment: str, node: str, ports: RecoveryPorts, remains: Remains, settings: EtcdSettings, signed: str
    ) -> None:
        """`signed` is the topic of signed batches."""
        self._paths = Paths(deployment)
        self._node = node
        self._ports = ports
        self._ledger = ports.remains.ledger
        self._log = ports.remains.log
        self._remains = remains
        self._leadership = Leadership(ports.store, self._paths, ports.clock, settings)
        self._signed = signed

    async def look(self, *, has_topics: bool = True) -> Rebuilt:
        """What differs now; nothing is changed, and while a pipeline runs it may not be true. Raises DependencyDown."""
        view = await startup.load(self._ports.store, self._paths)
        facts = await (self._remains.facts(view) if has_topics else self._remains.facts_of_ledger())
        rebuilt = rebuild(view, facts, None, self._node, self._ports.clock.unix_ms())
        if await self._ports.store.get(self._paths.genesis) is None and (view.keys or rebuilt.differences):
            rebuilt.differences.insert(0, self._no_genesis())
        return rebuilt

    async def repair(self) -> list[Difference]:
        """Make etcd as it must be; what was changed.

        Raises NotLeader and DeploymentHalted while anything could still sign, DeploymentHalted when it cannot be told
        how etcd must be, and DependencyDown. Whatever it raises, run it again.
        """
        me = Leader(str(uuid.uuid4()), self._node, os.getpid(), self._ports.clock.unix_ms())
        claim = await self._leadership.claim(me)
        keeping = asyncio.create_task(self._leadership.keep(claim), name="keep-alive")
        try:
            await self._stand_alone()
            return await self._repaired(claim)
        finally:
            keeping.cancel()
            await self._leadership.resign(claim)

    # ── alone ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _stand_alone(self) -> None:
        await self._wait(self._ledger.bar_signers, ALONE_S, "a signer is connected to the ledger")
        await self._wait(self._nobody_consumes, ALONE_S, "the consumers' group has members")
        for consumer in self._ports.rounds:
            await consumer.open()
        for reader in self._ports.remains.streams.values():
            await reader.open()
        await self._wait(self._nothing_is_open, SETTLED_S, f"a transaction is open on {self._signed}")
        await self._wait(self._nobody_consumes, 0.0, "the consumers' group has members")

    async def _wait(self, holds: Callable[[], Awaitable[bool]], for_s: float, otherwise: str) -> None:
        deadline_s = self._ports.clock.monotonic_s() + for_s
        while True:
            refusal: OncesignError = DeploymentHalted(f"something could still sign: {otherwise}.", hint=STOP_IT)
            try:
                if await holds():
                    return
            except DependencyDown as error:
                refusal = error
            if self._ports.clock.monotonic_s() >= deadline_s:
                raise refusal
            await self._ports.clock.sleep(LOOK_S)

    async def _nobody_consumes(self) -> bool:
        return await self._log.members() == 0

    async def _nothing_is_open(self) -> bool:
        marks = await self._log.ends(self._signed, committed=False)
        return await self._log.ends(self._signed, committed=True) == marks

    # ── the repair ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _repaired(self, claim: Claim) -> list[Difference]:
        clock, store = self._ports.clock, self._ports.store
        view = await startup.load(store, self._paths)
        facts = await self._remains.facts(view)
        found = rebuild(view, facts, None, self._node, clock.unix_ms())
        if found.problems:
            raise cannot(found.problems)
        known = await store.get(self._paths.genesis)
        if not found.differences and (known is not None or not view.keys):
            return []  # nothing differs, or this deployment never was
        generation = await self._ledger.begin_generation(self._node)
        value = await startup.made_genesis(store, self._paths, claim, clock)
        guard = startup.guard_of(self._paths, claim, value, generation)
        rebuilt = rebuild(view, facts, guard.lasting_fence, self._node, clock.unix_ms())
        for unit in units(view, rebuilt):
            await self._write(view, guard, unit)
        await self._check(view, rebuilt)
        return [*([self._no_genesis()] if known is None else []), *rebuilt.differences]

    async def _write(self, view: View, guard: Guard, unit: Unit) -> None:
        plan = unit.plan(view, guard)
        if not await self._ledger.bar_signers():
            raise DeploymentHalted("something could still sign: a signer has connected to the ledger.", hint=STOP_IT)
        result = await send(self._ports.store, self._ports.clock, plan.txn())
        if result.succeeded:
            plan.apply(result.revision)
            return
        plan.guard.check(result.reads)
        if not plan.is_applied(result.reads):
            raise StoreUnavailable("its records change under the recovery", hint="Who else writes to etcd?")
        plan.apply(result.revision, result.reads)

    async def _check(self, view: View, rebuilt: Rebuilt) -> None:
        """What etcd holds now is what was meant, and what a key manager starts with."""
        written = await startup.load(self._ports.store, self._paths)
        await startup.check(written, self._ledger)
        same = (
            {key: held.record for key, held in written.keys.items()} == rebuilt.keys,
            {stream: held.record for stream, held in written.streams.items()} == rebuilt.streams,
            {batch: held.record for batch, held in written.assignments.items()} == rebuilt.assignments,
            written.sealed == view.sealed,
        )
        if not all(same):
            raise RuntimeFault("etcd does not hold what the recovery wrote.")

    def _no_genesis(self) -> Difference:
        return Difference("genesis", self._paths.deployment, "", "a new one", "etcd holds nothing of the deployment")


def cannot(problems: Sequence[str]) -> DeploymentHalted:
    """The refusal of a recovery that does not know how etcd must be."""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return DeploymentHalted(f"etcd cannot be rebuilt: {problems[0]}{more}.", hint="Nothing was changed.")


@dataclass(slots=True)
class Unit:
    """What is written together."""

    puts: list[Record]
    deletes: list[Assignment]
    sealed: dict[str, bytes]

    def plan(self, view: View, guard: Guard) -> Plan:
        """One transaction."""
        plan = Plan(guard, view)
        for record in self.puts:
            plan.put(record)
        for gone in self.deletes:
            plan.delete(gone)
        plan.raw_puts |= {guard.paths.sealed(address): sealed for address, sealed in self.sealed.items()}
        return plan


def units(view: View, rebuilt: Rebuilt) -> Iterator[Unit]:
    """Everything that differs, in an order in which a crash between any two is harmless."""
    sealed = list(rebuilt.sealed.items())
    for start in range(0, len(sealed), WRITES_MAX):
        yield Unit([], [], dict(sealed[start : start + WRITES_MAX]))
    streams = {s: r for s, r in rebuilt.streams.items() if s not in view.streams or view.streams[s].record != r}
    back = {s for s in streams if s in view.streams and view.streams[s].record.seq > streams[s].seq}
    yield from _in_parts([streams[s] for s in sorted(back)])
    yield from _together(view, rebuilt)
    yield from _in_parts([streams[s] for s in sorted(streams.keys() - back)])


def _together(view: View, rebuilt: Rebuilt) -> Iterator[Unit]:
    """A key with the assignments that it loses and gets; those without a key by themselves."""
    unit = Unit([], [], {})
    for puts, deletes in _by_key(view, rebuilt):
        for start in range(0, max(len(puts), len(deletes)), WRITES_PER_BATCH):
            unit.puts += puts[start : start + WRITES_PER_BATCH]
            unit.deletes += deletes[start : start + WRITES_PER_BATCH]
            if len(unit.puts) + len(unit.deletes) + 2 * WRITES_PER_BATCH > WRITES_MAX:
                yield unit
                unit = Unit([], [], {})
    if unit.puts or unit.deletes:
        yield unit


def _by_key(view: View, rebuilt: Rebuilt) -> Iterable[tuple[list[Record], list[Assignment]]]:
    """What is put and what is deleted, of each key."""
    changes: dict[tuple[int, str], tuple[list[Record], list[Assignment]]] = defaultdict(lambda: ([], []))
    for key, record in rebuilt.keys.items():
        if key not in view.keys or view.keys[key].record != record:
            changes[key][0].append(record)
    for batch, made in rebuilt.assignments.items():
        if batch not in view.assignments or view.assignments[batch].record != made:
            changes[made.chain_id, made.address][0].append(made)
    for batch, held in view.assignments.items():
        if batch not in rebuilt.assignments:
            changes[held.record.chain_id, held.record.address][1].append(held.record)
    return changes.values()


def _in_parts(records: Sequence[Record]) -> Iterator[Unit]:
    for start in range(0, len(records), WRITES_MAX):
        yield Unit(list(records[start : start + WRITES_MAX]), [], {})

"""Whoever kills and stops processes, and breaks servers, at moments drawn from the seed.

Most deeds are faults that the pipeline must outlive by itself. A disaster takes away what was acknowledged as durable:
then halting is right, and only what is always forbidden stays forbidden.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from pipeline.ports import LedgerEntry
from pipeline.stream import Stream
from pipeline.testing.broker import MESSAGE_MAX_BYTES
from pipeline.testing.group import Committed, Generation
from pipeline.testing.simulation.cluster import BATCHES, GROUP, SIGNED, Cluster
from pipeline.testing.source import StoredRow
from pipeline.testing.store import TwinEtcd

K = TypeVar("K")
V = TypeVar("V")

DEEDS_MAX: Final = 4
DISASTER_SHARE: Final = 0.1
STANDSTILL_S: Final = (0.3, 2.0, 5.0, 7.0, 13.0)
"""Below and above the leader's lease of 6 s and a transaction's 12 s."""

OUTAGE_S: Final = (0.2, 1.0, 4.0)
CLOCK_JUMP_MS: Final = (-600_000, -5_000, 5_000, 600_000)
STEPS_MAX: Final = 60
STRAY_SHARE: Final = 0.3
TINY_BYTES: Final = 300
OPERATOR_LOOKS_S: Final = (1.5, 6.0, 20.0)
"""When somebody looks whether anything has ended for good; an answer can be as late as the last of them."""


class Standby(NamedTuple):
    """What a copy of Postgres has that lags behind."""

    source: dict[int, StoredRow]
    xid: int
    ledger: dict[tuple[Stream, int], LedgerEntry]
    next_nonces: dict[tuple[int, str], int]


class Nemesis:
    """Bound to one cluster."""

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        self._cluster = cluster
        self._rng = rng
        self._backup: TwinEtcd | None = None
        self._rows: Standby | None = None
        self._deeds = [deed for deed in self._faults() if rng.random() < 0.5]
        self._disasters = self._catastrophes() if rng.random() < DISASTER_SHARE else []
        self.disasters = 0
        cluster.stray = lambda: rng.random() < STRAY_SHARE

    def _faults(self) -> list[Callable[[], None]]:
        return [
            self._kill,
            self._kill,
            self._freeze,
            self._hold_markers,
            self._stop_kafka,
            self._stop_etcd,
            self._stop_postgres,
            self._lose_leader,
            self._usurp,
            self._rebalance,
            self._jump_clock,
            self._shrink_messages,
        ]

    def _catastrophes(self) -> list[Callable[[], None]]:
        return [
            self._restore_etcd,
            self._recreate_topic,
            self._trim_topic,
            self._truncate_topic,
            self._skip_batch,
            self._lose_commits,
        ]

    async def rage(self, storm_s: float) -> None:
        """A few deeds within that time, a disaster among them if this seed has one."""
        rng = self._rng
        deeds = [rng.choice(self._deeds) for _ in range(rng.randint(0, DEEDS_MAX))] if self._deeds else []
        deeds += [rng.choice(self._disasters)] if self._disasters else []
        moments = sorted(rng.random() * storm_s for _ in deeds)
        rng.shuffle(deeds)
        self._later(rng.random() * storm_s, self._back_up)
        begun_s = self._cluster.loop.time()
        for moment, deed in zip(moments, deeds, strict=True):
            await asyncio.sleep(begun_s + moment - self._cluster.loop.time())
            deed()
        await asyncio.sleep(begun_s + storm_s - self._cluster.loop.time())

    def end(self) -> None:
        """Every server is up again; who stands still goes on in its own time."""
        self._cluster.broker.down = self._cluster.etcd.down = self._cluster.database.down = False
        self._cluster.broker.markers_held = False
        self._cluster.broker.write_markers()
        for actor in self._cluster.managers[:-1]:
            actor.process.kill()

    def _fault(self, kind: str, who: str, what: str) -> None:
        self._cluster.story.fault(kind, who, what)

    def _later(self, delay_s: float, deed: Callable[[], None]) -> None:
        self._cluster.network.later(delay_s, deed)

    # ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _kill(self) -> None:
        member = self._rng.choice(self._cluster.members)
        if member.process is not None and not member.process.dead:
            steps = self._rng.randint(0, STEPS_MAX)
            self._fault("kill", member.process.name, f"is killed at its await number {steps} from now")
            member.process.kill_after(steps)

    def _freeze(self) -> None:
        member = self._rng.choice(self._cluster.members)
        if member.process is None or member.process.dead or member.process.frozen:
            return
        for_s = self._rng.choice(STANDSTILL_S)
        self._fault("standstill", member.process.name, f"stands still for {for_s} s")
        member.process.freeze()
        self._later(for_s, member.process.thaw)

    def _usurp(self) -> None:
        self._fault("second key manager", "ray", "starts a second key manager beside the first")
        self._cluster.usurp()

    def _jump_clock(self) -> None:
        jump_ms = self._rng.choice(CLOCK_JUMP_MS)
        self._fault("clock jump", "world", f"all wall clocks jump by {jump_ms} ms")
        self._cluster.clock.skew_ms += jump_ms

    # ── servers ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _hold_markers(self) -> None:
        self._fault("markers held", "kafka", "writes no markers for a while")
        self._cluster.broker.markers_held = True

    def _stop_kafka(self) -> None:
        self._outage("kafka", lambda down: setattr(self._cluster.broker, "down", down))

    def _stop_etcd(self) -> None:
        self._outage("etcd", lambda down: setattr(self._cluster.etcd, "down", down))

    def _stop_postgres(self) -> None:
        self._outage("postgres", lambda down: setattr(self._cluster.database, "down", down))

    def _outage(self, server: str, switch: Callable[[bool], None]) -> None:
        for_s = self._rng.choice(OUTAGE_S)
        self._fault("outage", server, f"is away for {for_s} s")
        switch(True)  # noqa: FBT003 - down or not
        self._later(for_s, lambda: switch(False))  # noqa: FBT003

    def _shrink_messages(self) -> None:
        """Somebody sets max.message.bytes below what a record needs, and mends it; an operator starts what ended."""
        bounds, topic = self._cluster.broker.bounds, self._rng.choice([BATCHES, SIGNED])
        for_s = self._rng.choice(OUTAGE_S)
        self._fault("message too large", "kafka", f"{topic} takes no record above {TINY_BYTES} bytes for {for_s} s")
        bounds[topic] = TINY_BYTES
        self._later(for_s, lambda: bounds.update({topic: MESSAGE_MAX_BYTES}))
        for seen_s in OPERATOR_LOOKS_S:
            self._later(for_s + seen_s, self._cluster.start_what_failed)

    def _lose_leader(self) -> None:
        """Its lease ends while it lives: its keep-alives did not come through."""
        self._fault("lost lease", "etcd", "ends all leases")
        for lease in list(self._cluster.etcd.leases):
            self._cluster.etcd.revoke(lease)

    def _rebalance(self) -> None:
        """A member is thrown out, and comes again."""
        members = sorted(self._cluster.broker.group(GROUP).members)
        if members:
            member = self._rng.choice(members)
            self._fault("rebalance", "kafka", f"throws {member} out of the group")
            self._cluster.broker.leave(Generation(GROUP, member))

    # ── disasters ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _disaster(self, who: str, what: str) -> None:
        self.disasters += 1
        self._fault("disaster", who, f"DISASTER: {what}")

    def _back_up(self) -> None:
        source, ledger = self._cluster.source, self._cluster.ledger
        self._backup = self._cluster.etcd.backup()
        self._rows = Standby(dict(source.rows), source.xid, dict(ledger.rows), dict(ledger.next_nonces))

    def _restore_etcd(self) -> None:
        if self._backup is not None:
            self._disaster("etcd", "it is restored from a backup, revisions included")
            self._cluster.etcd.restore(self._backup)

    def _recreate_topic(self) -> None:
        topic = self._rng.choice([BATCHES, SIGNED])
        self._disaster("kafka", f"{topic} is deleted and made anew, empty")
        partitions = len(self._cluster.broker.topics[topic])
        self._cluster.broker.delete_topic(topic)
        self._cluster.broker.create_topic(topic, partitions)

    def _trim_topic(self) -> None:
        log = self._rng.choice(self._cluster.broker.topics[BATCHES])
        self._disaster("kafka", f"{BATCHES}[{log.number}] loses everything below offset {log.last_stable}")
        log.trim(log.last_stable)

    def _truncate_topic(self) -> None:
        """An unclean election: the new leader of a partition never had its last records."""
        topic = self._rng.choice([BATCHES, SIGNED])
        log = self._rng.choice(self._cluster.broker.topics[topic])
        end = self._rng.randint(log.start, log.end)
        self._disaster("kafka", f"{topic}[{log.number}] loses everything from offset {end} on")
        log.truncate(end)

    def _lose_commits(self) -> None:
        """Postgres fails over to a standby that lags behind."""
        if self._rows is not None:
            self._disaster("postgres", "it fails over to a standby without the last commits")
            source, ledger = self._cluster.source, self._cluster.ledger
            source.fail_over()
            source.xid = self._rows.xid
            _set_back(source.rows, self._rows.source)
            _set_back(ledger.rows, self._rows.ledger)
            _set_back(ledger.next_nonces, self._rows.next_nonces)

    def _skip_batch(self) -> None:
        """An operator sets the consumers' offset forward."""
        log = self._rng.choice(self._cluster.broker.topics[BATCHES])
        group = self._cluster.broker.group(GROUP)
        at = group.offsets.get((BATCHES, log.number))
        if at is not None and at.offset < log.last_stable:
            self._disaster("kafka", f"the offset of {BATCHES}[{log.number}] is set forward from {at.offset}")
            group.offsets[BATCHES, log.number] = Committed(log.last_stable, at.metadata)


def _set_back(table: dict[K, V], to: dict[K, V]) -> None:
    table.clear()
    table.update(to)

"""From batches to signed records: key managers, consumers, the sweeper, etcd, the ledger and Kafka, one row per batch.

What is left out on purpose: readers (see reading.py), rejected rows, group commits. A process does what it decides
from its own memory and one external effect in one step; between steps anything may happen to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

from pipeline.testing.model.faults import FAULTS
from pipeline.testing.model.search import Step
from pipeline.testing.model.world import (
    Batch,
    Consumer,
    Etcd,
    KeyRecord,
    Lent,
    Manager,
    State,
    StreamRecord,
    Work,
    added,
    advanced,
    behind,
    land,
    landed,
    put,
    refused,
    said,
    with_consumer,
    worked,
)

KINDS: Final = frozenset({"lost reply", "aborted round", "ambiguous commit", *FAULTS})


@dataclass(frozen=True)
class Signing:
    """The model; `without` names guards that are left out, `kinds` the faults that may happen."""

    streams: int = 1
    batches: int = 2
    keys: int = 2
    faults: int = 1
    without: frozenset[str] = frozenset()
    kinds: frozenset[str] = KINDS

    GUARDS: ClassVar[tuple[str, ...]] = (
        "fence",
        "stream compare",
        "key compare",
        "same batch, same assignment",
        "published means skip",
        "digest",
        "chain",
        "ledger row",
        "watermark",
        "generation",
        "offsets in the transaction",
        "rebuild after abort",
        "release after commit",
        "sweeper leaves what is not committed",
    )

    def has(self, guard: str) -> bool:
        """Whether a guard is in force."""
        return guard not in self.without

    # ── what must hold ───────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> State:
        """Batches wait; nobody leads; the first consumer owns every stream."""
        log = tuple(
            tuple(Batch(stream, seq, "a") for seq in range(1, self.batches + 1)) for stream in range(self.streams)
        )
        empty = Etcd(None, 0, (StreamRecord(),) * self.streams, (KeyRecord(),) * self.keys)
        nowhere: tuple[int | None, ...] = (None,) * self.streams
        return State(
            etcd=empty,
            managers=(None, None),
            consumers=(Consumer(-1, nowhere), Consumer(-1, nowhere)),
            log=log,
            committed=(0,) * self.streams,
            generation=0,
            owner=(0,) * self.streams,
            backup=empty,
            faults=self.faults,
        )

    def settled(self, state: State) -> bool:
        """Every batch is on the output and every key free; or an operator must act."""
        if state.stopped or any(stream.halted for stream in state.etcd.streams):
            return True
        if state.disasters > 1:
            return True  # then only the verifier, who has the source, can tell what is missing; the rest still holds
        done = {(lent.batch.stream, lent.batch.seq) for lent in state.output}
        wanted = {(s, seq) for s in range(self.streams) for seq in range(1, self.batches + 1)}
        return done == wanted and not state.etcd.assigned

    def wrong(self, state: State) -> str:
        """The first invariant that does not hold."""
        nonces: dict[tuple[int, int], Batch] = {}
        rows: dict[tuple[int, int], Lent] = {}
        for lent in state.signatures:
            if nonces.setdefault((lent.key, lent.nonce), lent.batch) != lent.batch:
                return f"I1: key {lent.key} signed two batches with nonce {lent.nonce}"
            if rows.setdefault(lent.batch[:2], lent) != lent:
                return f"I2: batch {lent.batch.seq} of stream {lent.batch.stream} is signed in two ways"
        if len(set(state.output)) != len(state.output):
            return "I5: a batch was published twice"
        for key in range(self.keys):
            used = sorted(lent.nonce for lent in state.signatures if lent.key == key)
            if used != list(range(len(used))) and not state.etcd.assigned:
                return f"I4: the nonces of key {key} have a gap: {used}"
        if state.usurped:
            return "I7: a manager that no longer leads wrote to etcd"
        halted = state.stopped or any(stream.halted for stream in state.etcd.streams)
        return "I9: halted although nothing was lost" if halted and not state.disasters else ""

    # ── what can happen ──────────────────────────────────────────────────────────────────────────────────────────────

    def steps(self, state: State) -> Iterator[Step[State]]:
        """All of it, in the order of the flow."""
        for number in range(len(state.managers)):
            yield from self._lead(state, number)
        for number, consumer in enumerate(state.consumers):
            yield from self._consume(state, number, consumer)
        yield from self._sweep(state)
        if state.late is not None and not self.has("rebuild after abort"):
            yield Step("the commit of an abandoned producer lands after all", land(state))
        if state.faults:
            spent = state._replace(faults=state.faults - 1)
            for kind in (kind for kind in FAULTS if kind in self.kinds):
                for label, after in FAULTS[kind](spent):
                    yield Step(label, after, fault=True)

    def _lead(self, state: State, number: int) -> Iterator[Step[State]]:
        manager, name = state.managers[number], f"manager {number}"
        if manager is not None and manager.view != state.etcd:
            yield Step(
                f"{name} sends its last transaction again and reads how it ended", refused(state, number, manager)
            )
        if manager is not None or state.etcd.leader is not None:
            return
        if self.has("fail closed") and behind(state):
            yield Step(f"{name} finds etcd behind the ledger and stops everything", state._replace(stopped=True))
            return
        identity = state.leads + 1
        etcd = state.etcd._replace(leader=identity, fence=state.etcd.fence + 1)
        manager = Manager(etcd.fence, identity, etcd)
        yield Step(
            f"{name} leads with fence {etcd.fence}",
            state._replace(etcd=etcd, managers=put(state.managers, number, manager), leads=identity),
        )

    def _consume(self, state: State, number: int, consumer: Consumer) -> Iterator[Step[State]]:
        name = f"consumer {number}"
        if consumer.generation != state.generation:
            yield Step(f"{name} learns of generation {state.generation}", self._polled(state, number))
        work = consumer.work
        if work is None:
            yield from self._fetch(state, number, consumer)
        elif work.phase == "fetched":
            yield from self._ask(state, number, work)
        elif work.phase == "assigned":
            yield self._sign(state, number, work)
        elif work.phase == "signed":
            yield from self._publish(state, number, consumer, work)
        elif work.phase == "published":
            yield from self._commit_offset(state, number, consumer, work)
        else:
            yield from self._release(state, number, work)

    def _polled(self, state: State, number: int) -> State:
        """A new generation, or a reset: what was under way is forgotten, reading goes on at the committed offsets."""
        if state.late is not None and state.late[0] == number and self.has("rebuild after abort"):
            state = state._replace(late=None)  # opening a new producer aborts what the old one left
        mine = tuple(state.committed[s] if state.owner[s] == number else None for s in range(self.streams))
        return with_consumer(state, number, Consumer(state.generation, mine))

    def _fetch(self, state: State, number: int, consumer: Consumer) -> Iterator[Step[State]]:
        for stream, place in enumerate(consumer.places):
            if place is not None and place < len(state.log[stream]):
                batch = state.log[stream][place]
                work = Work(batch, place, "fetched")
                yield Step(
                    f"consumer {number} reads {said(batch)}", with_consumer(state, number, consumer._replace(work=work))
                )

    # ── assignment ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _ask(self, state: State, number: int, work: Work) -> Iterator[Step[State]]:
        for at, manager in enumerate(state.managers):
            if manager is None or manager.view.streams[work.batch.stream].halted:
                continue
            name = f"manager {at}"
            lent, wanted = self._decided(manager.view, state, work.batch)
            if wanted is None:  # no key is free
                continue
            if wanted != manager.view and not self._allowed(state, manager, work.batch, lent):
                yield Step(f"{name} is refused by etcd", refused(state, at, manager))
                continue
            after = self._written(state, at, manager, wanted) if wanted != manager.view else state
            who = f"{name} for consumer {number}"
            if wanted.streams[work.batch.stream].halted:
                yield Step(
                    f"{who}: halts stream {work.batch.stream} at {said(work.batch)}", worked(after, number, None)
                )
            elif lent is None:
                skipped = work._replace(phase="signed")
                yield Step(f"{who}: {said(work.batch)} was published", worked(after, number, skipped))
            else:
                took = work._replace(phase="assigned", lent=lent)
                yield Step(
                    f"{who}: {said(work.batch)} gets key {lent.key} nonce {lent.nonce}", worked(after, number, took)
                )
                yield from self._reply_lost(state, after, at, manager, who)

    def _reply_lost(self, state: State, after: State, at: int, manager: Manager, who: str) -> Iterator[Step[State]]:
        if "lost reply" not in self.kinds or not state.faults or after.etcd == state.etcd:
            return
        spent = after._replace(faults=state.faults - 1)
        yield Step(f"{who}: etcd assigns, the answer to the consumer is lost", spent, fault=True)
        unaware = spent._replace(managers=put(spent.managers, at, manager))
        yield Step(f"{who}: etcd assigns, its answer to the manager is lost", unaware, fault=True)

    def _decided(self, view: Etcd, state: State, batch: Batch) -> tuple[Lent | None, Etcd | None]:
        """What the manager answers and how etcd would look then; no Etcd when the batch must wait for a key."""
        stream = view.streams[batch.stream]
        halted = view._replace(streams=put(view.streams, batch.stream, stream._replace(halted=True)))
        existing = next((lent for lent in view.assigned if lent.batch[:2] == batch[:2]), None)
        if existing is not None and self.has("same batch, same assignment"):
            if existing.batch.digest != batch.digest and self.has("digest"):
                return None, halted
            return existing._replace(batch=batch), view
        if batch.seq <= stream.seq and existing is None and self.has("published means skip"):
            known = {lent.batch for lent in state.ledger if lent.batch[:2] == batch[:2]}
            return (None, view) if batch in known or not self.has("digest") else (None, halted)
        if batch.seq != stream.seq + 1 and self.has("chain"):
            return None, halted
        free = next((k for k, key in enumerate(view.keys) if key.holder is None), None)
        if free is None:
            return None, None
        return self._assigned(view, batch, free)

    def _assigned(self, view: Etcd, batch: Batch, key: int) -> tuple[Lent, Etcd]:
        record = view.keys[key]
        lent = Lent(batch, key, record.next_nonce)
        stream = view.streams[batch.stream]._replace(seq=batch.seq)
        return lent, view._replace(
            streams=put(view.streams, batch.stream, stream),
            keys=put(view.keys, key, KeyRecord(record.next_nonce + 1, batch[:2])),
            assigned=view.assigned | {lent},
        )

    def _allowed(self, state: State, manager: Manager, batch: Batch, lent: Lent | None) -> bool:
        """The IF of the etcd transaction."""
        etcd, view = state.etcd, manager.view
        if self.has("fence") and (etcd.fence, etcd.leader) != (manager.fence, manager.identity):
            return False
        if self.has("stream compare") and etcd.streams[batch.stream] != view.streams[batch.stream]:
            return False
        return lent is None or not self.has("key compare") or etcd.keys[lent.key] == view.keys[lent.key]

    def _written(self, state: State, at: int, manager: Manager, wanted: Etcd) -> State:
        """The THEN of it: only the records that the transaction puts change in etcd."""
        view, etcd = manager.view, state.etcd
        written = etcd._replace(
            streams=tuple(
                new if new != old else now
                for new, old, now in zip(wanted.streams, view.streams, etcd.streams, strict=True)
            ),
            keys=tuple(
                new if new != old else now for new, old, now in zip(wanted.keys, view.keys, etcd.keys, strict=True)
            ),
            assigned=(etcd.assigned | (wanted.assigned - view.assigned)) - (view.assigned - wanted.assigned),
        )
        usurped = etcd.leader != manager.identity
        kept = manager._replace(view=wanted)
        return state._replace(etcd=written, managers=put(state.managers, at, kept), usurped=state.usurped or usurped)

    # ── signing, publishing, releasing ───────────────────────────────────────────────────────────────────────────────

    def _sign(self, state: State, number: int, work: Work) -> Step[State]:
        lent = work.lent
        assert lent is not None  # noqa: S101 - the phase says so
        if not self._sworn(state, lent):
            halted = put(
                state.etcd.streams, lent.batch.stream, state.etcd.streams[lent.batch.stream]._replace(halted=True)
            )
            etcd = state.etcd._replace(streams=halted)
            return Step(
                f"the ledger refuses {said(lent.batch)}; its stream is halted",
                worked(state._replace(etcd=etcd), number, None),
            )
        signed = state._replace(ledger=state.ledger | {lent}, signatures=state.signatures | {lent})
        label = f"consumer {number} has {said(lent.batch)} signed by key {lent.key} with nonce {lent.nonce}"
        return Step(label, worked(signed, number, work._replace(phase="signed")))

    def _sworn(self, state: State, lent: Lent) -> bool:
        """Whether the ledger takes the row."""
        if lent in state.ledger:
            return True
        if self.has("ledger row") and any(row.batch[:2] == lent.batch[:2] for row in state.ledger):
            return False
        watermark = max((row.nonce + 1 for row in state.ledger if row.key == lent.key), default=0)
        return lent.nonce == watermark or not self.has("watermark")

    def _publish(self, state: State, number: int, consumer: Consumer, work: Work) -> Iterator[Step[State]]:
        name = f"consumer {number}"
        if not self.has("release after commit") and work.lent is not None:
            yield from self._release(state, number, work._replace(phase="early"))
        if not self.has("offsets in the transaction"):
            output = state.output if work.lent is None else added(state.output, work.lent)
            yield Step(
                f"{name} publishes {said(work.batch)}",
                worked(state._replace(output=output), number, work._replace(phase="published")),
            )
            return
        if self.has("generation") and consumer.generation != state.generation:
            yield Step(f"{name} may not commit: its generation is old", self._polled(state, number))
            return
        record = (work.lent,) if work.lent is not None else ()
        committed = landed(state, record, work.batch.stream, work.offset + 1)
        done = work._replace(phase="committed") if work.lent is not None else None
        yield Step(f"{name} commits {said(work.batch)}", advanced(committed, number, work, done))
        if state.faults and work.lent is not None:
            spent = state._replace(faults=state.faults - 1)
            yield from self._bad_commits(spent, committed._replace(faults=spent.faults), number, work, work.lent)

    def _bad_commits(
        self, state: State, committed: State, number: int, work: Work, lent: Lent
    ) -> Iterator[Step[State]]:
        name = f"consumer {number}"
        if "aborted round" in self.kinds:
            yield Step(f"{name}'s round is aborted", self._polled(state, number), fault=True)
        if "ambiguous commit" in self.kinds:
            yield Step(
                f"{name} commits {said(work.batch)} and is not told", self._polled(committed, number), fault=True
            )
            abandoned = state._replace(late=(number, lent, work.offset + 1))
            yield Step(
                f"{name} is not told of a commit that is still on its way", self._polled(abandoned, number), fault=True
            )

    def _commit_offset(self, state: State, number: int, consumer: Consumer, work: Work) -> Iterator[Step[State]]:
        if self.has("generation") and consumer.generation != state.generation:
            yield Step(f"consumer {number} may not commit: its generation is old", self._polled(state, number))
            return
        committed = landed(state, (), work.batch.stream, work.offset + 1)
        done = work._replace(phase="committed") if work.lent is not None else None
        yield Step(f"consumer {number} commits the offset", advanced(committed, number, work, done))

    def _release(self, state: State, number: int, work: Work) -> Iterator[Step[State]]:
        lent = work.lent
        assert lent is not None  # noqa: S101 - the phase says so
        kept = work._replace(phase="signed") if work.phase == "early" else None
        for at, manager in enumerate(state.managers):
            if manager is None:
                continue
            if lent not in manager.view.assigned:
                yield Step(f"manager {at} knows no assignment of {said(lent.batch)}", worked(state, number, kept))
                continue
            after = self._freed(state, at, manager, lent)
            if after is None:
                yield Step(f"manager {at} is refused by etcd", refused(state, at, manager))
            else:
                yield Step(f"manager {at} releases key {lent.key}", worked(after, number, kept))

    def _freed(self, state: State, at: int, manager: Manager, lent: Lent) -> State | None:
        """After a release; None when etcd refuses it."""
        view = manager.view
        if self.has("fence") and (state.etcd.fence, state.etcd.leader) != (manager.fence, manager.identity):
            return None
        if self.has("key compare") and state.etcd.keys[lent.key] != view.keys[lent.key]:
            return None
        freed = view.keys[lent.key]._replace(holder=None)
        wanted = view._replace(keys=put(view.keys, lent.key, freed), assigned=view.assigned - {lent})
        return self._written(state, at, manager, wanted)

    def _sweep(self, state: State) -> Iterator[Step[State]]:
        if state.sweeping is not None:
            yield from self._swept(state, state.sweeping)
            return
        if state.late is not None:
            return  # a transaction is open; the sweeper waits for its end
        for at, manager in enumerate(state.managers):
            for lent in manager.view.assigned if manager is not None else ():
                assert manager is not None  # noqa: S101 - it has a view
                if lent in state.output:
                    after = self._freed(state, at, manager, lent)
                    label = f"the sweeper finds {said(lent.batch)} published and manager {at} releases key {lent.key}"
                    yield Step(label, after if after is not None else refused(state, at, manager))
                elif self._passed(state, lent.batch) or not self.has("sweeper leaves what is not committed"):
                    yield Step(f"the sweeper finds {said(lent.batch)} lost", state._replace(sweeping=lent))

    def _swept(self, state: State, lent: Lent) -> Iterator[Step[State]]:
        idle = state._replace(sweeping=None)
        if lent in state.output:
            yield Step(f"the sweeper looks again: {said(lent.batch)} is there", idle)
        elif not self._sworn(state, lent):
            yield Step(f"the ledger refuses the sweeper {said(lent.batch)}", idle._replace(stopped=True))
        else:
            again = idle._replace(
                ledger=state.ledger | {lent},
                signatures=state.signatures | {lent},
                output=added(state.output, lent),
            )
            yield Step(f"the sweeper signs {said(lent.batch)} again and publishes it", again)

    def _passed(self, state: State, batch: Batch) -> bool:
        """Whether the consumers have committed the batch, or its topic is another by now."""
        where = next((at for at, other in enumerate(state.log[batch.stream]) if other == batch), None)
        return where is None or state.committed[batch.stream] > where

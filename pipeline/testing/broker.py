"""A Kafka broker in memory: topics, transactions and consumer groups, on a clock that a test owns.

Every request of every client goes through `Broker.call`, and so through a network that can lose or delay it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from pipeline.ports import Clock, Message, Outgoing, Place
from pipeline.testing.group import Committed, Generation, Group, TopicPartition
from pipeline.testing.network import Network, Request, Unanswered
from pipeline.testing.partition import PartitionLog
from pipeline.testing.refusal import Code, Refused
from pipeline.testing.transaction import Coordinated

T = TypeVar("T")

MESSAGE_MAX_BYTES: Final = 4 * 1024 * 1024
"""As KafkaSettings.message_max_bytes."""

EXPIRE_EVERY_S: Final = 0.1
REQUEST_TIMEOUT_S: Final = 15.0
"""After this long a client stops waiting for an answer."""


@dataclass(slots=True, eq=False)
class Broker:
    """One broker, the coordinator of everything."""

    clock: Clock
    network: Network
    down: bool = False
    markers_held: bool = False  #: decided transactions stay open on their partitions until `write_markers`
    topics: dict[str, list[PartitionLog]] = field(default_factory=dict)
    bounds: dict[str, int] = field(default_factory=dict)  #: topic → max.message.bytes
    producers: dict[str, Coordinated] = field(default_factory=dict)  #: by transactional.id
    groups: dict[str, Group] = field(default_factory=dict)
    existing: frozenset[TopicPartition] = frozenset()
    _looked_s: float = 0.0  #: when `expire` looked last

    async def call(self, request: Request, effect: Callable[[], T], within_s: float = REQUEST_TIMEOUT_S) -> T:
        """Send a request and wait for its answer. Raises Refused, with NO_ANSWER also when it takes too long."""
        try:
            return await self.network.call(request, lambda: self._serve(effect), within_s)
        except Unanswered as error:
            raise Refused(Code.NO_ANSWER, str(error)) from error

    def _serve(self, effect: Callable[[], T]) -> T:
        if self.down:
            raise Refused(Code.NO_ANSWER, "connection refused")
        self.expire()
        return effect()

    # ── topics ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def create_topic(self, name: str, partitions: int, message_max_bytes: int = MESSAGE_MAX_BYTES) -> None:
        """An empty one; one of this name must not be there."""
        if name in self.topics:
            raise ValueError(f"there is a topic {name}")
        self.topics[name] = [PartitionLog(name, number) for number in range(partitions)]
        self.bounds[name] = message_max_bytes
        self.existing |= {(name, number) for number in range(partitions)}

    def delete_topic(self, name: str) -> None:
        """With its records, and every group's offsets on it."""
        self.existing -= {(name, log.number) for log in self.topics.pop(name)}
        for producer in self.producers.values():
            producer.forget(name)
        for group in self.groups.values():
            group.forget(name)

    def partition(self, topic: str, number: int) -> PartitionLog:
        """Raises Refused: UNKNOWN_TOPIC."""
        logs = self.topics.get(topic, [])
        if not 0 <= number < len(logs):
            raise Refused(Code.UNKNOWN_TOPIC, f"{topic}[{number}]")
        return logs[number]

    def partitions(self, topic: str) -> list[PartitionLog]:
        """All of a topic. Raises Refused: UNKNOWN_TOPIC."""
        if topic not in self.topics:
            raise Refused(Code.UNKNOWN_TOPIC, topic)
        return self.topics[topic]

    def append(self, topic: str, number: int, key: bytes, value: bytes) -> Place:
        """One record by somebody else, in a committed transaction of its own."""
        log = self.partition(topic, number)
        stranger = self._coordinated("somebody else")
        place = log.append(key, value, stranger.id)
        log.mark(stranger.id, commit=True)
        return place

    def fetch(self, topic: str, number: int, position: int, most: int) -> tuple[list[Message], int]:
        """Committed records, and where to go on. Raises Refused: UNKNOWN_TOPIC, OUT_OF_RANGE."""
        log = self.partition(topic, number)
        if not log.start <= position <= log.end:
            raise Refused(Code.OUT_OF_RANGE, f"{position} of {topic}[{number}], which has {log.start} to {log.end}")
        return log.read(position, most)

    # ── transactions ─────────────────────────────────────────────────────────────────────────────────────────────────

    def init_producer(self, transactional_id: str, timeout_s: float) -> int:
        """A new epoch, under which no earlier producer can do anything; what they left is finished or aborted."""
        producer = self._coordinated(transactional_id)
        producer.timeout_s = timeout_s
        producer.epoch += 1
        producer.decide(commit=False)
        self._finish(producer)
        producer.decided = None
        return producer.epoch

    def produce(self, transactional_id: str, epoch: int, topic: str, number: int, records: Sequence[Outgoing]) -> None:
        """Records of one partition, all or none. Raises Refused: FENCED, UNKNOWN_TOPIC, TOO_LARGE."""
        producer = self._current(transactional_id, epoch)
        log = self.partition(topic, number)
        for record in records:
            if len(record.key) + len(record.value) > self.bounds[topic]:
                raise Refused(Code.TOO_LARGE, f"{len(record.value)} bytes for {topic}, {self.bounds[topic]} fit")
        self._begun(producer).partitions.add((topic, number))
        for record in records:
            log.append(record.key, record.value, producer.id, record.traceparent)

    def commit_in_transaction(
        self, transactional_id: str, epoch: int, who: Generation, offsets: Mapping[TopicPartition, Committed]
    ) -> None:
        """Offsets that count when the transaction does. Raises Refused: FENCED, UNKNOWN_MEMBER, STALE_MEMBER."""
        producer = self._current(transactional_id, epoch)
        group = self.group(who.group)
        group.check(who)
        self._begun(producer).offsets.setdefault(who.group, {}).update(offsets)
        group.prepare(producer.id, offsets)

    def end_transaction(self, transactional_id: str, epoch: int, *, commit: bool) -> None:
        """Decide; the markers follow. Raises Refused: FENCED, INVALID_STATE.

        The same answer again is no error, and the broker cannot tell a late request for the last transaction from one
        for the next, unless the epoch differs (KAFKA-17754).
        """
        producer = self._current(transactional_id, epoch)
        producer.decide(commit=commit)
        if producer.decided is not commit:
            raise Refused(Code.INVALID_STATE, f"the last transaction of {transactional_id} ended otherwise")
        if not self.markers_held:
            self._finish(producer)

    def write_markers(self, most: int | None = None) -> None:
        """The markers of decided transactions, in order; `most` of them, or all."""
        for producer in self.producers.values():
            written = producer.write(self.partition, self.group, most)
            most = None if most is None else most - written

    def expire(self) -> None:
        """What the broker does by itself, ten times a second: abort transactions and drop members over their time."""
        now_s = self.clock.monotonic_s()
        if now_s - self._looked_s < EXPIRE_EVERY_S:
            return
        self._looked_s = now_s
        for producer in self.producers.values():
            if producer.overdue(now_s):
                producer.epoch += 1
                producer.decide(commit=False)
                self._finish(producer)
        for group in self.groups.values():
            if group.silent(now_s):
                group.expire(self.existing, now_s)

    def _coordinated(self, transactional_id: str) -> Coordinated:
        return self.producers.setdefault(transactional_id, Coordinated(len(self.producers)))

    def _current(self, transactional_id: str, epoch: int) -> Coordinated:
        producer = self.producers.get(transactional_id)
        if producer is None or producer.epoch != epoch:
            raise Refused(Code.FENCED, f"{transactional_id} comes with epoch {epoch}")
        return producer

    def _begun(self, producer: Coordinated) -> Coordinated:
        self._finish(producer)  # a client waits for the markers of its last transaction
        return producer.begin(self.clock.monotonic_s())

    def _finish(self, producer: Coordinated) -> None:
        producer.write(self.partition, self.group)

    # ── groups ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def group(self, name: str) -> Group:
        """A group, made when first named."""
        return self.groups.setdefault(name, Group(name))

    def heartbeat(
        self, who: Generation, topics: Sequence[str], owned: frozenset[TopicPartition]
    ) -> tuple[int, frozenset[TopicPartition]]:
        """See Group.heartbeat."""
        now_s = self.clock.monotonic_s()
        return self.group(who.group).heartbeat(who, topics, owned, self.existing, now_s)

    def leave(self, who: Generation) -> None:
        """A member goes, or is found dead."""
        self.group(who.group).leave(who.member, self.existing)

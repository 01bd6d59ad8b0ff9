"""One consumer group in memory, by the KIP-848 protocol: member epochs, revocation first, committed offsets.

A partition goes to its new member only after the old one has said that it gave it up, and a member's epoch moves only
then too. So a commit under an older epoch is one of a member that may have lost a partition since: it is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from pipeline.testing.refusal import Code, Refused

TopicPartition: TypeAlias = tuple[str, int]

SILENCE_MAX_S: Final = 60.0
"""A member that was not heard of for so long is out. Twins have no heartbeat of their own beside their polls, so this
is the real max.poll.interval.ms; whoever kills a member may `expel` it after the real session time-out."""


@dataclass(frozen=True, slots=True)
class Committed:
    """A committed offset with its metadata."""

    offset: int
    metadata: str = ""


@dataclass(frozen=True, slots=True, order=True)
class Generation:
    """Group metadata of a member, as it travels with a transactional offset commit."""

    group: str
    member: str = ""
    epoch: int = -1  #: with "" as member: of a client that is in no group


@dataclass(slots=True)
class Member:
    """A member as the coordinator sees it."""

    topics: frozenset[str]
    epoch: int = 0
    target: frozenset[TopicPartition] = frozenset()
    owned: frozenset[TopicPartition] = frozenset()  #: given to it, and not yet given up by it
    heard_s: float = 0.0


@dataclass(slots=True)
class Group:
    """The coordinator's side of a group."""

    name: str
    epoch: int = 0
    members: dict[str, Member] = field(default_factory=dict)
    offsets: dict[TopicPartition, Committed] = field(default_factory=dict)
    pending: dict[TopicPartition, set[int]] = field(default_factory=dict)  #: producers whose open transaction has one
    existing: frozenset[TopicPartition] = frozenset()  #: what the present target was made of

    # ── members ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def heartbeat(
        self,
        who: Generation,
        topics: Iterable[str],
        owned: frozenset[TopicPartition],
        partitions: frozenset[TopicPartition],
        now_s: float,
    ) -> tuple[int, frozenset[TopicPartition]]:
        """A member's epoch and the partitions that it may have now. Epoch 0 joins.

        Args:
            who: the member, with the epoch that it knows.
            topics: that it subscribes to.
            owned: what it has; what it was told to give up and has given up is missing here.
            partitions: all that exist.
            now_s: the time, for `expire`.

        Raises Refused: UNKNOWN_MEMBER, STALE_MEMBER: it must join again, with nothing.
        """
        if who.epoch == 0:
            self.members[who.member] = Member(frozenset(topics))
            self._rebalance(partitions)
        elif who.member not in self.members:
            raise Refused(Code.UNKNOWN_MEMBER, f"{who.member} is not in {self.name}")
        elif self.members[who.member].epoch != who.epoch:
            raise Refused(Code.STALE_MEMBER, f"{who.member} of {self.name} comes with epoch {who.epoch}")
        elif self.existing != partitions:
            self._rebalance(partitions)
        member = self.members[who.member]
        member.heard_s = now_s
        member.owned &= owned
        if not member.owned <= member.target:
            return member.epoch, member.owned & member.target
        member.epoch = self.epoch
        others = frozenset().union(*(m.owned for m in self.members.values() if m is not member))
        member.owned = member.target - others
        return member.epoch, member.owned

    def leave(self, name: str, partitions: frozenset[TopicPartition]) -> None:
        """A member is gone, by its own will or not; a second time is no error."""
        if self.members.pop(name, None) is not None:
            self._rebalance(partitions)

    def expire(self, partitions: frozenset[TopicPartition], now_s: float) -> None:
        """Members that were not heard of for SILENCE_MAX_S are gone."""
        for name in self.silent(now_s):
            self.leave(name, partitions)

    def silent(self, now_s: float) -> list[str]:
        """Members that were not heard of for SILENCE_MAX_S."""
        return [name for name, member in self.members.items() if now_s - member.heard_s > SILENCE_MAX_S]

    def _rebalance(self, partitions: frozenset[TopicPartition]) -> None:
        """A new epoch and a new target: even, and everybody keeps what they have as far as that allows."""
        self.epoch += 1
        self.existing = partitions
        names, wanted = sorted(self.members), sorted(self._subscribed())
        targets: dict[str, set[TopicPartition]] = {name: set() for name in names}
        quota = -(-len(wanted) // len(names)) if names else 0
        floor = len(wanted) // len(names) if names else 0
        full = len(wanted) - floor * len(names)  # so many members have one more than `floor`
        for name in sorted(names, key=lambda name: (-len(self.members[name].owned), name)):
            most = quota if full > 0 else floor
            kept = [p for p in wanted if p in self.members[name].owned][:most]
            full -= len(kept) > floor
            targets[name] |= set(kept)
        taken = set().union(*targets.values())
        for partition in wanted:
            if partition not in taken:
                willing = [name for name in names if partition[0] in self.members[name].topics]
                targets[min(willing, key=lambda name: (len(targets[name]), name))].add(partition)
        for name, target in targets.items():
            self.members[name].target = frozenset(target)

    def _subscribed(self) -> frozenset[TopicPartition]:
        topics: frozenset[str] = frozenset().union(*(member.topics for member in self.members.values()))
        return frozenset(p for p in self.existing if p[0] in topics)

    # ── offsets ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def check(self, who: Generation) -> None:
        """Whether it may commit now. Raises Refused: UNKNOWN_MEMBER, STALE_MEMBER."""
        if who.epoch < 0 and not self.members:
            return
        member = self.members.get(who.member)
        if member is None:
            raise Refused(Code.UNKNOWN_MEMBER, f"{who.member or 'an outsider'} is not in {self.name}")
        if member.epoch != who.epoch:
            raise Refused(Code.STALE_MEMBER, f"{who.member} commits under epoch {who.epoch}, it has {member.epoch}")

    def commit(self, who: Generation, offsets: Mapping[TopicPartition, Committed]) -> None:
        """Outside of any transaction. Raises Refused."""
        self.check(who)
        self.offsets.update(offsets)

    def prepare(self, producer: int, offsets: Iterable[TopicPartition]) -> None:
        """A transaction that will change these is open: until its end nobody may rely on the present ones."""
        for partition in offsets:
            self.pending.setdefault(partition, set()).add(producer)

    def settle(self, producer: int, offsets: Mapping[TopicPartition, Committed], *, commit: bool) -> None:
        """That transaction has ended."""
        for partition in offsets:
            self.pending.get(partition, set()).discard(producer)
        if commit:
            self.offsets.update(offsets)

    def stable(self, wanted: Iterable[TopicPartition]) -> dict[TopicPartition, Committed]:
        """Committed offsets that no open transaction is changing. Raises Refused: UNSTABLE."""
        partitions = list(wanted)
        for partition in partitions:
            if self.pending.get(partition):
                raise Refused(
                    Code.UNSTABLE, f"an open transaction changes the offset of {partition[0]}[{partition[1]}]"
                )
        return {p: self.offsets[p] for p in partitions if p in self.offsets}

    def forget(self, topic: str) -> None:
        """The topic was deleted, and its offsets with it."""
        self.offsets = {p: at for p, at in self.offsets.items() if p[0] != topic}
        self.pending = {p: producers for p, producers in self.pending.items() if p[0] != topic}

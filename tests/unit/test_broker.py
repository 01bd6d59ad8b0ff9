"""The in-memory broker where no client of ours would show it: late requests, markers, time-outs, and who owns what."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from pipeline.errors import AmbiguousRound, BusUnavailable, ProducerFenced, RoundAborted
from pipeline.ports import Outgoing, Progress
from pipeline.testing.batch_subscription import TwinBatchSubscription
from pipeline.testing.broker import Broker
from pipeline.testing.clock import TwinClock, settle
from pipeline.testing.group import SILENCE_MAX_S, Committed, Generation, Group
from pipeline.testing.network import HookedNetwork, Moment, Request, Unanswered
from pipeline.testing.refusal import Code, Refused
from pipeline.testing.round_writer import TwinRoundWriter
from pipeline.testing.transactions import COMMIT_TIMEOUT_S, SOCKET_TIMEOUT_S, TRANSACTION_TIMEOUT_S

TOPIC, GROUP = "topic", "group"
A = Outgoing(TOPIC, 0, b"", b"a")
B = Outgoing(TOPIC, 0, b"", b"b")


class Hook:
    """Delays or loses the next request of a name."""

    def __init__(self, clock: TwinClock) -> None:
        self._clock = clock
        self.plan: dict[tuple[str, Moment], float] = {}  #: seconds; 0 = lost

    async def __call__(self, request: Request, moment: Moment) -> None:
        delay_s = self.plan.pop((request.name, moment), None)
        if delay_s == 0:
            raise Unanswered(request.name)
        if delay_s is not None:
            await self._clock.sleep(delay_s)


@pytest.fixture
def clock() -> TwinClock:
    return TwinClock()


@pytest.fixture
def hook(clock: TwinClock) -> Hook:
    return Hook(clock)


@pytest.fixture
async def broker(clock: TwinClock, hook: Hook) -> AsyncIterator[Broker]:
    network = HookedNetwork(clock, hook)
    made = Broker(clock, network)
    made.create_topic(TOPIC, 3)
    yield made
    await network.close()


@pytest.fixture
async def writer(clock: TwinClock, broker: Broker) -> TwinRoundWriter:
    made = TwinRoundWriter(broker, "tid")
    await clock.until(made.open())
    return made


def values(broker: Broker, number: int = 0) -> list[bytes]:
    return [message.value for message in broker.partition(TOPIC, number).read(0, 100)[0]]


@pytest.mark.parametrize(("delay_s", "certain"), [(SOCKET_TIMEOUT_S - 1, True), (SOCKET_TIMEOUT_S + 1, False)])
@pytest.mark.parametrize("moment", Moment)
async def test_a_slow_commit_happened_and_is_not_certain(
    clock: TwinClock,
    broker: Broker,
    hook: Hook,
    writer: TwinRoundWriter,
    delay_s: float,
    moment: Moment,
    *,
    certain: bool,
) -> None:
    hook.plan = {("EndTxn", moment): delay_s}
    assert await clock.until(writer.commit([A], {}, None)) is certain
    assert values(broker) == [b"a"]
    if certain:
        assert await clock.until(writer.commit([B], {}, None))
    else:
        with pytest.raises(RoundAborted, match="not opened"):
            await clock.until(writer.commit([B], {}, None))


@pytest.mark.parametrize("moment", Moment)
async def test_a_commit_without_an_answer_may_have_happened(
    clock: TwinClock, broker: Broker, hook: Hook, writer: TwinRoundWriter, moment: Moment
) -> None:
    hook.plan = {("EndTxn", moment): 0}
    with pytest.raises(AmbiguousRound):
        await clock.until(writer.commit([A], {}, None))
    await clock.until(writer.open())
    assert values(broker) == ([b"a"] if moment is Moment.AFTER else [])
    assert await clock.until(writer.commit([B], {}, None))
    assert values(broker)[-1] == b"b"


async def test_a_late_commit_is_refused_once_the_epoch_is_another(
    clock: TwinClock, broker: Broker, hook: Hook, writer: TwinRoundWriter
) -> None:
    hook.plan = {("EndTxn", Moment.BEFORE): COMMIT_TIMEOUT_S + 1}
    with pytest.raises(AmbiguousRound):
        await clock.until(writer.commit([A], {}, None))
    await clock.until(writer.open())
    await clock.advance(2)
    assert isinstance(broker.network, HookedNetwork)
    assert broker.network.under_way == set()
    assert values(broker) == []


async def test_a_late_commit_under_the_same_epoch_ends_the_next_transaction(broker: Broker) -> None:
    """KAFKA-17754, and the reason why a producer is never used again after a failure."""
    epoch = broker.init_producer("tid", TRANSACTION_TIMEOUT_S)
    broker.produce("tid", epoch, TOPIC, 0, [A])
    broker.end_transaction("tid", epoch, commit=True)
    broker.produce("tid", epoch, TOPIC, 0, [B])
    broker.end_transaction("tid", epoch, commit=True)  # the first one once more, on its way for long
    assert values(broker) == [b"a", b"b"]


async def test_an_end_is_repeated_and_not_turned_round(broker: Broker) -> None:
    epoch = broker.init_producer("tid", TRANSACTION_TIMEOUT_S)
    with pytest.raises(Refused) as nothing:
        broker.end_transaction("tid", epoch, commit=True)
    assert nothing.value.code is Code.INVALID_STATE
    broker.produce("tid", epoch, TOPIC, 0, [A])
    broker.end_transaction("tid", epoch, commit=False)
    broker.end_transaction("tid", epoch, commit=False)
    with pytest.raises(Refused) as turned:
        broker.end_transaction("tid", epoch, commit=True)
    assert turned.value.code is Code.INVALID_STATE
    assert values(broker) == []


async def test_a_transaction_that_stays_open_is_aborted_and_its_producer_fenced(
    clock: TwinClock, broker: Broker, hook: Hook, writer: TwinRoundWriter
) -> None:
    hook.plan = {("EndTxn", Moment.BEFORE): COMMIT_TIMEOUT_S - 1, ("Produce", Moment.AFTER): TRANSACTION_TIMEOUT_S - 1}
    with pytest.raises(ProducerFenced):
        await clock.until(writer.commit([A], {}, None))
    assert values(broker) == []
    assert broker.partition(TOPIC, 0).open == {}


async def test_decided_is_not_yet_seen(clock: TwinClock, broker: Broker, writer: TwinRoundWriter) -> None:
    broker.markers_held = True
    offsets = {(TOPIC, 2): Progress(5, 1)}
    other = Outgoing(TOPIC, 1, b"", b"other")
    assert await clock.until(writer.commit([A, other], offsets, Generation(GROUP)))
    assert (values(broker), values(broker, 1)) == ([], [])
    with pytest.raises(Refused) as unstable:
        broker.group(GROUP).stable([(TOPIC, 2)])
    assert unstable.value.code is Code.UNSTABLE
    broker.write_markers(1)
    assert (values(broker), values(broker, 1)) == ([b"a"], [])
    broker.write_markers()
    assert (values(broker), values(broker, 1)) == ([b"a"], [b"other"])
    assert broker.group(GROUP).stable([(TOPIC, 2)]) == {(TOPIC, 2): Committed(5, "1")}


async def test_the_next_transaction_waits_for_the_markers_of_the_last(
    clock: TwinClock, broker: Broker, writer: TwinRoundWriter
) -> None:
    broker.markers_held = True
    await clock.until(writer.commit([A], {}, None))
    await clock.until(writer.commit([B], {}, None))
    assert values(broker) == [b"a"]
    await clock.until(writer.open())
    assert values(broker) == [b"a", b"b"]


async def test_a_cancelled_client_does_not_take_its_request_back(
    clock: TwinClock, broker: Broker, hook: Hook, writer: TwinRoundWriter
) -> None:
    hook.plan = {("EndTxn", Moment.BEFORE): 1.0}
    task = asyncio.create_task(writer.commit([A], {}, None))
    await clock.advance(0.5)
    task.cancel()
    await settle()
    assert task.cancelled()
    assert values(broker) == []
    await clock.advance(1)
    assert values(broker) == [b"a"]


async def test_a_broker_that_is_down_answers_nobody(clock: TwinClock, broker: Broker, writer: TwinRoundWriter) -> None:
    broker.down = True
    with pytest.raises(RoundAborted):
        await clock.until(writer.commit([A], {}, None))
    with pytest.raises(BusUnavailable):
        await clock.until(writer.open())
    broker.down = False
    await clock.until(writer.open())
    assert await clock.until(writer.commit([A], {}, None))


async def test_a_topic_that_is_made_anew_remembers_nothing(broker: Broker) -> None:
    epoch = broker.init_producer("tid", TRANSACTION_TIMEOUT_S)
    broker.produce("tid", epoch, TOPIC, 0, [A])
    broker.group(GROUP).commit(Generation(GROUP), {(TOPIC, 0): Committed(3), ("other", 0): Committed(4)})
    broker.delete_topic(TOPIC)
    broker.create_topic(TOPIC, 1)
    broker.end_transaction("tid", epoch, commit=True)
    assert (values(broker), broker.partition(TOPIC, 0).end) == ([], 0)
    assert broker.group(GROUP).offsets == {("other", 0): Committed(4)}


# ── groups ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_silent_member_loses_everything(clock: TwinClock, broker: Broker) -> None:
    one, other = (TwinBatchSubscription(broker, GROUP, name, [TOPIC]) for name in ("one", "other"))
    broker.group(GROUP).commit(Generation(GROUP), {(TOPIC, n): Committed(0) for n in range(3)})
    await clock.until(one.poll(1, 0.1))
    assert len(one.assigned()) == 3
    await clock.advance(SILENCE_MAX_S + 1)
    await clock.until(other.poll(1, 0.1))
    assert len(other.assigned()) == 3
    await clock.until(one.poll(1, 0.1))
    assert one.assigned() == frozenset()


class Crowd:
    """Members that join, leave, die, and hear of changes at any moment."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)  # noqa: S311 - not for secrets
        self.group = Group(GROUP)
        self.existing = frozenset((TOPIC, n) for n in range(7))
        self.members: dict[str, tuple[int, frozenset[tuple[str, int]]]] = {}

    def beat(self, name: str) -> None:
        epoch, owned = self.members[name]
        # What it is told to give up, it has given up by the next time; what it gets, it may use at once.
        self.members[name] = self.group.heartbeat(
            Generation(GROUP, name, epoch), [TOPIC], owned, self.existing, now_s=0.0
        )
        owners = [partition for _, theirs in self.members.values() for partition in theirs]
        assert len(owners) == len(set(owners))

    def disturb(self, step: int) -> None:
        choice = self.rng.random()
        if choice < 0.2 and len(self.members) < 5:
            self.members[f"m{step}"] = 0, frozenset()
        elif self.members:
            name = self.rng.choice(sorted(self.members))
            if choice < 0.3:
                del self.members[name]
                self.group.leave(name, self.existing)
            else:
                self.beat(name)


@pytest.mark.parametrize("seed", range(40))
def test_no_partition_has_two_owners_and_all_find_one(seed: int) -> None:
    crowd = Crowd(seed)
    for step in range(60):
        crowd.disturb(step)
    crowd.members.setdefault("last", (0, frozenset()))
    for name in sorted(crowd.members) * 5:
        crowd.beat(name)
    sizes = [len(owned) for _, owned in crowd.members.values()]
    assert sum(sizes) == len(crowd.existing)
    assert max(sizes) - min(sizes) <= 1
    for name, (epoch, _) in crowd.members.items():
        crowd.group.check(Generation(GROUP, name, epoch))
        with pytest.raises(Refused):
            crowd.group.check(Generation(GROUP, name, epoch - 1))

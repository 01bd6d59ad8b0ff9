"""What the stages tell of themselves is what they did; twins of everything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.util import metrics as ray_metrics

from actors import metrics
from actors.crew import Crew
from actors.host import StageState, StageStatus
from actors.member import KINDS, Member, members, nothing
from pipeline import telemetry as t
from pipeline.settings import Settings
from pipeline.stages import figures
from pipeline.stages.consumer import ConsumerCount
from pipeline.stages.lag import Lag
from pipeline.stages.reader import ReaderCount
from pipeline.stages.signer import SignerCount
from pipeline.stages.sweeper import SweepCount
from pipeline.stages.verifier import VerifierCount
from pipeline.testing.network import Moment
from pipeline.testing.telemetry import TwinTelemetry
from tests.unit.flow_world import A, B, Fault, Flow

ROWS = 100


@pytest.fixture
async def flow() -> AsyncIterator[Flow]:
    made = Flow()
    await made.start()
    made.stock(ROWS)
    yield made
    await made.end()


async def signed(flow: Flow) -> ConsumerCount:
    running = flow.consume()
    await flow.until(lambda: len(flow.signed_ids()) == ROWS)
    return running.consumer.count


async def test_a_run_is_told_as_it_was(flow: Flow) -> None:
    readers = [flow.reader(A), flow.reader(B)]
    flow.tasks += [asyncio.create_task(reader.run(asyncio.Event())) for reader in readers]
    count, twin = await signed(flow), flow.telemetry
    growth = t.Growth(twin)
    for _ in range(3):  # told again, it is no more
        figures.of_consumer(growth, count)
        figures.of_readers(growth, "payouts", [reader.count for reader in readers])
        figures.of_signer(growth, flow.pool._signer.count)
    assert twin.value(t.READ, source="payouts") == twin.value(t.SIGNED) == ROWS
    batches = {stage: twin.value(t.BATCHES, stage=stage) for stage in ("read", "sign", "commit")}
    assert set(batches.values()) == {count.batches}
    assert twin.value(t.ROUNDS) == count.rounds
    assert twin.value(t.REJECTED) == twin.value(t.ROUNDS_ABORTED) == twin.value(t.FILLERS) == 0
    assert len(twin.observed(t.BATCH_SECONDS, stage="sign")) == count.batches
    assert len(twin.observed(t.BATCH_SECONDS, stage="commit")) == count.rounds
    assert 0 < len(twin.observed(t.BATCH_SECONDS, stage="assign")) <= count.batches
    assert 0 < len(twin.observed(t.BATCH_SECONDS, stage="read")) <= count.batches


async def test_an_aborted_round_is_told(flow: Flow) -> None:
    flow.read()
    flow.faults.planned = [Fault("EndTxn", Moment.BEFORE, client="consumer")]
    count = await signed(flow)
    figures.of_consumer(t.Growth(flow.telemetry), count)
    assert flow.telemetry.value(t.ROUNDS_ABORTED) == 1


async def test_what_the_key_manager_holds_is_told(flow: Flow) -> None:
    flow.read()
    await signed(flow)
    figures.of_key_manager(flow.telemetry, flow.desk.status())
    assert {state: flow.telemetry.value(t.KEYS, state=state) for state in ("free", "locked")} == {
        "free": 2,
        "locked": 0,
    }
    assert flow.telemetry.value(t.LOCK_OLDEST) == flow.telemetry.value(t.QUEUE) == 0
    assert flow.telemetry.value(t.ASSIGNMENTS) == 0


def test_a_quiet_stage_tells_zeros() -> None:
    twin = TwinTelemetry()
    growth = t.Growth(twin)
    figures.of_readers(growth, "payouts", [ReaderCount()])
    figures.of_consumer(growth, ConsumerCount())
    figures.of_signer(growth, SignerCount())
    figures.of_verifier(growth, VerifierCount())
    figures.of_sweeper(growth, SweepCount())
    told = {name for name, _ in twin._numbers}
    counters = {one.name for one in t.INSTRUMENTS if one.kind is t.Kind.COUNTER}
    assert counters - told == {t.RESTARTS.name}
    assert set(twin._numbers.values()) == {0}


def test_a_count_that_begins_anew_takes_nothing_back() -> None:
    twin = TwinTelemetry()
    growth = t.Growth(twin)
    for total in (5, 2, 4):
        growth.tell(t.SIGNED, total)
    assert twin.value(t.SIGNED) == 7


# ── lag ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_lag_is_told_apart_by_source_and_halt() -> None:
    lag, twin = Lag(), TwinTelemetry()
    seqs = {"payouts/0": 9, "payouts/1": 4, "load/0": 3}
    lag.take(seqs, {"payouts/0": 2, "payouts/1": 1, "load/0": 3})
    lag.tell(twin, ["payouts", "load"], {"payouts/1": "came with another digest"})
    told = [twin.value(t.LAG, source=s, state=state) for s in ("payouts", "load") for state in ("going", "halted")]
    assert told == [7, 3, 0, 0]
    assert lag.total == 10


def test_kafka_is_not_asked_while_nothing_moves() -> None:
    lag = Lag()
    assert not lag.is_due({})
    assert lag.is_due({"payouts/0": 1})
    lag.take({"payouts/0": 1}, {"payouts/0": 0})
    assert lag.is_due({"payouts/0": 1})  # one waits
    lag.take({"payouts/0": 1}, {"payouts/0": 1})
    assert not lag.is_due({"payouts/0": 1})
    assert lag.is_due({"payouts/0": 2})


# ── restarts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Actor:
    """Says of itself what the test says."""

    def __init__(self) -> None:
        self.said = StageStatus(StageState.IDLE, 1, ray_node="")
        self.status = SimpleNamespace(remote=self._status)

    async def _status(self) -> StageStatus:
        return self.said

    async def start(self) -> None:
        self.said = StageStatus(StageState.RUNNING, self.said.pid, ray_node="")


@pytest.mark.parametrize(("pid", "state"), [(2, StageState.IDLE), (1, StageState.FAILED), (2, StageState.RUNNING)])
async def test_each_restart_counts_once(pid: int, state: StageState) -> None:
    actor = Actor()
    member = Member("consumer-0", actor, actor.start)
    await member.look(0.0)
    await member.look(10.0)
    assert member.restarts == 0
    actor.said = StageStatus(state, pid, ray_node="")
    for now_s in (100.0, 110.0):
        await member.look(now_s)
    assert member.restarts == 1


def test_every_actor_of_a_crew_is_of_a_kind_that_is_counted() -> None:
    actor = SimpleNamespace(start=SimpleNamespace(remote=nothing))
    crew = Crew(actor, {"signer-0": actor}, [actor], [actor], verifier=actor, broadcaster=actor)
    found = [member.stage for member in members(Settings(), crew)]
    assert sorted(found) == sorted(KINDS)


async def test_a_key_manager_that_is_asked_again_was_not_restarted() -> None:
    actor = Actor()
    member = Member("key-manager", actor, nothing)
    for now_s in (0.0, 100.0, 200.0):
        await member.look(now_s)
    assert member.restarts == 0
    assert member.stage in KINDS


# ── Ray ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_instrument_is_made_once_and_takes_a_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[Any] = []
    monkeypatch.setattr(ray_metrics.Metric, "_record", lambda *args: recorded.append(args))
    for _ in range(2):
        metrics.TELEMETRY.add(t.BATCHES, 0, stage="read")
        metrics.TELEMETRY.set(t.QUEUE, 0)
        metrics.TELEMETRY.observe(t.BATCH_SECONDS, 0.1, stage="sign")
    assert [args[1] for args in recorded] == [0.0, 0.0, 0.1] * 2
    assert len({id(args[0]) for args in recorded}) == 3


async def test_it_is_told_at_once_and_at_the_end_whatever_fails(caplog: pytest.LogCaptureFixture) -> None:
    told: list[int] = []

    def tell() -> None:
        told.append(1)
        raise RuntimeError("no such tag")

    async with metrics.publishing(tell):
        await asyncio.sleep(0)
        assert len(told) == 1
    assert len(told) == 2
    assert "no such tag" in caplog.text

"""Budgets: what a source may spend in a period is decided in the transaction that gives a batch its key."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jobs.overview import spending
from pipeline.assignment.budget import Budget, spent_since
from pipeline.assignment.manager import KeyManager
from pipeline.assignment.records import StreamRecord
from pipeline.errors import InputFileError
from pipeline.ethereum.policy import Policy
from pipeline.ethereum.policy_file import read_policy
from pipeline.ports import Assigned, AssignReply, AssignRequest, Waiting
from pipeline.settings import Settings
from pipeline.stages.admission import cost_of
from pipeline.stream import Stream
from pipeline.testing.store import Fault
from tests.ethereum_rows import batch, row, wei
from tests.unit.assignment_records import CHAIN, PATHS, SYSTEM, A, B, request
from tests.unit.manager_world import Node, World

PERIOD_MS = 60_000
OTHER = Stream("refunds", 0)


async def opened(world: World, budget: int, keys: int = 8) -> Node:
    """A key manager whose source `payouts` has a budget."""
    node = world.node()
    settings = Settings(deployment=PATHS.deployment)
    budgets = {A.source: Budget(budget, PERIOD_MS)}
    node.manager = KeyManager(node.store, world.ledger, world.clock, settings, budgets=budgets)
    await world.clock.until(node.manager.start())
    await world.add_keys(node, keys)
    for stream in (A, B, OTHER):
        await world.clock.until(node.manager.open_stream(StreamRecord(stream, CHAIN, SYSTEM)))
    return node


def costing(wei_: int, made: AssignRequest) -> AssignRequest:
    return replace(made, spend=wei_)


async def ask(world: World, node: Node, *requests: AssignRequest) -> list[AssignReply]:
    return await world.assign(node, *requests, deadline_s=0.5)


async def test_streams_of_a_source_share_its_budget(world: World) -> None:
    node = await opened(world, 100)
    [first] = await ask(world, node, costing(60, request(A, 1)))
    assert isinstance(first, Assigned)
    [too_much] = await ask(world, node, costing(41, request(B, 1)))
    assert isinstance(too_much, Waiting)
    assert node.manager.status()["over_budget"] == []  # nobody asks any more
    [fits] = await ask(world, node, costing(40, request(B, 1)))
    assert isinstance(fits, Assigned)
    assert [world.stream(stream).spent_wei for stream in (A, B)] == ["60", "40"]


async def test_one_group_does_not_spend_twice(world: World) -> None:
    node = await opened(world, 100)
    replies = await ask(world, node, costing(70, request(A, 1)), costing(70, request(B, 1)))
    assert sorted(type(reply).__name__ for reply in replies) == ["Assigned", "Waiting"]


async def test_the_next_period_has_its_own(world: World) -> None:
    node = await opened(world, 100)
    [made] = await world.assigned(node, costing(100, request(A, 1)))
    await world.publish(node, made)
    assert isinstance((await ask(world, node, costing(1, request(A, 2))))[0], Waiting)
    await world.clock.advance(PERIOD_MS / 1000)
    [reply] = await ask(world, node, costing(100, request(A, 2)))
    assert isinstance(reply, Assigned)
    assert world.stream(A).spent_wei == "100"


async def test_others_go_on(world: World) -> None:
    node = await opened(world, 100)
    replies = await ask(world, node, costing(101, request(A, 1)), costing(10**30, request(OTHER, 1)))
    assert isinstance(replies[1], Assigned)
    assert isinstance(replies[0], Waiting)
    assert world.stream(OTHER).spent_wei == "0"


async def test_what_has_a_key_already_is_not_charged_again(world: World) -> None:
    node = await opened(world, 100)
    for _ in range(3):
        [reply] = await ask(world, node, costing(100, request(A, 1)))
        assert isinstance(reply, Assigned)
    assert world.stream(A).spent_wei == "100"


async def test_a_lost_answer_is_not_charged_again(world: World) -> None:
    node = await opened(world, 100)
    node.store.faults.append(Fault.LOST_REPLY)
    [reply] = await ask(world, node, costing(60, request(A, 1)))
    assert isinstance(reply, Assigned)
    assert world.stream(A).spent_wei == "60"


async def test_the_next_key_manager_knows_what_was_spent(world: World) -> None:
    first = await opened(world, 100)
    await ask(world, first, costing(90, request(A, 1)))
    await world.clock.until(first.manager.stop())
    second = await opened(world, 100, keys=0)
    assert isinstance((await ask(world, second, costing(11, request(B, 1))))[0], Waiting)
    assert isinstance((await ask(world, second, costing(10, request(B, 1))))[0], Assigned)


async def test_a_batch_without_a_signable_row_costs_nothing(world: World) -> None:
    node = await opened(world, 0)
    [reply] = await ask(world, node, replace(request(A, 1), count=0))
    assert isinstance(reply, Assigned)


async def test_who_waits_is_named(world: World) -> None:
    node = await opened(world, 10)
    [reply] = await ask(world, node, costing(11, request(A, 1)))
    assert isinstance(reply, Waiting)
    assert node.manager._over_budget == {A.source}


def test_a_clock_that_goes_back_a_little_opens_no_new_period() -> None:
    budget = Budget(100, PERIOD_MS)
    now_ms = 10 * PERIOD_MS + 5
    charged = budget.charged(StreamRecord(A, CHAIN, SYSTEM), 70, now_ms)
    assert budget.spent([charged], now_ms) == 70
    assert budget.spent([charged], now_ms - 6) == 70
    assert budget.spent([charged], now_ms + PERIOD_MS) == 0
    assert spent_since(charged, charged.spending_since_ms) == 70


def test_amounts_are_exact() -> None:
    largest = 2**256 - 1
    rows = [
        row(value=wei(largest), gas_limit=2**63 - 1, max_fee_per_gas=2**64 - 1),
        row(tx_id=2, value=wei(largest), gas_limit=21_000, max_fee_per_gas=7),
        row(tx_id=3, value=wei(5), gas_limit=21_000, max_fee_per_gas=7),
    ]
    made = batch(rows)
    expected = 2 * largest + (2**63 - 1) * (2**64 - 1) + 21_000 * 7
    assert cost_of(made, np.array([True, True, False])) == expected
    assert cost_of(made, np.zeros(3, np.bool_)) == 0


@pytest.mark.parametrize("text", ["budget_wei = 5", "budget_period_s = 60", "budget_wei = 5\nbudget_period_s = 9"])
def test_a_budget_needs_a_period(text: str) -> None:
    with pytest.raises(InputFileError, match="budget"):
        read_policy("file", text, 1)


def test_a_budget_is_read() -> None:
    found = read_policy("file", 'budget_wei = "1000000000000000000000"\nbudget_period_s = 86_400', 2)
    assert found == Policy(2, budget=10**21, period_s=86_400)


def test_status_says_what_was_spent() -> None:
    budget = Budget(100, PERIOD_MS)
    now_ms = 10 * PERIOD_MS + 5
    records = [budget.charged(StreamRecord(stream, CHAIN, SYSTEM), 30, now_ms) for stream in (A, B, OTHER)]
    assert spending({}, records, now_ms) == {}
    assert spending({A.source: budget}, records, now_ms) == {
        "budgets": {A.source: {"spent_wei": "60", "of_wei": "100", "until": "1970-01-01T00:11:00.000+00:00"}}
    }

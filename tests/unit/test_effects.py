"""The names of effects: cheap, seen by a watcher only, and the same in the adapters as in their twins."""

from __future__ import annotations

import ast
import asyncio
import threading
import timeit
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import pytest

from pipeline import adapters, effects, testing
from pipeline.adapters.kafka import ClientThread
from pipeline.effects import Effect, Moment, effect

ONLY_REAL = {
    # Preparation and repair: the simulation begins with its topics and first offsets made.
    "kafka CreateTopics",
    "kafka IncrementalAlterConfigs",
    "kafka OffsetCommit",
    "postgres check",
    # The twin of etcd has no users.
    "etcd Authenticate",
    # Reads for operators and for `recover`, which the twins' users do not make.
    "postgres decided",
    "postgres find",
    "postgres first_nonces",
    "postgres held_back_by",
    # Of sources with a policy, which the simulation's has not.
    "postgres policies",
    "postgres policy_history",
    "postgres policy_version",
    # There is one broadcaster in a test.
    "postgres claim",
    "postgres find_broadcast",
    # Before anything runs.
    "postgres migrate",
}
"""Boundaries of adapters that no twin has."""

COST_MAX_S = 2e-6
"""For one effect that nobody watches, on a machine that does other things; measured: 0.3 µs."""

REPEATS = 20_000


@pytest.fixture
def seen() -> Iterator[list[str]]:
    found: list[str] = []
    effects.watch(lambda at, moment: found.append(f"{moment} {at}"))
    yield found
    effects.watch(None)


def calls(package: object) -> Iterator[ast.Call]:
    for path in sorted(Path(package.__path__[0]).glob("*.py")):  # type: ignore[attr-defined]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                yield node


def text(node: ast.AST) -> str:
    assert isinstance(node, ast.Constant), ast.unparse(node)
    return str(node.value)


def of_adapters() -> set[str]:
    return {
        f"{text(call.args[0])} {text(call.args[1])}" for call in calls(adapters) if ast.unparse(call.func) == "effect"
    }


def of_twins() -> set[str]:
    names = set()
    for call in calls(testing):
        request = text(call.args[0])
        match ast.unparse(call.func):
            case "Request":
                names.add(f"{next((text(k.value) for k in call.keywords if k.arg == 'server'), 'kafka')} {request}")
            case "self.database.ask":
                names.add(f"postgres {request}")
            case "self._ask":  # of the etcd store
                names.add(f"etcd {request}")
    return names


def test_adapters_and_twins_call_their_requests_by_the_same_names() -> None:
    assert of_twins() - of_adapters() == set()
    assert of_adapters() - of_twins() == ONLY_REAL


def test_the_names_that_matter_most_are_among_them() -> None:
    expected = {
        "etcd Txn",
        "postgres record",
        "postgres save",
        "kafka Produce",
        "kafka TxnOffsetCommit",
        "kafka EndTxn",
    }
    assert expected <= of_adapters() & of_twins()


def test_a_watcher_sees_both_boundaries(seen: list[str]) -> None:
    with effect("etcd", "Txn"):
        assert seen == ["before etcd Txn"]
    assert seen == ["before etcd Txn", "after etcd Txn"]


def test_without_an_answer_there_is_no_boundary_behind_it(seen: list[str]) -> None:
    with pytest.raises(TimeoutError), effect("kafka", "EndTxn"):
        raise TimeoutError
    assert seen == ["before kafka EndTxn"]


def test_what_a_watcher_raises_keeps_the_request_from_leaving() -> None:
    def refuse(_at: Effect, _moment: Moment) -> None:
        raise ConnectionError

    effects.watch(refuse)
    left = False
    try:
        with pytest.raises(ConnectionError), effect("postgres", "record"):
            left = True
    finally:
        effects.watch(None)
    assert not left


def test_a_boundary_that_nobody_watches_costs_next_to_nothing() -> None:
    def cross() -> None:
        with effect("etcd", "Txn"):
            pass

    assert min(timeit.repeat(cross, number=REPEATS, repeat=5)) / REPEATS < COST_MAX_S


async def test_a_call_in_a_clients_thread_knows_whose_it_is() -> None:
    whose: ContextVar[str] = ContextVar("whose", default="nobody's")
    thread = ClientThread("client", "nowhere")

    async def ask(name: str) -> tuple[str, bool]:
        whose.set(name)
        return await thread.call(lambda: (whose.get(), threading.current_thread() is threading.main_thread()))

    try:
        found = await asyncio.gather(asyncio.create_task(ask("reader")), asyncio.create_task(ask("sweeper")))
        assert list(found) == [
            ("reader", False),
            ("sweeper", False),
        ]
    finally:
        thread.end()

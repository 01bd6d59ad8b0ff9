"""The pool gives batches to the signers that it is told of, never more than a bound to each."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from ray.exceptions import RayActorError

from actors import clients
from actors.clients import SignerPool
from pipeline.errors import DatabaseUnavailable, RuntimeFault
from pipeline.ports import Assigned

ASSIGNED = cast("Assigned", None)


class Method:
    """Of an actor; each call takes until it is finished."""

    def __init__(self) -> None:
        self.calls: list[asyncio.Future[Any]] = []

    def remote(self, *_args: Any) -> asyncio.Future[Any]:
        call: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.calls.append(call)
        return call


class Signer:
    """An actor that answers nothing by itself."""

    def __init__(self) -> None:
        self.sign = Method()
        self.status = Method()

    @property
    def calls(self) -> list[asyncio.Future[Any]]:
        return self.sign.calls

    def finish(self) -> None:
        self.calls.pop(0).set_result(b"")

    def die(self) -> None:
        self.calls.pop(0).set_exception(RayActorError())


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def ask(pool: SignerPool, batches: int) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(pool.sign(b"", ASSIGNED)) for _ in range(batches)]


async def lose(pool: SignerPool, one: Signer) -> None:
    """The only batch, with the signer that has it."""
    [asked] = ask(pool, 1)
    await turns()
    one.die()
    with pytest.raises(RuntimeFault, match="one is down"):
        await asked


async def test_batches_are_spread_and_bounded() -> None:
    one, two = Signer(), Signer()
    pool = SignerPool({"one": one, "two": two}, 2)
    asked = ask(pool, 5)
    await turns()
    assert (len(one.calls), len(two.calls)) == (2, 2)
    two.finish()
    await turns()
    assert (len(one.calls), len(two.calls)) == (2, 2)
    for signer in (one, one, two, two):
        signer.finish()
    await asyncio.gather(*asked)


async def test_a_new_signer_takes_what_waits() -> None:
    one, two = Signer(), Signer()
    pool = SignerPool({"one": one}, 1)
    asked = ask(pool, 2)
    await turns()
    assert len(one.calls) == 1
    pool.use({"one": one, "two": two})
    await turns()
    assert len(two.calls) == 1
    assert pool.slots() == 2
    one.finish()
    two.finish()
    await asyncio.gather(*asked)


async def test_a_signer_is_let_go_when_it_has_nothing_left() -> None:
    one, two = Signer(), Signer()
    pool = SignerPool({"one": one, "two": two}, 1)
    asked = ask(pool, 2)
    await turns()
    pool.use({"one": one})
    letting_go = asyncio.create_task(pool.let_go(["two"]))
    asked += ask(pool, 1)
    await turns()
    assert not letting_go.done()
    two.finish()
    await turns()
    assert letting_go.done()
    assert not two.calls
    one.finish()
    await turns()
    one.finish()
    await asyncio.gather(*asked)


async def test_a_dead_signer_gets_nothing_until_it_answers() -> None:
    one, two = Signer(), Signer()
    pool = SignerPool({"one": one, "two": two}, 2)
    await lose(pool, one)
    asked = ask(pool, 3)
    await turns()
    assert (len(one.calls), len(two.calls)) == (0, 2)
    one.status.calls.pop().set_result(None)
    await turns()
    assert (len(one.calls), len(two.calls)) == (1, 2)
    for signer in (one, two, two):
        signer.finish()
    await asyncio.gather(*asked)


async def test_a_silent_signer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "SILENT_S", 0.01)
    one, two = Signer(), Signer()
    pool = SignerPool({"one": one, "two": two}, 1)
    asked = ask(pool, 1)
    with pytest.raises(RuntimeFault, match="one gave no answer"):
        await asked[0]
    asked = ask(pool, 1)
    await turns()
    assert (len(one.calls), len(two.calls)) == (1, 1)  # Ray keeps the first
    two.finish()
    await asyncio.gather(*asked)
    await pool.close()


async def test_a_slow_signer_that_says_how_it_is_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "SILENT_S", 0.05)
    one = Signer()
    pool = SignerPool({"one": one}, 1)
    [asked] = ask(pool, 1)
    for _ in range(3):
        while not one.status.calls:
            await asyncio.sleep(0.005)
        one.status.calls.pop().set_result(None)
    assert not asked.done()
    one.finish()
    assert await asked == b""


async def test_a_signer_that_says_what_it_lacks_is_asked_again() -> None:
    one = Signer()
    pool = SignerPool({"one": one}, 1)
    await lose(pool, one)
    one.status.calls.pop().set_exception(DatabaseUnavailable("connection refused"))
    [asked] = ask(pool, 1)
    await turns()
    one.finish()
    assert await asked == b""


async def test_a_silent_signer_that_is_let_go_is_asked_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "LOOK_S", 0.01)
    one, two = Signer(), Signer()
    pool = SignerPool({"one": one}, 1)
    await lose(pool, one)
    pool.use({"two": two})
    one.status.calls.pop().set_exception(RayActorError())
    await asyncio.sleep(0.05)
    assert not one.status.calls
    pool.use({"one": one})  # a new one of that name
    [asked] = ask(pool, 1)
    await turns()
    one.finish()
    assert await asked == b""

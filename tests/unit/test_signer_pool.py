"""The pool gives batches to the signers that it is told of, never more than a bound to each."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from actors.clients import SignerPool
from pipeline.ports import Assigned

ASSIGNED = cast("Assigned", None)


class Signer:
    """An actor whose work takes until it is let go."""

    def __init__(self) -> None:
        self.sign = self
        self.calls: list[asyncio.Future[bytes]] = []

    def remote(self, _batch: bytes, _assigned: Any) -> asyncio.Future[bytes]:
        call: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.calls.append(call)
        return call

    def finish(self) -> None:
        self.calls.pop(0).set_result(b"")


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def ask(pool: SignerPool, batches: int) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(pool.sign(b"", ASSIGNED)) for _ in range(batches)]


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
    await pool.use({"one": one, "two": two})
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
    letting_go = asyncio.create_task(pool.use({"one": one}))
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

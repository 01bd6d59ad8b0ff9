"""The thread of a blocking Kafka client, and calls in it that never return."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from pipeline.adapters.kafka import ClientThread
from pipeline.errors import BusUnavailable


@pytest.fixture
def thread() -> ClientThread:
    return ClientThread("kafka-test", "broker:9092")


async def test_calls_run_in_one_thread_in_their_order(thread: ClientThread) -> None:
    ran: list[int] = []

    def run(number: int) -> int:
        time.sleep(0.02 if number == 0 else 0)
        ran.append(number)
        return threading.get_ident()

    idents = await asyncio.gather(*(thread.call(run, number) for number in range(5)))
    assert ran == [0, 1, 2, 3, 4]
    assert len(set(idents)) == 1
    assert idents[0] != threading.get_ident()
    thread.end()


async def test_an_error_reaches_the_caller_and_the_thread_goes_on(thread: ClientThread) -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await thread.call(fail)
    assert await thread.call(len, "ab") == 2
    thread.end()


async def test_a_call_that_never_returns_is_left_behind(thread: ClientThread) -> None:
    release = threading.Event()

    def hang() -> int:
        release.wait(30)
        return 1

    with pytest.raises(BusUnavailable, match=r"broker:9092.*no answer to hang in 0 s"):
        await thread.call(hang, within_s=0.05)
    assert await thread.call(len, "ab") == 2
    release.set()
    assert await thread.call(len, "abc") == 3
    thread.end()


async def test_a_cancelled_wait_does_not_let_calls_overtake(thread: ClientThread) -> None:
    ran: list[str] = []

    def slow() -> None:
        time.sleep(0.1)
        ran.append("slow")

    waiting = asyncio.create_task(thread.call(slow))
    await asyncio.sleep(0.02)
    waiting.cancel()
    await thread.call(ran.append, "next")
    assert ran == ["slow", "next"]
    thread.end()

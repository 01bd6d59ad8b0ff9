"""JSON-RPC with a node: what is asked, what its answers mean, and what is told when it has none."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from pipeline.adapters.node import CALLS_MAX, RpcNode
from pipeline.errors import NodeUnavailable, SettingError
from pipeline.stages.account import Answer, Reception
from pipeline.stages.node import Receipt

KEY = "a-secret-key-in-the-path"
SENDER = "0x" + "11" * 20
Handler = Callable[[list[dict[str, Any]]], Any]


@asynccontextmanager
async def node(handler: Handler, *, status: int = 200, timeout_s: float = 5) -> AsyncIterator[RpcNode]:
    """A server on a port of its own that answers as told."""

    async def serve(request: web.Request) -> web.Response:
        answer = handler(await request.json())
        if asyncio.iscoroutine(answer):
            answer = await answer
        if isinstance(answer, str):
            return web.Response(text=answer, status=status)
        return web.json_response(answer, status=status)

    application = web.Application()
    application.router.add_post(f"/{KEY}", serve)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made = RpcNode(SecretStr(f"http://127.0.0.1:{runner.addresses[0][1]}/{KEY}"), timeout_s)
    try:
        yield made
    finally:
        await made.close()
        await runner.cleanup()


def each(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> Handler:
    """Answers in the wrong order, as JSON-RPC allows."""
    return lambda calls: [{"jsonrpc": "2.0", "id": call["id"]} | answer(call) for call in reversed(calls)]


def error(message: str) -> Handler:
    return each(lambda _: {"error": {"code": -32000, "message": message}})


async def test_numbers() -> None:
    async with node(
        each(lambda call: {"result": {"eth_chainId": "0x539", "eth_blockNumber": "0x10"}[call["method"]]})
    ) as n:
        assert (await n.chain_id(), await n.head()) == (1337, 16)


async def test_answers_are_matched_by_id_in_requests_of_a_bounded_size() -> None:
    sizes: list[int] = []

    def count(calls: list[dict[str, Any]]) -> Any:
        sizes.append(len(calls))
        return each(lambda call: {"result": hex(int(call["params"][0], 16) + int(call["params"][1], 16))})(calls)

    senders = [hex(number) for number in range(CALLS_MAX + 5)]
    async with node(count) as n:
        assert await n.nonces(senders, 3) == [number + 3 for number in range(CALLS_MAX + 5)]
    assert sizes == [CALLS_MAX, 5]


async def test_receipts() -> None:
    found = {"blockNumber": "0x7", "status": "0x0", "gasUsed": "0x5208"}
    known = "0x" + "aa" * 32
    async with node(each(lambda call: {"result": found if call["params"] == [known] else None})) as n:
        assert await n.receipts([b"\xbb" * 32, b"\xaa" * 32]) == [None, Receipt(7, succeeded=False, gas_used=21_000)]


@pytest.mark.parametrize(
    ("code", "delegated"),
    [
        ("0xef0100" + "ab" * 20, True),
        ("0xEF0100" + "AB" * 20, True),
        ("0x", False),
        (None, False),
        ("0x6001600c60003960016000f3fe", False),
        ("0xef0100" + "ab" * 19, False),
        ("0xef0100" + "ab" * 21, False),
    ],
)
async def test_a_delegated_account_is_known_by_its_code(code: str | None, delegated: bool) -> None:  # noqa: FBT001
    asked: list[Any] = []

    def answer(call: dict[str, Any]) -> dict[str, Any]:
        asked.append((call["method"], call["params"]))
        return {"result": code}

    async with node(each(answer)) as n:
        assert await n.delegated([SENDER]) == [delegated]
    assert asked == [("eth_getCode", [SENDER, "latest"])]


async def test_transactions_are_sent_as_they_are() -> None:
    seen: list[Any] = []

    def take(call: dict[str, Any]) -> dict[str, Any]:
        seen.append((call["method"], call["params"]))
        return {"result": "0x"}

    async with node(each(take)) as n:
        assert await n.send([b"\x02\xff"]) == [Answer(Reception.TAKEN)]
    assert seen == [("eth_sendRawTransaction", ["0x02ff"])]


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("already known", Reception.KNOWN),
        ("transaction already imported", Reception.KNOWN),
        ("Known transaction", Reception.KNOWN),
        ("AlreadyKnown", Reception.KNOWN),
        ("nonce too low: next nonce 7, tx nonce 5", Reception.STALE),
        ("OldNonce", Reception.STALE),
        ("txpool is full", Reception.LATER),
        ("replacement transaction underpriced", Reception.LATER),
        ("max fee per gas less than block base fee: address 0x1, maxFeePerGas: 1, baseFee: 7", Reception.LATER),
        ("in-flight transaction limit reached for delegated accounts", Reception.LATER),
        ("gapped-nonce tx from delegated accounts", Reception.LATER),
        ("nonce too high: tx nonce 8, gapped nonce 7", Reception.LATER),
        ("authority already reserved", Reception.LATER),
        ("address already reserved", Reception.LATER),
        ("insufficient funds for gas * price + value: balance 0, tx cost 21000", Reception.REFUSED),
        ("intrinsic gas too low: gas 1, minimum needed 21000", Reception.REFUSED),
        ("exceeds block gas limit", Reception.REFUSED),
        ("invalid sender", Reception.REFUSED),
        ("something that no node has said yet", Reception.REFUSED),
    ],
)
async def test_what_a_node_says_of_a_transaction(said: str, means: Reception) -> None:
    async with node(error(said)) as n:
        assert await n.send([b"\x02"]) == [Answer(means, said)]


async def hangs(_: object) -> str:
    await asyncio.sleep(10)
    return ""


@pytest.mark.parametrize(
    ("handler", "status", "told"),
    [
        (error("the method eth_chainId does not exist"), 200, "it says: the method eth_chainId does not exist"),
        (lambda _: {"error": {"message": "batch too large"}}, 200, "it refuses a batch of 1 calls: batch too large"),
        (lambda _: [], 200, "1 of 1 calls have no answer"),
        (lambda _: "<html>", 200, "it does not answer with JSON"),
        (lambda _: "slow down", 429, "HTTP 429 Too Many Requests"),
        (hangs, 200, "no answer in 0.2 s"),
    ],
    ids=["method", "batch", "missing", "html", "429", "hangs"],
)
async def test_what_is_no_answer_is_told_without_the_key(handler: Handler, status: int, told: str) -> None:
    async with node(handler, status=status, timeout_s=0.2) as n:
        with pytest.raises(NodeUnavailable) as caught:
            await n.chain_id()
    assert told in str(caught.value)
    assert str(caught.value).startswith("the Ethereum node at 127.0.0.1:")
    assert KEY not in "".join(traceback.format_exception(caught.value)) + repr(n)


async def test_a_dead_node_is_told_without_the_key() -> None:
    gone = RpcNode(SecretStr(f"http://127.0.0.1:1/{KEY}"), 1)
    with pytest.raises(NodeUnavailable, match=r"127\.0\.0\.1:1: ClientConnectorError") as caught:
        await gone.head()
    await gone.close()
    assert KEY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("url", ["", "localhost:8545", "ws://127.0.0.1:8546", "http://"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(SettingError, match="is not an http"):
        RpcNode(SecretStr(url), 1)

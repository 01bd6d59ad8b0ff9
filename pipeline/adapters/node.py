"""An Ethereum node over JSON-RPC (execution-apis; JSON-RPC 2.0, batches), by HTTP."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import orjson
from pydantic import SecretStr

from pipeline.errors import NodeUnavailable, SettingError
from pipeline.stages.account import Answer, Reception
from pipeline.stages.node import Receipt

CALLS_MAX: Final = 100
"""In one request; go-ethereum takes 1,000, providers often 100."""

PRIORITY_FEE: Final = 10**9
"""Wei per gas."""

DELEGATION: Final = re.compile("0xef0100[0-9a-f]{40}", re.IGNORECASE)
"""EIP-7702: the code of a delegated account names the one whose code it runs."""

REASON_MAX: Final = 200
"""Characters of a node's own words."""

RECEPTIONS: Final = (
    (Reception.KNOWN, "already known|already imported|known transaction|alreadyknown|same hash|already exists"),
    (Reception.STALE, "nonce too low|nonce is too low|oldnonce|nonce_too_low"),
    (Reception.LATER, "pool is full|pool full|pool overflow|underpriced|less than block base fee|feetoolow"),
    (Reception.LATER, "in-flight|gapped.nonce|already reserved"),  # of accounts with one place (EIP-7702), or one pool
)
"""What nodes say, by what it means. Nothing fixes these words: each node has its own (go-ethereum, reth, erigon, besu,
nethermind, anvil); what is not among them is a refusal."""

PATTERNS: Final = tuple((reception, re.compile(words, re.IGNORECASE)) for reception, words in RECEPTIONS)


class RpcNode:
    """Fulfils stages.node.Node. The URL is a secret: it often holds a key."""

    def __init__(self, url: SecretStr, timeout_s: float) -> None:
        """Raises SettingError for what is no http(s) URL."""
        parts = urlsplit(url.get_secret_value().strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingError("--rpc", "is not an http:// or https:// URL", hint="For example: http://127.0.0.1:8545")
        self._url = url
        self._address = parts.hostname + (f":{parts.port}" if parts.port else "")
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None
        self._ids = itertools.count(1)

    def __repr__(self) -> str:
        return f"RpcNode({self._address})"

    async def chain_id(self) -> int:
        """See stages.node.Node."""
        return await self._number("eth_chainId")

    async def head(self) -> int:
        """See stages.node.Node."""
        return await self._number("eth_blockNumber")

    async def nonces(self, senders: Sequence[str], block: int) -> Sequence[int]:
        """See stages.node.Node."""
        calls = [("eth_getTransactionCount", [sender, hex(block)]) for sender in senders]
        return [int(self._result(answer), 16) for answer in await self._call(calls)]

    async def delegated(self, senders: Sequence[str]) -> Sequence[bool]:
        """See stages.node.Node."""
        calls = [("eth_getCode", [sender, "latest"]) for sender in senders]
        return [bool(DELEGATION.fullmatch(self._result(answer) or "")) for answer in await self._call(calls)]

    async def counts(self, senders: Sequence[str]) -> Sequence[tuple[int, int]]:
        """See stages.nonces.CountingNode."""
        calls = [("eth_getTransactionCount", [sender, at]) for sender in senders for at in ("latest", "pending")]
        found = [int(self._result(answer), 16) for answer in await self._call(calls)]
        return list(zip(found[::2], found[1::2], strict=True))

    async def fees(self) -> tuple[int, int]:
        """A fee cap of twice what is asked now, and a priority fee, in wei per gas."""
        price = await self._number("eth_gasPrice")
        return 2 * price, min(PRIORITY_FEE, price)

    async def receipts(self, hashes: Sequence[bytes]) -> Sequence[Receipt | None]:
        """See stages.node.Node."""
        calls = [("eth_getTransactionReceipt", ["0x" + hash_.hex()]) for hash_ in hashes]
        return [_receipt(self._result(answer)) for answer in await self._call(calls)]

    async def send(self, raw: Sequence[bytes]) -> Sequence[Answer]:
        """See stages.node.Node."""
        calls = [("eth_sendRawTransaction", ["0x" + one.hex()]) for one in raw]
        return [_answer(answer) for answer in await self._call(calls)]

    async def close(self) -> None:
        """See stages.node.Node."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _number(self, method: str) -> int:
        [answer] = await self._call([(method, [])])
        return int(self._result(answer), 16)

    def _result(self, answer: dict[str, Any]) -> Any:
        if "error" in answer:
            raise self._down(f"it says: {_words(answer['error'])}")
        return answer.get("result")

    async def _call(self, calls: Sequence[tuple[str, list[Any]]]) -> list[dict[str, Any]]:
        """The answer to each call, in their order."""
        answers: list[dict[str, Any]] = []
        for first in range(0, len(calls), CALLS_MAX):
            answers += await self._request(calls[first : first + CALLS_MAX])
        return answers

    async def _request(self, calls: Sequence[tuple[str, list[Any]]]) -> list[dict[str, Any]]:
        requests = [
            {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params} for method, params in calls
        ]
        found = await self._post(orjson.dumps(requests))
        if isinstance(found, dict):  # instead of a batch of answers: it refuses the batch
            raise self._down(f"it refuses a batch of {len(calls)} calls: {_words(found.get('error'))}")
        by_id = {answer.get("id"): answer for answer in found if isinstance(answer, dict)}
        if missing := [request for request in requests if request["id"] not in by_id]:
            raise self._down(f"{len(missing)} of {len(calls)} calls have no answer")
        return [by_id[request["id"]] for request in requests]

    async def _post(self, body: bytes) -> Any:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout)
        try:
            async with self._session.post(
                self._url.get_secret_value().strip(), data=body, headers={"Content-Type": "application/json"}
            ) as response:
                content = await response.read()
                if response.status != HTTPStatus.OK:
                    raise self._down(f"HTTP {response.status} {response.reason}")
                return orjson.loads(content)
        except orjson.JSONDecodeError:
            raise self._down("it does not answer with JSON") from None
        except TimeoutError:
            raise self._down(f"no answer in {self._timeout.total:g} s") from None
        except aiohttp.ClientError as error:  # its text and its frames may hold the URL
            raise self._down(type(error).__name__) from None

    def _down(self, message: str) -> NodeUnavailable:
        return NodeUnavailable(message, address=self._address)


def _receipt(found: Any) -> Receipt | None:
    if not isinstance(found, dict) or not found.get("blockNumber"):
        return None
    return Receipt(int(found["blockNumber"], 16), int(found["status"], 16) == 1, int(found["gasUsed"], 16))


def _answer(answer: dict[str, Any]) -> Answer:
    if "error" not in answer:
        return Answer(Reception.TAKEN)
    reason = _words(answer["error"])
    found = (reception for reception, words in PATTERNS if words.search(reason))
    return Answer(next(found, Reception.REFUSED), reason)


def _words(error: Any) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(message).split())[:REASON_MAX]

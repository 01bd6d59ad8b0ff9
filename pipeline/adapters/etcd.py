"""etcd through its JSON gateway (etcd docs: "gRPC-gateway"), as Patroni uses it.

The gateway is part of every etcd server and needs no generated stubs: the maintained-by-nobody etcd3 package forces an
old protobuf onto the whole process. Its watch and lock are not used; what is: KV.Txn, KV.Range and leases.

What an error means decides everything here. A request that was not sent, or was refused with a definite answer, did
nothing: StoreUnavailable. A transaction that was sent and got no definite answer may have been applied: AmbiguousTxn.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Mapping
from typing import Any, Final

import aiohttp

from pipeline.adapters.secret_file import secret_of
from pipeline.effects import Effect, effect
from pipeline.errors import AmbiguousTxn, OncesignError, SecretFileError, StoreUnavailable
from pipeline.ports import Compare, KeyValue, Txn, TxnResult
from pipeline.settings import EtcdSettings

PAGE_KEYS: Final = 500
ROUNDS_MAX: Final = 3
"""How often each endpoint is tried before etcd counts as down."""

ROUND_PAUSE_S: Final = 0.2
OPS_MAX: Final = 128
"""etcd's own default for --max-txn-ops."""

GRPC_INVALID_ARGUMENT: Final = 3
GRPC_NOT_FOUND: Final = 5
GRPC_PERMISSION_DENIED: Final = 7
GRPC_RESOURCE_EXHAUSTED: Final = 8
GRPC_FAILED_PRECONDITION: Final = 9
GRPC_UNAUTHENTICATED: Final = 16
DEFINITE: Final = frozenset(
    {
        GRPC_INVALID_ARGUMENT,
        GRPC_NOT_FOUND,
        GRPC_PERMISSION_DENIED,
        GRPC_RESOURCE_EXHAUSTED,
        GRPC_FAILED_PRECONDITION,
        GRPC_UNAUTHENTICATED,
    }
)
EFFECTS: Final[Mapping[str, Effect]] = {
    "kv/txn": effect("etcd", "Txn"),
    "kv/range": effect("etcd", "Range"),
    "lease/grant": effect("etcd", "LeaseGrant"),
    "lease/keepalive": effect("etcd", "LeaseKeepAlive"),
    "lease/revoke": effect("etcd", "LeaseRevoke"),
    "auth/authenticate": effect("etcd", "Authenticate"),
}
TOKEN_REFUSED: Final = ("user name is empty", "auth store is old")
"""What etcd calls an invalid argument, and means: no token, or one from before the users were changed."""


class _NotSentError(Exception):
    """The request did not reach etcd."""


class _NoAnswerError(Exception):
    """The request reached etcd, or may have, and there is no definite answer."""


class _RefusedError(Exception):
    """etcd gave a definite answer, and it is no."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        super().__init__(message)

    def wants_token(self) -> bool:
        """Whether a new token may help."""
        return self.code == GRPC_UNAUTHENTICATED or any(text in str(self) for text in TOKEN_REFUSED)


class EtcdStore:
    """Fulfils ports.Store. Belongs to one event loop."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._settings = settings
        self._endpoints = [
            endpoint.strip().rstrip("/") for endpoint in settings.endpoints.split(",") if endpoint.strip()
        ]
        self._first = 0
        self._session: aiohttp.ClientSession | None = None
        self._token = ""

    async def commit(self, txn: Txn) -> TxnResult:
        """See ports.Store."""
        if max(len(txn.compares), len(txn.puts) + len(txn.deletes), len(txn.gets)) > OPS_MAX:
            raise OncesignError(f"an etcd transaction of more than {OPS_MAX} operations was planned.")
        answer = await self._ask("kv/txn", _txn(txn), repeatable=False)
        succeeded = bool(answer.get("succeeded", False))
        reads = {} if succeeded else _reads(txn, answer.get("responses", []))
        return TxnResult(succeeded, int(answer["header"]["revision"]), reads)

    async def get(self, key: str) -> KeyValue | None:
        """See ports.Store."""
        answer = await self._ask("kv/range", {"key": _b64(key.encode())}, repeatable=True)
        found = answer.get("kvs", [])
        return _key_value(found[0]) if found else None

    async def list(self, prefix: str, revision: int = 0) -> list[KeyValue]:
        """See ports.Store; at a past revision if one is given, which may be compacted: StoreUnavailable."""
        start, end = prefix.encode(), _after(prefix.encode())
        found: list[KeyValue] = []
        while True:
            body = {"key": _b64(start), "range_end": _b64(end), "limit": PAGE_KEYS, "revision": revision}
            answer = await self._ask("kv/range", body, repeatable=True)
            found += [_key_value(kv) for kv in answer.get("kvs", [])]
            if not answer.get("more", False):
                return found
            revision = revision or int(answer["header"]["revision"])
            start = found[-1].key.encode() + b"\0"

    async def revision(self, key: str) -> int:
        """Of the whole store, now, as told to who may read that key. Raises StoreUnavailable."""
        answer = await self._ask("kv/range", {"key": _b64(key.encode()), "count_only": True}, repeatable=True)
        return int(answer["header"]["revision"])

    async def grant_lease(self, ttl_s: int) -> int:
        """A lease that was granted without our knowing runs out by itself. Raises StoreUnavailable."""
        answer = await self._ask("lease/grant", {"TTL": ttl_s}, repeatable=True)
        return int(answer["ID"])

    async def keep_alive(self, lease: int) -> bool:
        """See ports.Store."""
        answer = await self._ask("lease/keepalive", {"ID": lease}, repeatable=True)
        return int(answer.get("result", {}).get("TTL", 0)) > 0

    async def revoke_lease(self, lease: int) -> None:
        """A lease that is gone already counts as revoked. Raises StoreUnavailable."""
        try:
            await self._ask("lease/revoke", {"ID": lease}, repeatable=True)
        except StoreUnavailable as error:
            if not isinstance(error.__cause__, _RefusedError) or error.__cause__.code != GRPC_NOT_FOUND:
                raise

    async def close(self) -> None:
        """Drop the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # ── one request ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _ask(self, path: str, body: Mapping[str, Any], *, repeatable: bool) -> dict[str, Any]:
        """Try the endpoints in turn. A request that may have had an effect is not sent to a second one."""
        last: Exception | None = None
        for attempt in range(ROUNDS_MAX * len(self._endpoints)):
            if attempt and attempt % len(self._endpoints) == 0:
                await asyncio.sleep(ROUND_PAUSE_S)
            try:
                return await self._send_with_token(path, body)
            except _NotSentError as error:
                last = error
            except _NoAnswerError as error:
                if not repeatable:
                    raise AmbiguousTxn(f"etcd gave no answer to a transaction: {error}.") from error
                last = error
            self._first = (self._first + 1) % len(self._endpoints)
        raise self._unavailable(last) from last

    async def _send_with_token(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send, and once more with a new token when the old one is refused."""
        if not self._token:
            await self._authenticate()
        try:
            return await self._send(path, body)
        except _RefusedError as error:
            if not error.wants_token() or not await self._authenticate():
                raise self._unavailable(error) from error
        try:
            return await self._send(path, body)
        except _RefusedError as error:
            raise self._unavailable(error) from error

    async def _send(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        url = f"{self._endpoints[self._first]}/v3/{path}"
        headers = {"Authorization": self._token} if self._token else {}
        try:
            with EFFECTS[path]:
                async with self._client().post(url, json=body, headers=headers) as response:
                    answer = await response.json(content_type=None)
        except aiohttp.ClientConnectorError as error:
            raise _NotSentError(str(error)) from error
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise _NoAnswerError(f"{type(error).__name__} {error}".strip()) from error
        if not isinstance(answer, dict):
            raise _NoAnswerError(f"HTTP {response.status} without an answer of etcd")
        if response.ok and "error" not in answer:
            return answer
        if isinstance(answer.get("error"), dict):  # of a stream
            answer = answer["error"]
        code, message = int(answer.get("code", 0)), str(answer.get("message", answer.get("error", answer)))
        if code in DEFINITE:
            raise _RefusedError(code, message)
        raise _NoAnswerError(message)

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self._settings.timeout_s)
            connector = aiohttp.TCPConnector(ssl=_tls(self._settings) or True, limit=16)
            self._session = aiohttp.ClientSession(timeout=timeout, connector=connector)
        return self._session

    async def _authenticate(self) -> bool:
        """A new token; False when no user is set."""
        if not self._settings.username:
            return False
        self._token = ""
        body = {"name": self._settings.username, "password": secret_of(self._settings.password_file, "etcd's password")}
        try:
            self._token = (await self._send("auth/authenticate", body))["token"]
        except (_NotSentError, _NoAnswerError, _RefusedError) as error:
            raise self._unavailable(error) from None
        return True

    def _unavailable(self, error: Exception | None) -> StoreUnavailable:
        text = str(error)
        hint = "" if isinstance(error, _RefusedError) else None
        if "space exceeded" in text:
            hint = "Its quota is used up: compact, defragment, and disarm the NOSPACE alarm (etcd docs: maintenance)."
        return StoreUnavailable(text, address=",".join(self._endpoints), hint=hint)


def _tls(settings: EtcdSettings) -> ssl.SSLContext | None:
    if not settings.endpoints.startswith("https"):
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.cert_file:
            context.load_cert_chain(settings.cert_file, settings.key_file)
    except OSError as error:
        raise SecretFileError(f"etcd's TLS files: {error}.") from None
    return context


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _after(prefix: bytes) -> bytes:
    """The first key that does not start with the prefix (etcd API: range_end)."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _key_value(kv: Mapping[str, Any]) -> KeyValue:
    return KeyValue(
        base64.b64decode(kv["key"]).decode(),
        base64.b64decode(kv.get("value", "")),
        int(kv["create_revision"]),
        int(kv["mod_revision"]),
    )


def _txn(txn: Txn) -> dict[str, Any]:
    lease = {"lease": txn.lease} if txn.lease else {}
    puts = [{"request_put": {"key": _b64(key.encode()), "value": _b64(value)} | lease} for key, value in txn.puts]
    deletes = [{"request_delete_range": {"key": _b64(key.encode())}} for key in txn.deletes]
    gets = [{"request_range": {"key": _b64(key.encode())}} for key in txn.gets]
    return {"compare": [_compare(c) for c in txn.compares], "success": puts + deletes, "failure": gets}


def _compare(compare: Compare) -> dict[str, Any]:
    key = _b64(compare.key.encode())
    if compare.value is not None:
        return {"key": key, "result": "EQUAL", "target": "VALUE", "value": _b64(compare.value)}
    if compare.mod_revision is not None:
        return {"key": key, "result": "EQUAL", "target": "MOD", "mod_revision": str(compare.mod_revision)}
    return {"key": key, "result": "EQUAL", "target": "CREATE", "create_revision": str(compare.create_revision or 0)}


def _reads(txn: Txn, responses: list[Mapping[str, Any]]) -> dict[str, KeyValue | None]:
    reads: dict[str, KeyValue | None] = {}
    for key, response in zip(txn.gets, responses, strict=True):
        found = response["response_range"].get("kvs", [])
        reads[key] = _key_value(found[0]) if found else None
    return reads

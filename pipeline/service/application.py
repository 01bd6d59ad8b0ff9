"""The service as an aiohttp application: who may ask, what a request holds, how an answer or an error goes out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import orjson
from aiohttp import web
from pydantic import BaseModel, ValidationError

from pipeline.errors import OncesignError
from pipeline.journal import Journal
from pipeline.ports import Clock
from pipeline.service import metrics, openapi, page, problem
from pipeline.service.body import AssignAnswer
from pipeline.service.desk import Desk, Leading
from pipeline.service.idempotency import HEADER, Kept, Repeats
from pipeline.service.metrics import Metrics
from pipeline.service.operations import Operations
from pipeline.service.problem import Code, Problem, problem_of
from pipeline.service.readiness import Readiness
from pipeline.service.route import ROUTES, Route
from pipeline.service.token import Token
from pipeline.settings import Settings

journal = Journal(__name__, "service")

BODY_TIMEOUT_S: Final = 10.0
REQUESTS_MAX: Final = 512
"""Under way at once; most of them wait in the queue, which has its own bound."""

OTHER: Final = "other"
"""The route label of requests to no route, so that nobody makes labels at will."""

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

SAFE_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Service:
    """The key manager over HTTP."""

    def __init__(self, leading: Leading, token: Token, clock: Clock, settings: Settings) -> None:
        """`leading` is asked for the key manager at each request, and makes it lead if need be."""
        self._leading = leading
        self._token = token
        self._operations = Operations(self._lead, settings)
        self._readiness = Readiness(self._lead, clock)
        self._repeats = Repeats(clock)
        self._desk: Desk | None = None
        self._metrics = Metrics(lambda: self._desk)
        self._under_way = 0
        self._page = page.html()
        self._policy = page.policy(self._page)
        self._body_max_bytes = settings.service.body_max_bytes

    def application(self) -> web.Application:
        """With all routes; closing it ends the attempt to lead, if one is under way."""
        made = web.Application(client_max_size=self._body_max_bytes, middlewares=[self._guarded])
        for route in ROUTES:
            made.router.add_route(route.method, route.path, self._handler(route))
        made.router.add_get("/", self._show_page)
        made.router.add_get("/healthz", self._healthz)
        made.router.add_get("/readyz", self._readyz)
        made.router.add_get("/metrics", self._show_metrics)
        made.router.add_get("/openapi.json", self._show_document)
        made.on_cleanup.append(self._end)
        return made

    async def _lead(self) -> Desk:
        self._desk = await self._leading()
        return self._desk

    async def _end(self, _: web.Application) -> None:
        await self._readiness.stop()

    # ── every request ────────────────────────────────────────────────────────────────────────────────────────────────

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Errors become problems; each request is counted once."""
        response = await self._answered(request, handler)
        response.headers.update(SAFE_HEADERS)
        resource = request.match_info.route.resource
        self._metrics.count(resource.canonical if resource else OTHER, response.status)
        return response

    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Problem as error:
            return _problem_response(error)
        except OncesignError as error:
            return _problem_response(problem_of(error))
        except web.HTTPMethodNotAllowed as error:
            allowed = {"Allow": error.headers["Allow"]}
            return _problem_response(
                Problem(Code.METHOD_NOT_ALLOWED, f"{request.path} takes no {request.method}.", headers=allowed)
            )
        except web.HTTPNotFound:
            return _problem_response(Problem(Code.NOT_FOUND, f"there is no {request.path}.", "See /openapi.json."))
        except web.HTTPException:
            raise
        except Exception as error:  # noqa: BLE001 - its frames are in the log
            journal.ended("request", frames=error, method=request.method, path=request.path)
            return _problem_response(Problem(Code.FAILED, "a fault of the service.", "Its log has it."))

    # ── /v1 ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _handler(self, route: Route) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            if not self._token.accepts(request.headers.get("Authorization", "")):
                raise Problem(
                    Code.UNAUTHORIZED, "the bearer token is missing or wrong.", headers={"WWW-Authenticate": "Bearer"}
                )
            if self._under_way >= REQUESTS_MAX:
                raise Problem(Code.BUSY, f"{REQUESTS_MAX} requests are under way.")
            self._under_way += 1
            try:
                kept = await self._once(route, request)
            finally:
                self._under_way -= 1
            return _response(kept)

        return handle

    async def _once(self, route: Route, request: web.Request) -> Kept:
        content = await _content(request, self._body_max_bytes) if route.writes else b""

        async def carry_out() -> Kept:
            return await self._carried_out(route, _given(route, request, content))

        if HEADER not in request.headers or not route.writes:
            return await carry_out()
        whole = f"{request.method} {request.path}\n".encode() + content
        return await self._repeats.once(request.headers[HEADER], whole, carry_out)

    async def _carried_out(self, route: Route, given: BaseModel | None) -> Kept:
        run = getattr(self._operations, route.operation)
        answer: BaseModel = await (run(given) if given is not None else run())
        return Kept(200, orjson.dumps(answer.model_dump(mode="json")), final=not _waits(answer))

    # ── open to all ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _healthz(self, _: web.Request) -> web.StreamResponse:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.StreamResponse:
        await self._readiness.require()
        return web.Response(text="ok\n")

    async def _show_metrics(self, _: web.Request) -> web.StreamResponse:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def _show_document(self, _: web.Request) -> web.StreamResponse:
        return web.Response(body=openapi.text(), content_type="application/json")

    async def _show_page(self, _: web.Request) -> web.StreamResponse:
        policy = {"Content-Security-Policy": self._policy}
        return web.Response(text=self._page, content_type="text/html", headers=policy)


async def _content(request: web.Request, most: int) -> bytes:
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        # The rest of it is not read: the connection ends.
        raise Problem(
            Code.TOO_LARGE, f"the body has more than {most} bytes.", headers={"Connection": "close"}
        ) from None
    except TimeoutError:
        raise Problem(
            Code.TOO_SLOW, f"the body took longer than {BODY_TIMEOUT_S:.0f} s.", headers={"Connection": "close"}
        ) from None


def _given(route: Route, request: web.Request, content: bytes) -> BaseModel | None:
    if route.given is None:
        return None
    found: Any = dict(request.query) if route.place == "query" else dict(request.match_info)
    if route.place == "body":
        try:
            found = orjson.loads(content)
        except orjson.JSONDecodeError:
            raise Problem(Code.NOT_JSON, "the body is not JSON.", "See /openapi.json.") from None
    try:
        return route.given.model_validate(found)
    except ValidationError as error:
        wrong = [
            {"field": ".".join(str(part) for part in found["loc"]), "message": found["msg"]}
            for found in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        first = f"{wrong[0]['field']}: {wrong[0]['message']}" if wrong[0]["field"] else wrong[0]["message"]
        raise Problem(Code.INVALID, first, "See /openapi.json.", errors=wrong) from None


def _waits(answer: BaseModel) -> bool:
    """Whether asking again may give more."""
    return isinstance(answer, AssignAnswer) and any(reply.status == "waiting" for reply in answer.replies)


def _response(kept: Kept) -> web.Response:
    return web.Response(body=kept.body, status=kept.status, content_type="application/json")


def _problem_response(error: Problem) -> web.Response:
    return web.Response(
        body=orjson.dumps(error.body()),
        status=int(error.status),
        content_type=problem.CONTENT_TYPE,
        headers=error.headers,
    )

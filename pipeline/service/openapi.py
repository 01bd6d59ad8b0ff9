"""The OpenAPI document (3.1), made of the routes and the models of their bodies.

`python -m pipeline.service.openapi` prints it; docs/openapi.json is a copy that a test compares.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import cache
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Final

import orjson
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from pipeline.service import body, problem
from pipeline.service.idempotency import HEADER
from pipeline.service.problem import MEANINGS, Code
from pipeline.service.route import ROUTES, Route

REFERENCE: Final = "#/components/schemas/{model}"
OPEN_ROUTES: Final = (
    ("/healthz", "Whether the process serves.", ("text/plain",), (HTTPStatus.OK,)),
    (
        "/readyz",
        "Whether it leads and is not halted; a problem says why not.",
        ("text/plain",),
        (HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE),
    ),
    ("/metrics", "For Prometheus.", ("text/plain",), (HTTPStatus.OK,)),
    ("/openapi.json", "This document.", ("application/json",), (HTTPStatus.OK,)),
    ("/", "A page that shows the pool.", ("text/html",), (HTTPStatus.OK,)),
)


def document() -> dict[str, Any]:
    """As served at /openapi.json."""
    schemas = _schemas()
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    for path, summary, types, statuses in OPEN_ROUTES:
        paths[path] = {"get": _open_operation(summary, types, statuses)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "oncesign key manager",
            "version": version("oncesign"),
            "description": "Lends keys and nonces to signers, each nonce once. See docs/key-manager.md.",
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas,
        },
    }


@cache
def text() -> bytes:
    """The document as bytes, the same at each call."""
    return orjson.dumps(document(), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"


def _schemas() -> dict[str, Any]:
    given = [(route.given, "validation") for route in ROUTES if route.given is not None]
    answers = [(model, "serialization") for model in (*(route.answer for route in ROUTES), body.ProblemDetails)]
    pairs: Any = dict.fromkeys([*given, *answers])
    _, definitions = models_json_schema(list(pairs), ref_template=REFERENCE)
    schemas: dict[str, Any] = definitions["$defs"]
    schemas["ProblemDetails"]["properties"]["code"]["enum"] = [code.value for code in Code]
    return schemas


def _operation(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.operation,
        "summary": route.summary,
        "responses": {"200": _response("done", "application/json", route.answer), **_problems(route.problems)},
    }
    parameters = []
    if route.place in ("path", "query") and route.given is not None:
        parameters += _parameters(route, schemas[route.given.__name__])
    if route.writes:
        parameters.append(_idempotency())
    if parameters:
        operation["parameters"] = parameters
    if route.place == "body" and route.given is not None:
        operation["requestBody"] = {"required": True, "content": _content("application/json", route.given)}
    return operation


def _open_operation(summary: str, types: Iterable[str], statuses: Iterable[HTTPStatus]) -> dict[str, Any]:
    content: dict[str, Any] = {kind: {} for kind in types}
    responses: dict[str, Any] = {"200": {"description": "done", "content": content}}
    if HTTPStatus.SERVICE_UNAVAILABLE in statuses:
        responses |= _problems((Code.NOT_LEADER, Code.HALTED, Code.DEPENDENCY_DOWN))
    return {"summary": summary, "security": [], "responses": responses}


def _parameters(route: Route, schema: dict[str, Any]) -> list[dict[str, Any]]:
    required = schema.get("required", [])
    return [
        {"name": name, "in": route.place, "required": name in required, "schema": part}
        for name, part in schema["properties"].items()
    ]


def _idempotency() -> dict[str, Any]:
    return {
        "name": HEADER,
        "in": "header",
        "required": False,
        "description": "The same key with the same request gives the same answer, and does nothing twice.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 130},
    }


def _problems(codes: Iterable[Code]) -> dict[str, Any]:
    by_status: dict[HTTPStatus, list[str]] = {}
    for code in codes:
        meaning = MEANINGS[code]
        by_status.setdefault(meaning.status, []).append(f"`{code.value}`: {meaning.text}")
    return {
        str(int(status)): _response("; ".join(texts), problem.CONTENT_TYPE, body.ProblemDetails)
        for status, texts in sorted(by_status.items())
    }


def _response(description: str, kind: str, model: type[BaseModel]) -> dict[str, Any]:
    return {"description": description, "content": _content(kind, model)}


def _content(kind: str, model: type[BaseModel]) -> dict[str, Any]:
    return {kind: {"schema": {"$ref": REFERENCE.format(model=model.__name__)}}}


if __name__ == "__main__":
    sys.stdout.buffer.write(text())

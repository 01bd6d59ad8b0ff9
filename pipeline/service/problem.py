"""Errors as problem details (RFC 9457): `application/problem+json` with a `code` that programs can rely on."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Final

from pipeline.errors import (
    DependencyDown,
    Halted,
    KeyNotInPool,
    NotLeader,
    NotReleasable,
    OncesignError,
    UsageError,
)

CONTENT_TYPE: Final = "application/problem+json"
RETRY_AFTER_S: Final = 5


class Code(StrEnum):
    """What went wrong, one word for each case that a client may treat differently."""

    NOT_JSON = "not_json"
    INVALID = "invalid"
    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not_found"
    UNKNOWN_STREAM = "unknown_stream"
    UNKNOWN_KEY = "unknown_key"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    TOO_SLOW = "too_slow"
    NOT_RELEASABLE = "not_releasable"
    CONFLICT = "conflict"
    TOO_LARGE = "too_large"
    KEY_REUSED = "idempotency_key_reused"
    FAILED = "failed"
    NOT_LEADER = "not_leader"
    HALTED = "halted"
    DEPENDENCY_DOWN = "dependency_down"
    KEK_UNUSABLE = "kek_unusable"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class Meaning:
    """The status of a code, and what it tells a client."""

    status: HTTPStatus
    text: str


MEANINGS: Final[dict[Code, Meaning]] = {
    Code.NOT_JSON: Meaning(HTTPStatus.BAD_REQUEST, "the body is not JSON"),
    Code.INVALID: Meaning(HTTPStatus.BAD_REQUEST, "a field is missing, unknown or out of range"),
    Code.UNAUTHORIZED: Meaning(HTTPStatus.UNAUTHORIZED, "no bearer token, or a wrong one"),
    Code.NOT_FOUND: Meaning(HTTPStatus.NOT_FOUND, "there is no such route"),
    Code.UNKNOWN_STREAM: Meaning(HTTPStatus.NOT_FOUND, "no setting names this source or shard"),
    Code.UNKNOWN_KEY: Meaning(HTTPStatus.NOT_FOUND, "the key is not in the pool of this chain"),
    Code.METHOD_NOT_ALLOWED: Meaning(HTTPStatus.METHOD_NOT_ALLOWED, "the route has another method"),
    Code.TOO_SLOW: Meaning(HTTPStatus.REQUEST_TIMEOUT, "the body took too long to come"),
    Code.NOT_RELEASABLE: Meaning(HTTPStatus.CONFLICT, "another worker holds the batch, or the ledger does not have it"),
    Code.CONFLICT: Meaning(HTTPStatus.CONFLICT, "what the request wants does not fit what is there"),
    Code.TOO_LARGE: Meaning(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body is larger than the service takes"),
    Code.KEY_REUSED: Meaning(HTTPStatus.UNPROCESSABLE_ENTITY, "the Idempotency-Key came with another request before"),
    Code.FAILED: Meaning(HTTPStatus.INTERNAL_SERVER_ERROR, "a fault of the service; its log has it"),
    Code.NOT_LEADER: Meaning(HTTPStatus.SERVICE_UNAVAILABLE, "this key manager does not lead (yet, or any more)"),
    Code.HALTED: Meaning(HTTPStatus.SERVICE_UNAVAILABLE, "the deployment is halted until an operator acts"),
    Code.DEPENDENCY_DOWN: Meaning(HTTPStatus.SERVICE_UNAVAILABLE, "etcd or Postgres does not answer"),
    Code.KEK_UNUSABLE: Meaning(HTTPStatus.SERVICE_UNAVAILABLE, "the key-encryption key is missing or not the pool's"),
    Code.BUSY: Meaning(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests at once"),
}


@dataclass(slots=True, eq=False)
class Problem(Exception):
    """What a request is answered with instead of what it asked for."""

    code: Code
    detail: str
    hint: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    errors: list[dict[str, str]] = field(default_factory=list)  #: per field, when it is INVALID

    def __post_init__(self) -> None:
        if self.status is HTTPStatus.SERVICE_UNAVAILABLE:
            self.headers.setdefault("Retry-After", str(RETRY_AFTER_S))

    @property
    def status(self) -> HTTPStatus:
        """The HTTP status of its code."""
        return MEANINGS[self.code].status

    def body(self) -> dict[str, Any]:
        """The members of RFC 9457, and ours: code, hint, errors."""
        members: dict[str, Any] = {
            "type": "about:blank",  # the status says the kind (section 4.2.1), `code` the case
            "title": self.status.phrase,
            "status": int(self.status),
            "code": self.code.value,
            "detail": self.detail,
        }
        if self.hint:
            members["hint"] = self.hint
        if self.errors:
            members["errors"] = self.errors
        return members


def problem_of(error: OncesignError) -> Problem:
    """How an error of the pipeline is answered."""
    cases: tuple[tuple[type[OncesignError], Code], ...] = (
        (NotLeader, Code.NOT_LEADER),
        (Halted, Code.HALTED),
        (DependencyDown, Code.DEPENDENCY_DOWN),
        (KeyNotInPool, Code.UNKNOWN_KEY),
        (NotReleasable, Code.NOT_RELEASABLE),
        (UsageError, Code.CONFLICT),
    )
    code = next((code for kind, code in cases if isinstance(error, kind)), Code.FAILED)
    return Problem(code, error.message, error.hint)

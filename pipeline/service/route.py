"""The routes: one table, from which the application and its OpenAPI document are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from pydantic import BaseModel

from pipeline.service import body
from pipeline.service.problem import Code

Place: TypeAlias = Literal["body", "query", "path", ""]

ALWAYS: Final = (Code.INVALID, Code.UNAUTHORIZED, Code.FAILED, Code.NOT_LEADER, Code.HALTED, Code.DEPENDENCY_DOWN)
"""What any route may answer."""

IN_BODY: Final = (Code.NOT_JSON, Code.TOO_SLOW, Code.TOO_LARGE)
REPEATABLE: Final = (Code.KEY_REUSED, Code.BUSY)


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. `operation` is the name of a method of Operations."""

    method: Literal["GET", "POST"]
    path: str
    operation: str
    summary: str
    answer: type[BaseModel]
    given: type[BaseModel] | None = None
    place: Place = ""  #: where `given` comes from
    own: tuple[Code, ...] = ()  #: problems beside ALWAYS

    @property
    def problems(self) -> tuple[Code, ...]:
        """All that it may answer."""
        return ALWAYS + (IN_BODY if self.place == "body" else ()) + (REPEATABLE if self.writes else ()) + self.own

    @property
    def writes(self) -> bool:
        """Whether it changes anything, and so takes an Idempotency-Key."""
        return self.method == "POST"


ROUTES: Final = (
    Route(
        "POST",
        "/v1/assign",
        "assign",
        "Give batches a key and nonces, waiting in the queue for a free key up to deadline_s.",
        body.AssignAnswer,
        body.AssignBody,
        "body",
        (Code.UNKNOWN_STREAM, Code.CONFLICT),
    ),
    Route(
        "POST",
        "/v1/release",
        "release",
        "Free the keys of batches that were published.",
        body.ReleaseAnswer,
        body.ReleaseBody,
        "body",
        (Code.NOT_RELEASABLE,),
    ),
    Route(
        "GET",
        "/v1/keys",
        "list_keys",
        "The pool, oldest first: state, since when, and who holds what.",
        body.KeyList,
        body.Window,
        "query",
    ),
    Route(
        "GET",
        "/v1/assignments",
        "list_assignments",
        "What was assigned and not released yet, oldest first.",
        body.AssignmentList,
        body.Window,
        "query",
    ),
    Route("GET", "/v1/queue", "list_queue", "Who waits for a key.", body.QueueAnswer, body.Window, "query"),
    Route("GET", "/v1/streams", "list_streams", "How far each stream has come, and halts.", body.StreamList),
    Route(
        "POST",
        "/v1/keys/create",
        "create_keys",
        "Make new private keys, seal them, and put them into the pool.",
        body.AddressList,
        body.CreateBody,
        "body",
        (Code.KEK_UNUSABLE,),
    ),
    Route(
        "POST",
        "/v1/keys/import",
        "import_key",
        "Open a keystore V3, seal its private key, and put it into the pool.",
        body.AddressList,
        body.ImportBody,
        "body",
        (Code.CONFLICT, Code.KEK_UNUSABLE),
    ),
    Route(
        "POST",
        "/v1/keys/{chain_id}/{address}/disable",
        "disable_key",
        "Lend a key no more; a locked one after its release.",
        body.KeyChanged,
        body.KeyPath,
        "path",
        (Code.UNKNOWN_KEY,),
    ),
    Route(
        "POST",
        "/v1/keys/{chain_id}/{address}/enable",
        "enable_key",
        "Lend a key again.",
        body.KeyChanged,
        body.KeyPath,
        "path",
        (Code.UNKNOWN_KEY, Code.CONFLICT),
    ),
)

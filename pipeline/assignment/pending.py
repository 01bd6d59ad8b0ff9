"""What waits for the key manager's writer, and how it learns what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.assignment.plan import Plan
from pipeline.assignment.view import Guard, View
from pipeline.errors import OncesignError
from pipeline.ports import AssignReply, AssignRequest


@dataclass(slots=True, eq=False)
class Pending:
    """A request that waits for its reply."""

    request: AssignRequest
    reply: asyncio.Future[AssignReply]
    since_s: float
    deadline_s: float


@dataclass(slots=True, eq=False)
class Command:
    """A write that is not an assignment: it plans against the view when its turn comes."""

    plan: Callable[[View, Guard], Plan]
    done: asyncio.Future[None]

    def settle(self, error: OncesignError | None) -> None:
        """Tell whoever waits, if anybody still does."""
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


@dataclass(frozen=True, slots=True)
class Queued:
    """A request in line, and for how long it has been."""

    request: AssignRequest
    waited_s: float

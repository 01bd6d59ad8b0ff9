"""The Postgres server in memory that source, ledger and outcomes are tables of, as far as it can be away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from pipeline.errors import DatabaseUnavailable
from pipeline.testing.network import InstantNetwork, Network, Request, Unanswered

T = TypeVar("T")

STATEMENT_TIMEOUT_S: Final = 5.0


@dataclass(slots=True, eq=False)
class Database:
    """A statement is a transaction of its own; whoever gets no answer does not know whether it was committed."""

    network: Network = field(default_factory=InstantNetwork)
    down: bool = False

    async def ask(self, statement: str, effect: Callable[[], T]) -> T:
        """Raises DatabaseUnavailable, and what the statement raises."""
        try:
            request = Request(statement, server="postgres")
            return await self.network.call(request, lambda: self._serve(effect), STATEMENT_TIMEOUT_S)
        except Unanswered as error:
            raise DatabaseUnavailable(str(error)) from error

    def _serve(self, effect: Callable[[], T]) -> T:
        if self.down:
            raise DatabaseUnavailable("connection refused")
        return effect()

"""Which policies the sources of a deployment have and had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from pipeline.ethereum.policy import Policy


class Policies(Protocol):
    """Every version of each source's policy, for ever. Its methods raise DatabaseUnavailable."""

    async def version(self, source: str, text: str) -> Policy:
        """The policy of a text: the last version if that is it, else a new one. Raises InputFileError."""
        ...

    async def versions(self, source: str) -> Mapping[int, Policy]:
        """All of a source, the last one first."""
        ...

    async def close(self) -> None:
        """Drop the connection."""
        ...

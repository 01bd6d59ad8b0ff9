"""The versions of sources' policies in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pipeline.ethereum.policy import NO_POLICY, Policy
from pipeline.ethereum.policy_file import read_policy
from pipeline.testing.database import Database


class TwinPolicies:
    """Fulfils stages.policies.Policies."""

    def __init__(self, database: Database | None = None) -> None:
        self._database = database or Database()
        self.texts: dict[str, list[str]] = {}

    async def version(self, source: str, text: str) -> Policy:
        """See stages.policies.Policies."""
        policy = read_policy(source, text, NO_POLICY)
        return replace(policy, version=await self._database.ask("policy_version", lambda: self._version(source, text)))

    def _version(self, source: str, text: str) -> int:
        texts = self.texts.setdefault(source, [])
        if not texts or texts[-1] != text:
            texts.append(text)
        return len(texts)

    async def versions(self, source: str) -> Mapping[int, Policy]:
        """See stages.policies.Policies."""
        return await self._database.ask("policies", lambda: self._versions(source))

    def _versions(self, source: str) -> dict[int, Policy]:
        numbered = list(enumerate(self.texts.get(source, []), 1))
        return {version: read_policy(source, text, version) for version, text in reversed(numbered)}

    async def close(self) -> None:
        """Nothing is open."""

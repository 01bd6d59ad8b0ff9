"""The versions of sources' policies in Postgres."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pipeline.adapters.postgres import Database
from pipeline.effects import effect
from pipeline.errors import InputFileError
from pipeline.ethereum.policy import NO_POLICY, Policy
from pipeline.ethereum.policy_file import HINT, TEXT_MAX_BYTES, read_policy
from pipeline.settings import PostgresSettings

VERSION: Final = "SELECT oncesign_policy_version_v1(%s, %s)"
VERSIONS: Final = "SELECT version, text FROM policies WHERE source = %s ORDER BY version DESC"
HISTORY: Final = "SELECT source, version, set_at, text FROM policies ORDER BY source, version"


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    """One entry of the history."""

    source: str
    version: int
    set_at: dt.datetime
    text: str


def policy_of(path: Path) -> Policy:
    """What a file holds, no version of it yet. Raises InputFileError, with the line of what is wrong."""
    return read_policy(str(path), _text(path), NO_POLICY)


def policy_text(path: Path) -> str:
    """What a file holds, if it is a policy. Raises InputFileError, with the line of what is wrong."""
    text = _text(path)
    read_policy(str(path), text, NO_POLICY)
    return text


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(TEXT_MAX_BYTES + 1)
        text = raw.decode("utf-8")
    except OSError as error:
        raise InputFileError(f"{path}: {error.strerror}.", hint=HINT) from error
    except UnicodeDecodeError as error:
        raise InputFileError(f"{path}: is not text.", hint=HINT) from error
    if len(raw) > TEXT_MAX_BYTES:
        raise InputFileError(f"{path}: is larger than {TEXT_MAX_BYTES // 1024**2} MiB.", hint=HINT)
    return text


class PostgresPolicies:
    """Fulfils stages.policies.Policies. What was read of a version is kept: no version ever changes."""

    def __init__(self, settings: PostgresSettings) -> None:
        self._database = Database(settings)
        self._known: dict[str, dict[int, Policy]] = {}

    async def version(self, source: str, text: str) -> Policy:
        """See stages.policies.Policies."""
        policy = read_policy(source, text, NO_POLICY)  # nothing is kept that cannot be read
        async with self._database.cursor() as cursor:
            with effect("postgres", "policy_version"):
                await cursor.execute(VERSION, (source, text))
                rows: list[Any] = await cursor.fetchall()
        [[version]] = rows
        return replace(policy, version=int(version))

    async def versions(self, source: str) -> Mapping[int, Policy]:
        """See stages.policies.Policies."""
        async with self._database.cursor() as cursor:
            with effect("postgres", "policies"):
                await cursor.execute(VERSIONS, (source,))
                rows: list[Any] = await cursor.fetchall()
        known = self._known.setdefault(source, {})
        for version, text in rows:
            if version not in known:
                known[version] = read_policy(source, text, version)
        return {version: known[version] for version, _ in rows}

    async def history(self) -> Sequence[PolicyVersion]:
        """Every version of every source."""
        async with self._database.cursor() as cursor:
            with effect("postgres", "policy_history"):
                await cursor.execute(HISTORY)
                rows: list[Any] = await cursor.fetchall()
        return [PolicyVersion(*row) for row in rows]

    async def close(self) -> None:
        """Drop the connection."""
        await self._database.close()

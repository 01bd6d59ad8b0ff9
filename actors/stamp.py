"""What a detached actor was made of, so that a job knows whether those it finds are its own kind."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Final

import actors
import pipeline
from pipeline.settings import Settings

OF_ONE_POD: Final = {"node", "data_dir"}
"""Settings that differ from pod to pod."""


def stamp(settings: Settings) -> str:
    """Of this code and these settings; 16 hex digits, the same in every pod of one image."""
    # A JSON dump writes asterisks for a secret: two DSNs would look the same.
    said = settings.model_dump_json(exclude=OF_ONE_POD) + settings.postgres.dsn.get_secret_value()
    policies = (source.policy_file for source in settings.sources)
    said += "".join(file.read_text(encoding="utf-8") for file in policies if file is not None and file.exists())
    return hashlib.sha256(f"{_code()}{said}".encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def _code() -> str:
    digest = hashlib.sha256()
    for package in (actors, pipeline):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()

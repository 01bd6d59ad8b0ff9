"""A secret that is the whole text of a file: a password, or a URL that holds a key."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import SecretFileError


def secret_of(path: Path | None, what: str) -> str:
    """Its text, without the space around it, empty without a file; `what` it should hold is said if it cannot be read.

    Raises SecretFileError, without a cause: nothing of the frames is for a traceback.
    """
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SecretFileError(f"{path}: {error.strerror}.", hint=f"It should hold {what}.") from None

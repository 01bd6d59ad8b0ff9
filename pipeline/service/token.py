"""The bearer token (RFC 6750) of the service, from a file that may be replaced while it runs."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Final

from pipeline.errors import SecretFileError
from pipeline.journal import Journal
from pipeline.ports import Clock

journal = Journal(__name__, "service")

TOKEN_CHARACTERS_MIN: Final = 16
TOKEN_CHARACTERS_MAX: Final = 4096
READ_AGAIN_S: Final = 10.0
"""So that a new token counts without a restart; Kubernetes writes a changed Secret into the mounted file."""

SCHEME: Final = "bearer "
HINT: Final = "ONCESIGN_SERVICE__TOKEN_FILE must name a file with one line of at least 16 visible characters."


class Token:
    """Accepts what its file says; prints as the file's name."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """Raises SecretFileError."""
        self._path = path
        self._clock = clock
        self._digest = _read(path)
        self._read_s = clock.monotonic_s()

    def accepts(self, authorization: str) -> bool:
        """Whether the value of an Authorization header carries the token; compared in constant time."""
        self._read_again()
        if authorization[: len(SCHEME)].lower() != SCHEME:
            return False
        given = authorization[len(SCHEME) :].strip(" ")
        return hmac.compare_digest(_digest(given), self._digest)

    def _read_again(self) -> None:
        if self._clock.monotonic_s() < self._read_s + READ_AGAIN_S:
            return
        self._read_s = self._clock.monotonic_s()
        try:
            self._digest = _read(self._path)
        except SecretFileError as error:
            journal.failed("the token of before stays", error=error)

    def __repr__(self) -> str:
        return f"<Token of {self._path}>"


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(TOKEN_CHARACTERS_MAX + 1)
    except OSError as error:
        raise SecretFileError(f"{path}: {error.strerror}.", hint=HINT) from None
    text = raw.decode("ascii", errors="replace").strip()
    size = len(text)
    if not TOKEN_CHARACTERS_MIN <= size <= TOKEN_CHARACTERS_MAX:
        raise SecretFileError(f"{path}: holds {size} characters.", hint=HINT)
    if not all("!" <= character <= "~" for character in text):
        del text, raw  # a traceback may show what this frame holds
        raise SecretFileError(f"{path}: is not one line of visible characters.", hint=HINT)
    return _digest(text)


def _digest(token: str) -> bytes:
    # Equal lengths, so that not even the length of the token can be timed.
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()

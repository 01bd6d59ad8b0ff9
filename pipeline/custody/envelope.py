"""A key-encryption key that somebody else keeps wrapped: a file without a secret, and who unwraps it.

    {"store": "aws-kms", "key": "arn:aws:kms:…", "ciphertext": "base64 of the wrapped KEK"}

Envelope encryption (NIST SP 800-57, 5.3.5): the store is asked once when a process reads the file, never to sign. What
fulfils KeyStore is found by its name, here or under the entry points `oncesign.key_stores` of any installed package.
"""

from __future__ import annotations

import base64
import importlib
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, Protocol

import orjson

from pipeline.errors import SecretFileError

ENTRY_POINTS: Final = "oncesign.key_stores"
BUILT_IN: Final = {"aws-kms": ("pipeline.adapters.aws_kms", "AwsKms")}
FIELDS: Final = {"store", "key", "ciphertext"}
"""Of the file: strings, all of them."""


class KeyStore(Protocol):
    """Wraps KEKs under a key that never leaves it. Its methods raise SecretFileError and KeyStoreUnavailable."""

    def new(self, key: str) -> tuple[bytes, bytes]:
        """32 new random bytes, and the same wrapped under `key`."""
        ...

    def unwrap(self, key: str, ciphertext: bytes) -> bytes:
        """What was wrapped."""
        ...


@dataclass(frozen=True, slots=True)
class Envelope:
    """A wrapped KEK."""

    store: str
    key: str  #: the store's name for what wraps it
    ciphertext: bytes

    def to_json(self) -> bytes:
        """The content of its file."""
        ciphertext = base64.b64encode(self.ciphertext).decode()
        fields = {"store": self.store, "key": self.key, "ciphertext": ciphertext}
        return orjson.dumps(fields, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

    def open(self) -> bytes:
        """The KEK. Raises SecretFileError, KeyStoreUnavailable."""
        return store_of(self.store).unwrap(self.key, self.ciphertext)


def envelope_of(path: Path, raw: bytes) -> Envelope | None:
    """What a file of a KEK holds, if it is an envelope. Raises SecretFileError for one that is garbled."""
    if not raw.lstrip().startswith(b"{"):
        return None
    parsed = _parsed(raw)
    if parsed is None:
        hint = 'It should be {"store": …, "key": …, "ciphertext": …}.'
        raise SecretFileError(f"{path}: is not an envelope.", hint=hint)
    return parsed


def _parsed(raw: bytes) -> Envelope | None:
    try:
        fields: dict[str, Any] = orjson.loads(raw)
        if fields.keys() != FIELDS or not all(isinstance(value, str) for value in fields.values()):
            return None
        return Envelope(fields["store"], fields["key"], base64.b64decode(fields["ciphertext"], validate=True))
    except ValueError:
        return None


def store_of(name: str) -> KeyStore:
    """Raises SecretFileError for a name that nothing has."""
    if name in BUILT_IN:
        module, attribute = BUILT_IN[name]
        made: KeyStore = getattr(importlib.import_module(module), attribute)()
        return made
    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in found:
        known = ", ".join(sorted({*BUILT_IN, *found}))
        raise SecretFileError(f"there is no key store called {name!r}.", hint=f"Known: {known}.")
    loaded: KeyStore = found[name].load()()
    return loaded

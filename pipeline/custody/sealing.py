"""Private keys at rest: AES-256-GCM under a key-encryption key (KEK) that comes from a mounted file.

A sealed key is `version (1 byte) ‖ KEK id (8) ‖ nonce (12) ‖ ciphertext and tag (48)`. The address is the associated
data, so a sealed key moved to another address does not open (NIST SP 800-38D).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Final, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pipeline.custody.envelope import Envelope, envelope_of, store_of
from pipeline.custody.private_file import read_private
from pipeline.custody.unsealed import SECRET_BYTES, UnsealedKey
from pipeline.errors import SecretFileError

VERSION: Final = 1
KEK_BYTES: Final = 32
KEK_ID_BYTES: Final = 8
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
SEALED_BYTES: Final = 1 + KEK_ID_BYTES + NONCE_BYTES + SECRET_BYTES + TAG_BYTES
ID_DOMAIN: Final = b"oncesign-kek-id\0"


class Kek:
    """A key-encryption key; prints as its id."""

    __slots__ = ("_cipher", "id")

    def __init__(self, secret: bytes) -> None:
        self.id = hashlib.sha256(ID_DOMAIN + secret).digest()[:KEK_ID_BYTES]
        self._cipher = AESGCM(secret)

    @classmethod
    def load(cls, path: Path) -> Kek:
        """From a file of 32 raw bytes or 64 hex digits, or an envelope; readable by its owner only.

        Raises SecretFileError, and KeyStoreUnavailable for an envelope.
        """
        raw = read_private(path, hint="ONCESIGN_KEK_FILE must name the file with the key-encryption key.")
        # 32 random bytes may begin with a brace, too; no envelope is that short.
        envelope = None if len(raw) == KEK_BYTES else envelope_of(path, raw)
        if envelope is not None:
            raw = envelope.open()
        secret, size = _parsed(raw), len(raw)
        del raw  # a traceback may show what this frame holds
        if secret is None:
            raise SecretFileError(f"{path}: holds {size} bytes.", hint="It should hold 32 bytes, or 64 hex digits.")
        return cls(secret)

    @classmethod
    def create(cls, path: Path) -> Kek:
        """Make a new one; the file must not exist. Raises SecretFileError."""
        secret = os.urandom(KEK_BYTES)
        _write(path, f"{secret.hex()}\n".encode())
        return cls(secret)

    @classmethod
    def wrapped(cls, path: Path, store: str, key: str) -> Kek:
        """Make a new one under a key of a key store; its envelope is the file, which must not exist.

        Raises SecretFileError, KeyStoreUnavailable.
        """
        secret, ciphertext = store_of(store).new(key)
        _write(path, Envelope(store, key, ciphertext).to_json())
        return cls(secret)

    def seal(self, secret: bytes, address: str) -> bytes:
        """Encrypt one private key for one address."""
        nonce = os.urandom(NONCE_BYTES)
        return bytes([VERSION]) + self.id + nonce + self._cipher.encrypt(nonce, secret, address.encode())

    def unseal(self, sealed: bytes, address: str) -> UnsealedKey:
        """Raises SecretFileError when another KEK sealed it, or it was sealed for another address or changed."""
        if len(sealed) != SEALED_BYTES or sealed[0] != VERSION:
            raise SecretFileError(f"the sealed key of {address} is not one of this version.")
        kek_id, nonce = kek_id_of(sealed), sealed[1 + KEK_ID_BYTES : 1 + KEK_ID_BYTES + NONCE_BYTES]
        if kek_id != self.id:
            raise SecretFileError(
                f"the key of {address} was sealed by KEK {kek_id.hex()}, this one is {self.id.hex()}.",
                hint="Point ONCESIGN_KEK_FILE at the file with which the keys were made.",
            )
        try:
            return UnsealedKey(
                address, self._cipher.decrypt(nonce, sealed[-SECRET_BYTES - TAG_BYTES :], address.encode())
            )
        except InvalidTag:
            raise SecretFileError(f"the sealed key of {address} was changed, or belongs to another address.") from None

    def __repr__(self) -> str:
        return f"<Kek {self.id.hex()}>"

    def __reduce_ex__(self, _protocol: Any) -> NoReturn:
        raise TypeError("a key-encryption key stays in its process")


def kek_id_of(sealed: bytes) -> bytes:
    """Which KEK sealed it, by its own word."""
    return sealed[1 : 1 + KEK_ID_BYTES]


def _write(path: Path, content: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise SecretFileError(f"{path}: {error.strerror}.") from None


def _parsed(raw: bytes) -> bytes | None:
    if len(raw) == KEK_BYTES:
        return raw
    try:
        secret = bytes.fromhex(raw.decode("ascii").strip())
    except ValueError:
        return None
    return secret if len(secret) == KEK_BYTES else None

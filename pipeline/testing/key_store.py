"""A key store in memory: wraps with a key of its own, and refuses what it did not wrap."""

from __future__ import annotations

import os
from typing import ClassVar, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pipeline.custody.sealing import KEK_BYTES
from pipeline.errors import KeyStoreUnavailable, SecretFileError

NONCE_BYTES: Final = 12


class TwinKeyStore:
    """Fulfils custody.envelope.KeyStore. Every instance is a client of the same store."""

    wrapping: ClassVar[dict[str, bytes]] = {}  #: its keys, by name
    down: ClassVar[bool] = False

    def new(self, key: str) -> tuple[bytes, bytes]:
        """See KeyStore."""
        secret, nonce = os.urandom(KEK_BYTES), os.urandom(NONCE_BYTES)
        return secret, nonce + self._cipher(key).encrypt(nonce, secret, None)

    def unwrap(self, key: str, ciphertext: bytes) -> bytes:
        """See KeyStore."""
        try:
            return self._cipher(key).decrypt(ciphertext[:NONCE_BYTES], ciphertext[NONCE_BYTES:], None)
        except InvalidTag:
            raise SecretFileError(f"the twin refuses {key}: it did not wrap this.") from None

    def _cipher(self, key: str) -> AESGCM:
        if self.down:
            raise KeyStoreUnavailable("no answer", address="the twin")
        if key not in self.wrapping:
            raise SecretFileError(f"the twin refuses {key}: it has no such key.")
        return AESGCM(self.wrapping[key])

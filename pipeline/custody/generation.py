"""New private keys, and the address that a private key signs for."""

from __future__ import annotations

import os

from coincurve import PrivateKey
from sha3 import keccak_256

from pipeline.custody.unsealed import SECRET_BYTES
from pipeline.errors import SecretFileError


def new_secret() -> bytes:
    """32 bytes from the operating system, in the order of the curve."""
    while True:
        secret = os.urandom(SECRET_BYTES)
        try:
            PrivateKey(secret)
        except ValueError:  # 0 or above the order: about one in 2^128
            continue
        return secret


def address_of(secret: bytes) -> str:
    """The address, lower-case with 0x: the last 20 bytes of keccak of the public key (Yellow Paper, appendix F).

    Raises SecretFileError for bytes that are no private key.
    """
    public = _public(secret)
    if public is None:
        raise SecretFileError("these bytes are not a secp256k1 private key.")
    digest: str = keccak_256(public[1:]).hexdigest()
    return "0x" + digest[24:]


def _public(secret: bytes) -> bytes | None:
    if len(secret) != SECRET_BYTES:  # the library would take a shorter one, and pad it
        return None
    try:
        public: bytes = PrivateKey(secret).public_key.format(compressed=False)
    except ValueError:
        return None
    return public

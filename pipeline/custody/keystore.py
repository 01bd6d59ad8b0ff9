"""The private key of a keystore V3 (Web3 Secret Storage)."""

from __future__ import annotations

from typing import Any, Final

from pydantic import SecretBytes

from pipeline.custody.generation import address_of
from pipeline.custody.unsealed import UnsealedKey
from pipeline.errors import SecretFileError

NOTHING: Final = "Nothing was imported."


def open_keystore(name: str, keystore: Any, password: SecretBytes) -> UnsealedKey:
    """The private key of a parsed keystore. Slow by design (scrypt, PBKDF2). Raises SecretFileError with the name."""
    # Loads py_ecc, 0.4 s that the key manager should not spend before it leads.
    from eth_keyfile.keyfile import decode_keyfile_json  # noqa: PLC0415

    try:
        secret = decode_keyfile_json(keystore, password.get_secret_value())
    except ValueError as error:
        reason = "wrong password" if "MAC mismatch" in str(error) else "not a keystore V3 file"
        raise SecretFileError(f"{name}: {reason}.", hint=NOTHING) from None
    except (AttributeError, KeyError, TypeError, NotImplementedError):
        raise SecretFileError(f"{name}: not a keystore V3 file.", hint=NOTHING) from None
    try:
        return UnsealedKey(address_of(secret), secret)
    except SecretFileError as error:
        raise SecretFileError(f"{name}: {error.message}", hint=NOTHING) from None

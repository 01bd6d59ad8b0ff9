"""Private keys from keystore V3 files (Web3 Secret Storage), all of them or none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import SecretBytes

from pipeline.custody.generation import address_of
from pipeline.custody.unsealed import UnsealedKey
from pipeline.errors import SecretFileError

NOTHING: Final = "Nothing was imported."


def open_keystores(files: Sequence[Path], password_file: Path) -> list[UnsealedKey]:
    """Open every file with one password. Raises SecretFileError naming the first that cannot be opened."""
    password = _password(password_file)
    keys = [_open(file, password) for file in files]
    seen: dict[str, Path] = {}
    for file, key in zip(files, keys, strict=True):
        if key.address in seen:
            raise SecretFileError(f"{file}: holds the same key as {seen[key.address]}.", hint=NOTHING)
        seen[key.address] = file
    return keys


def _password(path: Path) -> SecretBytes:
    try:
        return SecretBytes(path.read_bytes().rstrip(b"\r\n"))
    except OSError as error:
        raise SecretFileError(f"{path}: {error.strerror}.", hint="It should hold the keystore password.") from None


def _open(path: Path, password: SecretBytes) -> UnsealedKey:
    try:
        keystore = orjson.loads(path.read_bytes())
    except OSError as error:
        raise SecretFileError(f"{path}: {error.strerror}.", hint=NOTHING) from None
    except orjson.JSONDecodeError:
        raise SecretFileError(f"{path}: is not JSON.", hint=NOTHING) from None
    return open_keystore(str(path), keystore, password)


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

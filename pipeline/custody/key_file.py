"""Private keys from users' files: keystore V3, raw hex, or a mnemonic; all of them or none.

    keystore   Web3 Secret Storage V3, scrypt or PBKDF2; one key per file, one password for all
    hex        64 hex digits per line, with or without 0x; empty lines and what follows # count for nothing
    mnemonic   BIP-39 words; keys at PATH/0, PATH/1 … of BIP-32, an optional BIP-39 passphrase

A file that others could read is refused unless it is said to be taken all the same. No error holds a key, a password or
a word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import SecretBytes

from pipeline.custody.generation import address_of
from pipeline.custody.keystore import NOTHING, open_keystore
from pipeline.custody.private_file import read_private
from pipeline.custody.unsealed import UnsealedKey
from pipeline.errors import SecretFileError, UsageError

PATH: Final = "m/44'/60'/0'/0"
"""BIP-44 for Ethereum (SLIP-44: 60), first account, external chain: what wallets derive addresses from."""

PATH_FORM: Final = re.compile(r"m(/\d{1,10}'?){0,9}")
HARDENED: Final = 2**31
"""BIP-32: an index is below this, with or without its mark of hardening."""

KEYS_MAX: Final = 50_000


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """What to open, and how."""

    files: Sequence[Path]
    open_too: bool = False  #: files that others could read or change

    def keystores(self, password_file: Path) -> list[UnsealedKey]:
        """One key per file. Slow by design. Raises SecretFileError naming the first that cannot be opened."""
        password = SecretBytes(self._read(password_file, "It should hold the keystore password.").rstrip(b"\r\n"))
        return _distinct([(str(file), open_keystore(str(file), self._json(file), password)) for file in self.files])

    def hex(self) -> list[UnsealedKey]:
        """A key per line. Raises SecretFileError naming the line of the first that is none."""
        return _distinct([named for file in self.files for named in self._lines(file)])

    def mnemonics(self, passphrase_file: Path | None, path: str, count: int) -> list[UnsealedKey]:
        """`count` keys of each file's words. Raises SecretFileError, UsageError for a path that is none."""
        require_path(path, count)
        passphrase = b""
        if passphrase_file is not None:
            passphrase = self._read(passphrase_file, "It should hold the BIP-39 passphrase.").rstrip(b"\r\n")
        at = [f"{path}/{index}" for index in range(count)]
        return _distinct([named for file in self.files for named in _derived(file, self._text(file), passphrase, at)])

    def _read(self, file: Path, hint: str = NOTHING) -> bytes:
        return read_private(file, hint=hint, open_too=self.open_too)

    def _json(self, file: Path) -> Any:
        try:
            return orjson.loads(self._read(file))
        except orjson.JSONDecodeError:
            raise SecretFileError(f"{file}: is not JSON.", hint=NOTHING) from None

    def _text(self, file: Path) -> str:
        try:
            return self._read(file).decode("utf-8")
        except UnicodeDecodeError:
            raise SecretFileError(f"{file}: is not text.", hint=NOTHING) from None

    def _lines(self, file: Path) -> list[tuple[str, UnsealedKey]]:
        numbered = enumerate(self._text(file).splitlines(), 1)
        stated = [(number, line.split("#")[0].strip()) for number, line in numbered]
        found = [(f"{file}:{number}", _hex_key(f"{file}:{number}", line)) for number, line in stated if line]
        if not found:
            raise SecretFileError(f"{file}: holds no key.", hint=NOTHING)
        return found


def require_path(path: str, count: int) -> None:
    """Raises UsageError unless PATH/0 … PATH/count-1 are paths of BIP-32."""
    indexes = [int(step.rstrip("'")) for step in path.split("/")[1:]] if PATH_FORM.fullmatch(path) else [HARDENED]
    if max([*indexes, count - 1]) >= HARDENED:
        raise UsageError(f"{path} is not a derivation path.", hint=f"For example: {PATH}")


def _hex_key(name: str, line: str) -> UnsealedKey:
    try:
        secret = bytes.fromhex(line.removeprefix("0x"))
        return UnsealedKey(address_of(secret), secret)
    except (ValueError, SecretFileError):
        raise SecretFileError(f"{name}: is not a private key in hex.", hint=NOTHING) from None


def _derived(file: Path, words: str, passphrase: bytes, paths: Sequence[str]) -> list[tuple[str, UnsealedKey]]:
    # Loads eth-account, half a second that no other command should spend.
    from eth_account.hdaccount import key_from_seed, seed_from_mnemonic  # noqa: PLC0415
    from eth_utils.exceptions import ValidationError  # noqa: PLC0415

    try:
        seed = seed_from_mnemonic(" ".join(words.split()), passphrase.decode("utf-8"))
        secrets = [key_from_seed(seed, path) for path in paths]
    except (ValidationError, ValueError):
        raise SecretFileError(f"{file}: holds no BIP-39 mnemonic.", hint=NOTHING) from None
    named = zip(paths, secrets, strict=True)
    return [(f"{file}: {path}", UnsealedKey(address_of(secret), secret)) for path, secret in named]


def _distinct(named: Sequence[tuple[str, UnsealedKey]]) -> list[UnsealedKey]:
    seen: dict[str, str] = {}
    for name, key in named:
        if key.address in seen:
            raise SecretFileError(f"{name}: holds the same key as {seen[key.address]}.", hint=NOTHING)
        seen[key.address] = name
    if len(named) > KEYS_MAX:
        raise SecretFileError(f"{len(named):,} keys at once; at most {KEYS_MAX:,}.", hint=NOTHING)
    return [key for _, key in named]

"""Private keys out of users' files: the right keys, or one line that names the file, the reason, and no secret."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from eth_account import Account

from pipeline.custody.generation import address_of
from pipeline.custody.key_file import PATH, KeyFiles
from pipeline.errors import SecretFileError, UsageError

SECRETS = [bytes([n]) * 32 for n in (1, 2, 3)]
WORDS = "test test test test test test test test test test test junk"
Account.enable_unaudited_hdwallet_features()


def private(path: Path, content: bytes | str, mode: int = 0o600) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


# ── hex ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_per_line(tmp_path: Path) -> None:
    text = f"# cold wallet\n0x{SECRETS[0].hex()}\n\n  {SECRETS[1].hex().upper()}  # second\r\n"
    files = [private(tmp_path / "a", text), private(tmp_path / "b", SECRETS[2].hex())]
    found = KeyFiles(files).hex()
    assert [(key.address, bytes(key.reveal())) for key in found] == [(address_of(s), s) for s in SECRETS]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (f"{SECRETS[0].hex()}\n{SECRETS[1].hex()[:-2]}\n", "keys:2: is not a private key in hex"),
        ("0x" + "zz" * 32, "keys:1: is not a private key in hex"),
        ("00" * 32, "keys:1: is not a private key in hex"),
        ("ff" * 32, "keys:1: is not a private key in hex"),
        ("# nothing\n", "keys: holds no key"),
        ("", "keys: holds no key"),
        (b"\xff\xfe\x00", "keys: is not text"),
        (f"{SECRETS[0].hex()}\n0x{SECRETS[0].hex()}", "keys:2: holds the same key as .*keys:1"),
    ],
)
def test_one_bad_line_stops_all(tmp_path: Path, content: bytes | str, reason: str) -> None:
    files = [private(tmp_path / "good", SECRETS[2].hex()), private(tmp_path / "keys", content)]
    with pytest.raises(SecretFileError, match=reason) as caught:
        KeyFiles(files).hex()
    assert str(caught.value).endswith("Nothing was imported.")
    assert SECRETS[1].hex()[:-2] not in "".join(traceback.format_exception(caught.value))


# ── mnemonics ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_addresses_are_those_of_wallets(tmp_path: Path) -> None:
    found = KeyFiles([private(tmp_path / "words", f" {WORDS.replace(' ', '  ')}\n")]).mnemonics(None, PATH, 3)
    assert found[0].address == "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266"  # what development nodes fund
    for index, key in enumerate(found):
        reference = Account.from_mnemonic(WORDS, account_path=f"{PATH}/{index}")
        assert (key.address, bytes(key.reveal())) == (reference.address.lower(), bytes(reference.key))


def test_path_and_passphrase_count(tmp_path: Path) -> None:
    words, passphrase = private(tmp_path / "words", WORDS), private(tmp_path / "phrase", "trezör\n")
    path = "m/44'/1'/7'"
    [key] = KeyFiles([words]).mnemonics(passphrase, path, 1)
    reference = Account.from_mnemonic(WORDS, passphrase="trezör", account_path=f"{path}/0")
    assert key.address == reference.address.lower()


@pytest.mark.parametrize("words", ["", "hello world", WORDS + " junk", WORDS.replace("junk", "test"), "junk " * 12])
def test_what_is_no_mnemonic_is_named_and_not_told(tmp_path: Path, words: str) -> None:
    with pytest.raises(SecretFileError, match="words: holds no BIP-39 mnemonic") as caught:
        KeyFiles([private(tmp_path / "words", words)]).mnemonics(None, PATH, 1)
    assert "junk" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("path", ["", "44'/60'", "m/", "m/x", "m/2147483648", "m/44h/60h", "m//0"])
def test_what_is_no_path_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(UsageError, match="is not a derivation path"):
        KeyFiles([private(tmp_path / "words", WORDS)]).mnemonics(None, path, 1)


def test_the_same_words_twice_are_refused(tmp_path: Path) -> None:
    files = [private(tmp_path / "a", WORDS), private(tmp_path / "b", WORDS)]
    with pytest.raises(SecretFileError, match=r"b: m/44'/60'/0'/0/0: holds the same key as .*a: m/"):
        KeyFiles(files).mnemonics(None, PATH, 1)


# ── who may read them ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", [0o604, 0o620, 0o602, 0o644])
@pytest.mark.parametrize(
    "read", [lambda files: files.hex(), lambda files: files.mnemonics(None, PATH, 1)], ids=["hex", "mnemonic"]
)
def test_a_file_that_others_can_use_is_refused(tmp_path: Path, mode: int, read: Callable[[KeyFiles], object]) -> None:
    with pytest.raises(SecretFileError, match=r"others could read or change it. Run: chmod 600"):
        read(KeyFiles([private(tmp_path / "keys", SECRETS[0].hex(), mode)]))


def test_it_is_taken_when_that_is_said(tmp_path: Path) -> None:
    open_ = private(tmp_path / "keys", SECRETS[0].hex(), 0o644)
    assert [key.address for key in KeyFiles([open_], open_too=True).hex()] == [address_of(SECRETS[0])]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SecretFileError, match=r"gone: No such file or directory. Nothing was imported"):
        KeyFiles([tmp_path / "gone"]).hex()


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(SecretFileError, match="is larger than 4 MiB"):
        KeyFiles([private(tmp_path / "keys", b"\n" * (4 * 1024 * 1024 + 1))]).hex()

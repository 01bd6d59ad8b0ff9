"""`oncesign authorize` beside eth-account, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from eth_account import Account
from typer.testing import CliRunner

from jobs.commands import app
from pipeline.errors import OncesignError, SecretFileError, SigningRefused, UsageError
from pipeline.ethereum.rows import authorization_list

CODE = "0x" + "44" * 20
WORDS = "test test test test test test test test test test test junk"
SECRETS = ["11" * 32, "22" * 32]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text("\n".join(SECRETS))
    file.chmod(0o600)
    return file


def test_each_key_signs_what_eth_account_signs(keys: Path) -> None:
    said = CliRunner().invoke(app, ["authorize", str(keys), "--format", "hex", "--address", CODE, "--nonce", "7"])
    assert said.exit_code == 0, said.output
    entries = json.loads(said.stdout)
    for entry, secret in zip(entries, SECRETS, strict=True):
        expected = Account.sign_authorization({"chainId": 1, "address": CODE, "nonce": 7}, secret)
        assert int(entry["chainId"], 16) == 1
        assert [int(entry[name], 16) for name in ("yParity", "r", "s")] == [expected.y_parity, expected.r, expected.s]
        assert secret not in said.output
    read = authorization_list(said.stdout)
    assert read is not None
    assert [each["nonce"] for each in read] == [7, 7]


def test_words_give_the_keys_of_a_path(tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.write_text(WORDS)
    words.chmod(0o600)
    asked = ["authorize", str(words), "--format", "mnemonic", "--path", "m/44'/60'/1'/0", "--count", "2"]
    said = CliRunner().invoke(app, [*asked, "--address", CODE, "--nonce", "7"])
    assert said.exit_code == 0, said.output
    Account.enable_unaudited_hdwallet_features()
    for index, entry in enumerate(json.loads(said.stdout)):
        key = Account.from_mnemonic(WORDS, account_path=f"m/44'/60'/1'/0/{index}").key
        expected = Account.sign_authorization({"chainId": 1, "address": CODE, "nonce": 7}, key)
        assert [int(entry[name], 16) for name in ("r", "s")] == [expected.r, expected.s]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--address", CODE], UsageError),
        (["--address", "0x44", "--format", "hex"], SigningRefused),
        (["--address", CODE, "--format", "hex", "--chain-id", str(2**64)], SigningRefused),
        (["--address", CODE, "--format", "hex", "--source", "nobody"], OncesignError),
    ],
)
def test_what_it_refuses(keys: Path, arguments: list[str], error: type[OncesignError]) -> None:
    ended = CliRunner().invoke(app, ["authorize", str(keys), "--nonce", "0", *arguments])
    assert isinstance(ended.exception, error)
    assert ended.stdout == ""


def test_a_file_that_others_can_read_is_refused(keys: Path) -> None:
    keys.chmod(0o644)
    arguments = ["authorize", str(keys), "--format", "hex", "--nonce", "0", "--address", CODE]
    assert isinstance(CliRunner().invoke(app, arguments).exception, SecretFileError)
    assert CliRunner().invoke(app, [*arguments, "--force"]).exit_code == 0

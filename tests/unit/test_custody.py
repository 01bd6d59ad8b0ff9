"""Custody: what is sealed opens only as it was sealed, and no secret is ever printed."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import io
import json
import logging
import pickle
import stat
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from eth_keyfile.keyfile import create_keyfile_json
from rich.console import Console
from rich.pretty import pretty_repr
from rich.traceback import Traceback
from sha3 import keccak_256

from pipeline.assignment.rules import Assigning
from pipeline.custody.generation import address_of, new_secret
from pipeline.custody.key_file import KeyFiles
from pipeline.custody.sealing import NONCE_BYTES, SEALED_BYTES, Kek
from pipeline.custody.unsealed import KeyCache, UnsealedKey
from pipeline.errors import SecretFileError
from pipeline.ports import Assigned
from tests.unit.assignment_records import GUARD, NOW_MS, A, key, request, view

SECRET = bytes.fromhex("4646464646464646464646464646464646464646464646464646464646464646")
ADDRESS = "0x9d8a62f656a8d1615c1294fd71e9cfb3e4855a4f"
"""EIP-155's own example."""

KEK_SECRET = bytes(range(100, 132))
PASSWORD = b"correct horse"


@pytest.fixture
def kek() -> Kek:
    return Kek(KEK_SECRET)


def file(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


# ── keys and addresses ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_address_of_a_known_key() -> None:
    assert address_of(SECRET) == ADDRESS


def test_new_keys_differ_and_sign() -> None:
    secrets = {new_secret() for _ in range(50)}
    assert len(secrets) == 50
    assert len({address_of(secret) for secret in secrets}) == 50


@pytest.mark.parametrize("wrong", [bytes(32), b"\xff" * 32, b"", b"short"])
def test_what_is_no_key_has_no_address(wrong: bytes) -> None:
    with pytest.raises(SecretFileError):
        address_of(wrong)


def test_a_draw_outside_the_curve_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = iter([bytes(32), b"\xff" * 32, SECRET])
    monkeypatch.setattr("pipeline.custody.generation.os.urandom", lambda _count: next(draws))
    assert new_secret() == SECRET


# ── sealing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_sealed_opens(kek: Kek) -> None:
    sealed = kek.seal(SECRET, ADDRESS)
    assert len(sealed) == SEALED_BYTES
    assert SECRET not in sealed
    opened = kek.unseal(sealed, ADDRESS)
    assert (bytes(opened.reveal()), opened.address) == (SECRET, ADDRESS)


def test_no_nonce_is_used_twice(kek: Kek) -> None:
    nonces = {kek.seal(SECRET, ADDRESS)[9 : 9 + NONCE_BYTES] for _ in range(200)}
    assert len(nonces) == 200


def test_another_kek_is_told_which_one_sealed_it(kek: Kek) -> None:
    other = Kek(bytes(32))
    with pytest.raises(SecretFileError, match=f"sealed by KEK {kek.id.hex()}, this one is {other.id.hex()}"):
        other.unseal(kek.seal(SECRET, ADDRESS), ADDRESS)


def test_a_sealed_key_belongs_to_its_address(kek: Kek) -> None:
    with pytest.raises(SecretFileError, match="another address"):
        kek.unseal(kek.seal(SECRET, ADDRESS), "0x" + "11" * 20)


@pytest.mark.parametrize("position", [0, 1, 8, 9, 20, 21, 52, 53, SEALED_BYTES - 1])
def test_a_changed_byte_is_noticed(kek: Kek, position: int) -> None:
    sealed = bytearray(kek.seal(SECRET, ADDRESS))
    sealed[position] ^= 1
    with pytest.raises(SecretFileError):
        kek.unseal(bytes(sealed), ADDRESS)


@pytest.mark.parametrize("wrong", [b"", b"\x01", bytes(SEALED_BYTES - 1), bytes(SEALED_BYTES + 1)])
def test_what_was_never_sealed_is_refused(kek: Kek, wrong: bytes) -> None:
    with pytest.raises(SecretFileError, match="not one of this version"):
        kek.unseal(wrong, ADDRESS)


# ── the key-encryption key's file ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("content", [KEK_SECRET, KEK_SECRET.hex().encode(), KEK_SECRET.hex().upper().encode() + b"\n"])
def test_a_kek_file_is_raw_or_hex(tmp_path: Path, kek: Kek, content: bytes) -> None:
    assert Kek.load(file(tmp_path / "kek", content)).id == kek.id


def test_a_created_kek_is_loaded_again_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "kek"
    made = Kek.create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Kek.load(path).id == made.id
    with pytest.raises(SecretFileError, match="exists"):
        Kek.create(path)
    assert Kek.load(path).unseal(made.seal(SECRET, ADDRESS), ADDRESS).address == ADDRESS


@pytest.mark.parametrize("mode", [0o604, 0o620, 0o602, 0o601, 0o666])
def test_a_kek_file_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(SecretFileError, match="chmod 600"):
        Kek.load(file(tmp_path / "kek", KEK_SECRET, mode))


def test_a_kek_file_mounted_for_a_group_is_taken(tmp_path: Path, kek: Kek) -> None:
    assert Kek.load(file(tmp_path / "kek", KEK_SECRET, 0o440)).id == kek.id


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"zz" * 32, b"ab" * 31, b"\xff" * 64])
def test_a_kek_file_of_another_size_is_refused_without_its_content(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(SecretFileError, match=f"holds {len(content)} bytes") as caught:
        Kek.load(file(tmp_path / "kek", content))
    assert content.decode("latin-1") not in str(caught.value) or not content


def test_a_kek_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SecretFileError, match="ONCESIGN_KEK_FILE"):
        Kek.load(tmp_path / "nothing")
    with pytest.raises(SecretFileError):
        Kek.load(tmp_path)
    with pytest.raises(SecretFileError):
        Kek.create(tmp_path / "nowhere" / "kek")


# ── keystores ────────────────────────────────────────────────────────────────────────────────────────────────────────


def keystore(path: Path, secret: bytes = SECRET, kdf: Literal["pbkdf2", "scrypt"] = "pbkdf2") -> Path:
    made = create_keyfile_json(secret, PASSWORD, kdf=kdf, iterations=2)
    return file(path, json.dumps(made).encode())


@pytest.fixture
def password(tmp_path: Path) -> Path:
    return file(tmp_path / "password", PASSWORD + b"\n")


@pytest.mark.parametrize("kdf", ["pbkdf2", "scrypt"])
def test_a_keystore_is_opened(tmp_path: Path, password: Path, kdf: Literal["pbkdf2", "scrypt"]) -> None:
    [opened] = KeyFiles([keystore(tmp_path / "a.json", kdf=kdf)]).keystores(password)
    assert (opened.address, bytes(opened.reveal())) == (ADDRESS, SECRET)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not json", "is not JSON"),
        (b"[]", "not a keystore V3 file"),
        (b"{}", "not a keystore V3 file"),
        (b'{"version": 1, "crypto": {}}', "not a keystore V3 file"),
        (b'{"version": 3, "crypto": {"kdf": "pbkdf2"}}', "not a keystore V3 file"),
        (b'{"version": 3, "crypto": 7}', "not a keystore V3 file"),
        (b"\xff\xfe", "is not JSON"),
    ],
)
def test_one_bad_keystore_stops_all_and_is_named(tmp_path: Path, password: Path, content: bytes, reason: str) -> None:
    files = [keystore(tmp_path / "good.json"), file(tmp_path / "bad.json", content)]
    with pytest.raises(SecretFileError, match=f"bad.json: {reason}. Nothing was imported"):
        KeyFiles(files).keystores(password)


def test_a_wrong_password_names_the_file_and_not_the_password(tmp_path: Path) -> None:
    wrong = file(tmp_path / "password", b"battery staple")
    with pytest.raises(SecretFileError, match=r"a.json: wrong password") as caught:
        KeyFiles([keystore(tmp_path / "a.json")]).keystores(wrong)
    assert "battery" not in everything_printed(caught.value)


@pytest.mark.parametrize("secret", [bytes(32), b"\x01" * 31], ids=["zero", "short"])
def test_a_keystore_that_holds_no_key_is_named(tmp_path: Path, password: Path, secret: bytes) -> None:
    path = file(tmp_path / "a.json", json.dumps(sealed_by_hand(secret)).encode())
    with pytest.raises(SecretFileError, match=r"a.json: these bytes are not a secp256k1 private key"):
        KeyFiles([path]).keystores(password)
    file(path, json.dumps(sealed_by_hand(SECRET)).encode())
    assert KeyFiles([path]).keystores(password)[0].address == ADDRESS


def sealed_by_hand(secret: bytes) -> dict[str, Any]:
    """A keystore V3 of any bytes (Web3 Secret Storage)."""
    salt, counter = bytes(16), bytes(15) + b"\x01"
    derived = hashlib.pbkdf2_hmac("sha256", PASSWORD, salt, 2, 32)
    encryptor = Cipher(AES(derived[:16]), CTR(counter)).encryptor()
    ciphertext = encryptor.update(secret) + encryptor.finalize()
    crypto = {
        "cipher": "aes-128-ctr",
        "cipherparams": {"iv": counter.hex()},
        "ciphertext": ciphertext.hex(),
        "kdf": "pbkdf2",
        "kdfparams": {"c": 2, "dklen": 32, "prf": "hmac-sha256", "salt": salt.hex()},
        "mac": keccak_256(derived[16:] + ciphertext).hexdigest(),
    }
    return {"version": 3, "crypto": crypto}


def test_the_same_key_in_two_files_is_refused(tmp_path: Path, password: Path) -> None:
    with pytest.raises(SecretFileError, match="same key"):
        KeyFiles([keystore(tmp_path / "a.json"), keystore(tmp_path / "b.json")]).keystores(password)


def test_files_that_are_not_there_are_named(tmp_path: Path, password: Path) -> None:
    with pytest.raises(SecretFileError, match=r"gone.json"):
        KeyFiles([tmp_path / "gone.json"]).keystores(password)
    with pytest.raises(SecretFileError, match=r"no-password"):
        KeyFiles([keystore(tmp_path / "a.json")]).keystores(tmp_path / "no-password")


# ── nothing prints ───────────────────────────────────────────────────────────────────────────────────────────────────


def everything_printed(error: BaseException) -> str:
    """Every way in which a traceback reaches a person, with locals."""
    below = error.__traceback__.tb_next if error.__traceback__ else None  # the test's own frame holds the secrets
    assert below is not None
    captured = traceback.TracebackException(type(error), error, below, capture_locals=True)
    drawn = Console(file=io.StringIO(), width=400)
    drawn.print(Traceback.from_exception(type(error), error, below, show_locals=True))
    assert isinstance(drawn.file, io.StringIO)
    return "".join(captured.format()) + drawn.file.getvalue() + repr(error) + repr(error.__dict__)


def forms(secret: bytes) -> list[str]:
    """How a secret could look in a text."""
    return [secret.hex(), repr(secret)[2:-1], str(list(secret)), str(int.from_bytes(secret, "big"))]


def assert_silent(text: str, *secrets: bytes) -> None:
    for secret in secrets:
        for form in forms(secret):
            assert form not in text
            assert form.upper() not in text


PRINTERS: list[Callable[[Any], str]] = [
    repr,
    str,
    "{}".format,
    "{!r}".format,
    "{!s}".format,
    lambda secret: f"{secret}",
    lambda secret: "%s %r" % (secret, secret),  # noqa: UP031 - one more way of printing
    pretty_repr,
    lambda secret: repr([secret, {"key": secret}]),
    lambda secret: repr(getattr(secret, "__dict__", {})),
]


@pytest.mark.parametrize("printer", PRINTERS)
def test_neither_key_nor_kek_nor_cache_prints(kek: Kek, printer: Callable[[Any], str]) -> None:
    unsealed = UnsealedKey(ADDRESS, SECRET)
    cache = KeyCache()
    cache.put(unsealed)
    for holder in (unsealed, kek, cache):
        assert_silent(printer(holder), SECRET, KEK_SECRET)


def test_an_unsealed_key_names_its_address() -> None:
    assert repr(UnsealedKey(ADDRESS, SECRET)) == f"<UnsealedKey {ADDRESS}>"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_neither_key_nor_kek_is_pickled(kek: Kek, protocol: int) -> None:
    for secret in (UnsealedKey(ADDRESS, SECRET), kek, {"deep": [UnsealedKey(ADDRESS, SECRET)]}):
        with pytest.raises(TypeError, match="stays in its process"):
            pickle.dumps(secret, protocol)


def test_neither_key_nor_kek_is_copied(kek: Kek) -> None:
    for secret in (UnsealedKey(ADDRESS, SECRET), kek):
        for copier in (copy.copy, copy.deepcopy):
            with pytest.raises(TypeError):
                copier(secret)
        assert not hasattr(secret, "__dict__")
        with pytest.raises(TypeError):
            vars(secret)


def test_a_wrong_length_does_not_print_what_it_was_given() -> None:
    with pytest.raises(ValueError, match="32 bytes") as caught:
        UnsealedKey(ADDRESS, SECRET + b"!")
    assert_silent(str(caught.value), SECRET)


def signs_and_fails(kek: Kek, sealed: bytes) -> None:
    unsealed = kek.unseal(sealed, ADDRESS)
    raise RuntimeError(f"failed with {unsealed} of {kek}", unsealed)


def test_a_traceback_through_a_signer_is_silent(kek: Kek) -> None:
    with pytest.raises(RuntimeError) as caught:
        signs_and_fails(kek, kek.seal(SECRET, ADDRESS))
    printed = everything_printed(caught.value)
    assert ADDRESS in printed
    assert_silent(printed, SECRET, KEK_SECRET)


def test_the_errors_of_sealing_are_silent(kek: Kek, tmp_path: Path) -> None:
    sealed = kek.seal(SECRET, ADDRESS)
    attempts: list[Callable[[], object]] = [
        lambda: Kek(bytes(32)).unseal(sealed, ADDRESS),
        lambda: kek.unseal(sealed, "0x" + "11" * 20),
        lambda: kek.unseal(sealed[:-1], ADDRESS),
        lambda: Kek.load(file(tmp_path / "open", KEK_SECRET, 0o644)),
        lambda: Kek.load(file(tmp_path / "longer", KEK_SECRET + b"!")),
        lambda: Kek.load(file(tmp_path / "hex", KEK_SECRET.hex().encode() + b"!")),
    ]
    for attempt in attempts:
        with pytest.raises(SecretFileError) as caught:
            attempt()
        assert_silent(everything_printed(caught.value), SECRET, KEK_SECRET)
        assert_silent(pickle.dumps(caught.value).decode("latin-1"), SECRET, KEK_SECRET)


def test_logging_is_silent(kek: Kek, caplog: pytest.LogCaptureFixture) -> None:
    unsealed = UnsealedKey(ADDRESS, SECRET)
    try:
        signs_and_fails(kek, kek.seal(SECRET, ADDRESS))
    except RuntimeError:
        logging.getLogger("custody").exception("with %s and %r", unsealed, kek, extra={"unsealed": unsealed})
    assert ADDRESS in caplog.text
    assert_silent(caplog.text + repr(caplog.records[0].__dict__), SECRET, KEK_SECRET)


def test_an_unhandled_error_of_the_event_loop_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    async def fails(unsealed: UnsealedKey) -> None:
        raise RuntimeError(unsealed)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(fails(UnsealedKey(ADDRESS, SECRET)))
        await asyncio.wait([task])
        loop.call_exception_handler({"message": "unhandled", "exception": task.exception(), "task": task})

    asyncio.run(main(), debug=True)
    assert ADDRESS in caplog.text
    assert_silent(caplog.text, SECRET)


def test_what_travels_to_a_signer_prints_no_ciphertext(kek: Kek) -> None:
    held = view(key(1))
    sealed = kek.seal(SECRET, ADDRESS)
    held.sealed[key(1).address] = sealed
    [reply] = Assigning(held, GUARD, NOW_MS, {}).replies([request(A, 1)])
    assert isinstance(reply, Assigned)
    assert reply.sealed == sealed
    assert_silent(repr(reply) + str(reply), sealed, SECRET)


def test_a_traceback_through_an_import_is_silent(tmp_path: Path, password: Path) -> None:
    with pytest.raises(SecretFileError) as caught:
        KeyFiles([keystore(tmp_path / "a.json"), keystore(tmp_path / "b.json")]).keystores(password)
    assert_silent(everything_printed(caught.value), SECRET)


# ── wiping ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_wiped_key_is_zero() -> None:
    unsealed = UnsealedKey(ADDRESS, SECRET)
    held = unsealed.reveal()
    unsealed.wipe()
    assert held == bytes(32)


def test_the_cache_keeps_what_was_used_last_and_wipes_the_rest() -> None:
    keys = [UnsealedKey(f"0x{i:040x}", SECRET) for i in range(4)]
    cache = KeyCache(most=2)
    cache.put(keys[0])
    cache.put(keys[1])
    assert cache.get(keys[0].address) is keys[0]
    cache.put(keys[2])
    assert cache.get(keys[1].address) is None
    assert keys[1].reveal() == bytes(32)
    assert cache.get(keys[0].address) is keys[0]
    assert keys[0].reveal() == SECRET


def test_a_key_that_is_opened_anew_wipes_the_one_before() -> None:
    first, second = UnsealedKey(ADDRESS, SECRET), UnsealedKey(ADDRESS, SECRET)
    cache = KeyCache(most=2)
    cache.put(first)
    cache.put(first)
    assert first.reveal() == SECRET
    cache.put(second)
    assert first.reveal() == bytes(32)
    assert cache.get(ADDRESS) is second


def test_whoever_has_read_a_kek_leaves_no_core_dump(tmp_path: Path) -> None:
    Kek.create(tmp_path / "kek")
    program = (
        "import resource, sys; from pathlib import Path; from pipeline.custody.sealing import Kek; "
        "Kek.load(Path(sys.argv[1])); print(resource.getrlimit(resource.RLIMIT_CORE))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "kek")], capture_output=True, check=True)
    assert done.stdout.decode().strip() == "(0, 0)"

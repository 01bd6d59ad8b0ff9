"""What wraps a KEK: the twin, and AWS KMS as moto serves it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from pipeline.custody import envelope
from pipeline.custody.generation import address_of
from pipeline.custody.kek_ring import KekRing, next_of
from pipeline.custody.sealing import KEK_BYTES, Kek
from pipeline.errors import KeyStoreUnavailable, SecretFileError
from pipeline.local.server import LOOPBACK, free_port
from pipeline.testing.key_store import TwinKeyStore

SECRET = b"\x11" * 32
ADDRESS = address_of(SECRET)
NOBODY = "http://127.0.0.1:1"


@pytest.fixture(scope="module")
def moto_server() -> Iterator[str]:
    server = ThreadedMotoServer(LOOPBACK, free_port(), verbose=False)
    server.start()
    yield f"http://{LOOPBACK}:{server.get_host_and_port()[1]}"
    server.stop()


class Store:
    """One kind of key store, with two keys."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch, address: str = "") -> None:
        self.name = name
        self._monkeypatch = monkeypatch
        if not address:
            monkeypatch.setitem(envelope.BUILT_IN, "twin", ("pipeline.testing.key_store", "TwinKeyStore"))
            monkeypatch.setattr(TwinKeyStore, "wrapping", {"first": os.urandom(32), "second": os.urandom(32)})
            self.keys = ["first", "second"]
            return
        for variable, value in {
            "AWS_ENDPOINT_URL_KMS": address,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "eu-central-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            monkeypatch.setenv(variable, value)
        kms = boto3.client("kms")
        self.keys = [kms.create_key()["KeyMetadata"]["Arn"] for _ in range(2)]

    def go_down(self) -> None:
        self._monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", NOBODY)
        self._monkeypatch.setattr(TwinKeyStore, "down", True)


@pytest.fixture(params=["twin", pytest.param("aws-kms", marks=pytest.mark.integration)])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Store:
    address = "" if request.param == "twin" else request.getfixturevalue("moto_server")
    return Store(request.param, monkeypatch, address)


def test_what_is_wrapped_is_unwrapped(store: Store) -> None:
    [key, _] = store.keys
    made = envelope.store_of(store.name)
    secret, ciphertext = made.new(key)
    other, _ = made.new(key)
    assert len(secret) == KEK_BYTES
    assert secret not in ciphertext
    assert other != secret
    assert envelope.store_of(store.name).unwrap(key, ciphertext) == secret


def test_what_another_key_wrapped_is_refused(store: Store) -> None:
    first, second = store.keys
    made = envelope.store_of(store.name)
    _, ciphertext = made.new(first)
    for key, wrapped in ((second, ciphertext), (first, ciphertext[:-1] + b"x"), ("no-such-key", ciphertext)):
        with pytest.raises(SecretFileError, match="refuses"):
            made.unwrap(key, wrapped)
    with pytest.raises(SecretFileError, match="refuses no-such-key"):
        made.new("no-such-key")


def test_a_store_that_is_away_is_named(store: Store) -> None:
    [key, _] = store.keys
    _, ciphertext = envelope.store_of(store.name).new(key)
    store.go_down()
    with pytest.raises(KeyStoreUnavailable) as caught:
        envelope.store_of(store.name).unwrap(key, ciphertext)
    assert caught.value.exit_code == 3


def test_a_pool_moves_from_a_file_to_a_store(store: Store, tmp_path: Path) -> None:
    Kek.create(tmp_path / "kek")
    before = KekRing(tmp_path / "kek").seal(SECRET, ADDRESS)
    made = Kek.wrapped(next_of(tmp_path / "kek"), store.name, store.keys[0])
    ring = KekRing(tmp_path / "kek")
    assert ring.id == made.id
    after = ring.resealed(before, ADDRESS)
    next_of(tmp_path / "kek").replace(tmp_path / "kek")
    assert bytes(KekRing(tmp_path / "kek").unseal(after, ADDRESS).reveal()) == SECRET
    fields = json.loads((tmp_path / "kek").read_text())
    assert (fields["store"], fields["key"]) == (store.name, store.keys[0])
    assert (tmp_path / "kek").stat().st_mode & 0o777 == 0o600
    store.go_down()
    with pytest.raises(KeyStoreUnavailable):
        KekRing(tmp_path / "kek")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{}", "is not an envelope"),
        (b'{"store": "twin", "key": "first"}', "is not an envelope"),
        (b'{"store": "twin", "key": "first", "ciphertext": "!"}', "is not an envelope"),
        (b'{"store": "twin", "key": 1, "ciphertext": ""}', "is not an envelope"),
        (b"{", "is not an envelope"),
        (
            b'{"store": "attic", "key": "first", "ciphertext": ""}',
            "there is no key store called 'attic'. Known: aws-kms",
        ),
    ],
)
def test_a_garbled_envelope_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "kek").write_bytes(content)
    (tmp_path / "kek").chmod(0o600)
    with pytest.raises(SecretFileError, match=said):
        Kek.load(tmp_path / "kek")


@pytest.mark.parametrize("beginning", [b"{", b"\n {", b"[", b"\xef\xbb\xbf"])
def test_32_raw_bytes_are_a_kek_whatever_they_begin_with(tmp_path: Path, beginning: bytes) -> None:
    secret = beginning.ljust(KEK_BYTES, b"k")
    (tmp_path / "kek").write_bytes(secret)
    (tmp_path / "kek").chmod(0o600)
    assert Kek.load(tmp_path / "kek").id == Kek(secret).id

"""After a whole run, no file of any server or process holds a private key or a key-encryption key."""

from __future__ import annotations

import base64
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from pipeline.custody.generation import address_of

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

KEYS = 4
ROWS = 3_000
KEK_FILES = {"kek", "kek.previous"}
FORMS = 6
"""Of a secret: raw, hex in both cases, base64 at each of three places in what it is part of."""


@dataclass
class Stack:
    """A data directory of its own, and commands in it."""

    folder: Path

    def run(self, *arguments: str, ok: bool = True) -> str:
        """Its standard output."""
        argv = [sys.executable, "-m", "jobs.app", *arguments]
        env = os.environ | {"ONCESIGN_DATA_DIR": str(self.folder)}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0 or not ok, (arguments, done.stderr[-2000:])
        return done.stdout


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    made = Stack(tmp_path / "data")
    yield made
    made.run("down", ok=False)


def forms(secret: bytes) -> set[bytes]:
    """In which it would be found whatever wrote it."""
    return {secret, secret.hex().encode(), secret.hex().upper().encode(), *(in_base64(secret, at) for at in range(3))}


def in_base64(secret: bytes, at: int) -> bytes:
    """The characters that the secret alone decides when it comes after `at` other bytes (RFC 4648)."""
    return base64.b64encode(bytes(at) + secret)[-(-8 * at // 6) : 8 * (at + len(secret)) // 6]


def holders(folder: Path, needles: set[bytes]) -> set[str]:
    """Files below it that hold any of them."""
    found = set()
    for file in sorted(folder.rglob("*")):
        if file.is_symlink() or not file.is_file() or not file.stat().st_size:
            continue
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if any(content.find(needle) >= 0 for needle in needles):
                found.add(str(file.relative_to(folder)))
    return found


def test_no_file_holds_a_secret(stack: Stack, tmp_path: Path) -> None:
    secrets = [os.urandom(32) for _ in range(KEYS)]
    keys = tmp_path / "keys"
    keys.write_text("\n".join(secret.hex() for secret in secrets))
    keys.chmod(0o600)
    stack.run("up")
    stack.run("migrate")
    stack.run("keys", "import", str(keys), "--format", "hex")
    stack.run("stock", "--count", str(ROWS))
    stack.run("sign", "--until-drained")
    stack.run("keys", "rotate-kek")
    stack.run("stock", "--count", str(ROWS), "--seed", "2")
    stack.run("sign", "--until-drained")
    stack.run("verify")
    stack.run("export", str(tmp_path / "rows.jsonl"))
    stack.run("down")
    keks = {bytes.fromhex((stack.folder / name).read_text()) for name in KEK_FILES}
    assert len(keks) == len(KEK_FILES)
    assert holders(stack.folder, forms(keks.pop()) | forms(keks.pop())) == KEK_FILES
    private_keys = {form for secret in secrets for form in forms(secret)}
    assert len(private_keys) == KEYS * FORMS
    assert holders(stack.folder, private_keys) == set()
    assert_the_search_sees_everything(stack.folder, tmp_path, secrets[0])


def assert_the_search_sees_everything(folder: Path, tmp_path: Path, secret: bytes) -> None:
    """What is no secret is found where it must be: in etcd, Postgres, Kafka, and the logs of actors."""
    address = address_of(secret)
    assert {name.split("/")[0] for name in holders(folder, {address.encode()})} >= {"etcd"}
    assert {name.split("/")[0] for name in holders(folder, {bytes.fromhex(address[2:])})} >= {"postgres"}
    row = orjson.loads((tmp_path / "rows.jsonl").read_bytes().splitlines()[0])
    assert {name.split("/")[0] for name in holders(folder, {bytes.fromhex(row["raw"].removeprefix("0x"))})} >= {"kafka"}
    assert {name.split("/")[0] for name in holders(folder, {b"key-manager"})} >= {"ray"}
    (folder / "planted").write_bytes(b"x" + base64.b64encode(b"y" + secret) + b"x")
    assert holders(folder, forms(secret)) == {"planted"}

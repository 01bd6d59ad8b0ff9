"""The README's commands, run one after the other as a newcomer would."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.desk import etcd_view
from pipeline.custody.generation import address_of
from pipeline.custody.kek_ring import KekRing
from pipeline.local.resolve import resolve
from pipeline.settings import Settings
from tests.secret_search import holders, holders_of

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(400)]


def blocks(page: Path) -> list[str]:
    """The commands of a page's sh blocks."""
    found = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in found for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    made = Newcomer(tmp_path_factory.mktemp("newcomer"))
    yield made
    made.run("down", ok=False)


@dataclass
class Newcomer:
    """Somebody in a folder of their own, who types commands."""

    folder: Path
    private_keys: list[bytes] = field(default_factory=list)

    @property
    def data(self) -> Path:
        return self.folder / "a data directory"

    def run(self, *arguments: str, ok: bool = True) -> str:
        """Standard output."""
        env = os.environ | {"ONCESIGN_DATA_DIR": str(self.data), "COLUMNS": "160"}
        argv = [sys.executable, "-m", "jobs.app", *arguments]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=200, check=False, cwd=self.folder)
        assert done.returncode == 0 or not ok, (arguments, done.stdout[-500:], done.stderr[-2000:])
        return done.stdout

    def opened(self) -> list[bytes]:
        """Every private key of the pool."""
        keks = KekRing(self.data / "kek")

        async def read() -> list[bytes]:
            async with etcd_view(resolve(Settings(data_dir=self.data))) as view:
                keys = [keks.unseal(sealed, address) for address, sealed in view.sealed.items()]
                return [bytes(key.reveal()) for key in keys]

        return asyncio.run(read())


def test_every_command_of_the_readme_works(newcomer: Newcomer) -> None:
    commands = [line for line in blocks(ROOT / "README.md") if line.startswith("oncesign ")]
    assert len(commands) > 10
    for line in commands:
        if line == "oncesign down":
            newcomer.run("keys", "rotate-kek")  # for the test below
            newcomer.private_keys = newcomer.opened()
        output = newcomer.run(*line.split()[1:])
        if line == "oncesign verify":
            assert re.search(r"violations\s+0\n", output), output
        if line.startswith("oncesign tail"):
            assert len(output.splitlines()) == 3
        if line.startswith("oncesign tx"):
            assert "outcome" in output
    assert sorted(path.name for path in newcomer.folder.iterdir()) == ["a data directory", "payouts.parquet"]


def test_no_file_of_it_holds_a_secret(newcomer: Newcomer) -> None:
    """etcd's, Postgres' and Kafka's files, Ray's session directory, every log: no private key and no other's KEK."""
    assert len(newcomer.private_keys) > 4
    assert holders(newcomer.data, newcomer.private_keys) == set()
    keks = [bytes.fromhex((newcomer.data / name).read_text()) for name in ("kek", "kek.previous")]
    assert holders(newcomer.data, keks) == {"kek", "kek.previous"}
    assert_the_search_sees_everything(newcomer)


def assert_the_search_sees_everything(newcomer: Newcomer) -> None:
    """What is no secret is found where it must be: in etcd, Postgres, Kafka, and the logs of actors."""
    key = newcomer.private_keys[0]
    address = address_of(key)
    row = pq.read_table(newcomer.folder / "payouts.parquet", columns=["raw"]).column("raw").drop_null()[0].as_py()
    told = {"etcd": address.encode(), "postgres": bytes.fromhex(address[2:]), "kafka": row, "ray": b"key-manager"}
    for part, needle in told.items():
        assert part in {file.split("/")[0] for file in holders_of(newcomer.data, {needle})}, part
    (newcomer.data / "planted").write_bytes(b"x" + base64.b64encode(b"y" + key) + b"x")
    assert holders(newcomer.data, [key]) == {"planted"}


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_other_commands_are_make_targets(page: Path) -> None:
    others = [line for line in blocks(page) if not line.startswith("oncesign ")]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in others:
        program, target = line.split()[:2]
        assert program == "make"
        assert f"\n{target}:" in makefile

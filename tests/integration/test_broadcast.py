"""Ten thousand signed transactions of every type, sent to a real node, mined, and compared with the source rows."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from actors.composition import verifying
from pipeline.adapters.postgres import connection_string
from pipeline.custody.sealing import Kek
from pipeline.settings import ReaderSettings, Settings, SourceSettings
from pipeline.stock.row import Row, insert
from tests.command_line import environment
from tests.dev_node import BALANCE, CHAIN_ID, DevNode, anvil, geth
from tests.pipeline_run import running

pytestmark = [pytest.mark.integration, pytest.mark.timeout(280)]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "broadcast.md"
ROWS = 10_000
KEYS = 100
BATCH_ROWS = 50
"""So that every sender has some: 16 of each can be in flight."""

GWEI = 10**9
CREATES = bytes.fromhex("6001600c60003960016000f3fe")  # stores one byte of code
REVERTS = bytes.fromhex("60006000fd")
COMMAND_TIMEOUT_S = 200
SECRET = "key=that-a-provider-gave"
IN_SHARES = {"transfer": 70, "data": 15, "listed": 10, "creates": 3, "reverts": 2}


@pytest.fixture
def settings(deployed: Settings) -> Settings:
    changes = {
        "sources": [SourceSettings(chain_id=CHAIN_ID, shards=8)],
        "reader": ReaderSettings(batch_rows_max=BATCH_ROWS),
    }
    Kek.create(deployed.kek_path)
    return deployed.model_copy(update=changes)


def rows(count: int) -> Iterator[Row]:
    """Each to a recipient of its own, so that a balance tells of one row."""
    rng = random.Random(5)  # noqa: S311 - rows, not keys
    for number in range(count):
        shape = rng.choices([*IN_SHARES], weights=[*IN_SHARES.values()])[0]
        kind = rng.choice([1, 2]) if shape == "listed" else rng.choice([0, 1, 2])
        to: bytes | None = (number + 1).to_bytes(4, "big") + rng.randbytes(16)
        value, data, gas = rng.randrange(1, 10**15), b"", 21_000
        listed = None
        if shape == "data":
            data, gas = rng.randbytes(rng.randrange(1, 200)), 40_000
        if shape == "listed":
            listed = json.dumps([{"address": "0x" + rng.randbytes(20).hex(), "storageKeys": ["0x" + "11" * 32]}])
            gas = 40_000
        if shape in ("creates", "reverts"):
            to, data, value, gas = None, CREATES if shape == "creates" else REVERTS, 0, 120_000
        tip = 2 * GWEI if kind == 2 else None
        yield Row(kind, CHAIN_ID, to, value, gas, 500 * GWEI, tip, data, listed)


async def signed(settings: Settings) -> list[str]:
    """All of them signed and verified; the senders."""
    insert(settings.postgres, "transactions", rows(ROWS))
    async with running(settings, Kek.load(settings.kek_path), KEYS) as run:
        await run.until(ROWS, timeout_s=120)
        keys = [key.address for key in await run.manager.list_keys()]
    async with verifying.verifier(settings) as verifier:
        await verifier.catch_up()
        assert await verifier.reconcile() == []
    return keys


class Broadcasting:
    """`oncesign broadcast` in the background."""

    def __init__(self, settings: Settings, node: DevNode, *options: str) -> None:
        argv = [sys.executable, "-m", "jobs.app", "broadcast", "--rpc", node.url, "--json", *options]
        env = os.environ | environment(settings)
        self.process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def end(self, code: int = 0) -> dict[str, Any]:
        said, told = self.process.communicate(timeout=COMMAND_TIMEOUT_S)
        assert self.process.returncode == code, told[-3000:]
        found: dict[str, Any] = json.loads(said)
        return found


def options_of_the_page() -> list[str]:
    """As docs/broadcast.md has the command, for another URL."""
    [line] = re.findall(r"^oncesign broadcast --rpc \S+ (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return str(line).split()


def table(settings: Settings, query: str) -> list[dict[str, Any]]:
    with psycopg.connect(connection_string(settings.postgres)) as connection:
        cursor = connection.execute(query)
        names = [column.name for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def mined(settings: Settings) -> int:
    [found] = table(settings, "SELECT count(*) FROM broadcasts WHERE status = 'mined'")
    return int(found["count"])


def killed_in_the_middle(settings: Settings, node: DevNode) -> None:
    """A broadcaster ends with a quarter mined and much in flight."""
    running = Broadcasting(settings, node, "--confirmations", "0")
    deadline_s = time.monotonic() + COMMAND_TIMEOUT_S
    while mined(settings) < ROWS // 4:
        assert running.process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.2)
    running.process.send_signal(signal.SIGKILL)
    running.process.communicate()
    assert mined(settings) < ROWS


RAISED = ["accountslots=64", "globalslots=20000", "accountqueue=1000", "globalqueue=20000"]
MORE_IN_FLIGHT = {"ONCESIGN_BROADCAST__IN_FLIGHT_PER_SENDER": "64", "ONCESIGN_BROADCAST__IN_FLIGHT_MAX": "10000"}
NODES: dict[str, tuple[Callable[..., AbstractContextManager[DevNode]], list[str], dict[str, str]]] = {
    "anvil": (anvil, [], {}),
    "geth": (geth, [], {}),
    "geth with a larger pool": (geth, [f"--txpool.{bound}" for bound in RAISED], MORE_IN_FLIGHT),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        asked = metafunc.config.getoption("--node")
        metafunc.parametrize("kind", [kind for kind in NODES if kind.startswith(asked)])


async def test_ten_thousand_are_mined_as_the_source_has_them(
    kind: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, options, environ = NODES[kind]
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    senders = await signed(settings)
    with start(tmp_path, senders, *options) as node:
        killed_in_the_middle(settings, node)
        summary = Broadcasting(settings, node, *options_of_the_page()).end()
        assert ROWS // 4 < summary["mined"] <= ROWS  # what was mined of a batch that was not whole is looked at again
        assert (summary["failed"], summary["not_verified"], summary["refused"]) == (0, 0, {})
        assert compare(settings, node, senders) == Counter(mined=ROWS)
        again = Broadcasting(settings, node, "--until-mined", "--confirmations", "0").end()
        assert (again["sent"], again["mined"]) == (0, 0)


FEW = 200


def test_the_pipeline_broadcasts_when_it_has_a_node(settings: Settings, tmp_path: Path) -> None:
    """An actor beside the verifier; the URL is in a file, and in nothing that is told."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv, env = [sys.executable, "-m", "jobs.app", *arguments], os.environ | environment(settings)
        done = subprocess.run(
            argv, env=env | {"ONCESIGN_BROADCAST__RPC_FILE": str(tmp_path / "rpc")}, capture_output=True, text=True,
            timeout=COMMAND_TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    senders = run("keys", "create", "--count", "4").stdout.split()
    insert(settings.postgres, "transactions", rows(FEW))
    with anvil(tmp_path, senders) as node:
        (tmp_path / "rpc").write_text(f"{node.url}/?{SECRET}\n")
        try:
            progress = run("sign", "--until-drained", "--json")
            summary = run("broadcast", "--until-mined", "--confirmations", "0", "--json")
        finally:
            run("down")
    assert '"broadcaster":' in progress.stderr
    assert sum(row["sends"] for row in table(settings, "SELECT sends FROM broadcasts")) == FEW
    assert FEW - json.loads(summary.stdout)["sent"] > 0, "some were sent by the actor"
    assert mined(settings) == FEW
    told = [progress.stderr, summary.stderr, *(log.read_text("utf-8", "replace") for log in tmp_path.rglob("*.log"))]
    assert not [text for text in told if SECRET in text]


def compare(settings: Settings, node: DevNode, senders: list[str]) -> Counter[str]:
    """Receipts, transactions, nonces and balances with the source rows and with what was recorded."""
    found: Counter[str] = Counter()
    recorded = table(
        settings,
        "SELECT t.*, b.nonce, b.sender, b.hash, b.status, b.block_number, b.succeeded, b.gas_used"
        " FROM transactions t LEFT JOIN broadcasts b ON (b.source, b.tx_id) = ('payouts', t.id)",
    )
    hashes = [["0x" + row["hash"].hex()] for row in recorded]
    transactions = node.calls("eth_getTransactionByHash", hashes)
    receipts = node.calls("eth_getTransactionReceipt", hashes)
    spent: Counter[str] = Counter()
    for row, transaction, receipt in zip(recorded, transactions, receipts, strict=True):
        assert as_sent(row) == as_mined(transaction)
        assert (row["block_number"], row["succeeded"], int(row["gas_used"])) == (
            int(receipt["blockNumber"], 16), receipt["status"] == "0x1", int(receipt["gasUsed"], 16),
        )  # fmt: skip
        assert row["succeeded"] == (row["data"] != REVERTS)
        spent[transaction["from"]] += int(row["value"]) + int(receipt["gasUsed"], 16) * int(
            receipt["effectiveGasPrice"], 16
        )
        found[row["status"]] += 1
    paid = {"0x" + row["to"].hex(): int(row["value"]) for row in recorded if row["to"] is not None}
    expected = paid | {sender: BALANCE - spent[sender] for sender in senders}
    balances = node.calls("eth_getBalance", [[address, "latest"] for address in expected])
    assert [int(balance, 16) for balance in balances] == list(expected.values())
    counts = Counter("0x" + row["sender"].hex() for row in recorded)
    nonces = node.calls("eth_getTransactionCount", [[sender, "latest"] for sender in senders])
    assert [int(nonce, 16) for nonce in nonces] == [counts[sender] for sender in senders]
    return found


def as_sent(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": row["type"],
        "to": "0x" + row["to"].hex() if row["to"] else None,
        "value": int(row["value"]),
        "gas": row["gas_limit"],
        "input": "0x" + row["data"].hex(),
        "nonce": int(row["nonce"]),
        "from": "0x" + row["sender"].hex(),
        "fee": int(row["max_fee_per_gas"]),
        "listed": [entry["address"] for entry in row["access_list"] or ()],
    }


def as_mined(transaction: dict[str, Any]) -> dict[str, Any]:
    numbers = {name: int(transaction[name], 16) for name in ("type", "value", "gas", "nonce")}
    fee = transaction["maxFeePerGas"] if numbers["type"] == 2 else transaction["gasPrice"]
    listed = [entry["address"].lower() for entry in transaction.get("accessList") or ()]
    texts = {name: transaction[name] for name in ("to", "from", "input")}
    return numbers | texts | {"fee": int(fee, 16), "listed": listed}

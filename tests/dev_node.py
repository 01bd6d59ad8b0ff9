"""Real Ethereum nodes in development mode, each a process of this machine with a genesis of ours.

anvil comes from its npm package as pinned beside this file; go-ethereum is built from its Go module.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from pipeline.errors import RuntimeFault
from pipeline.local.cache import cache_dir, progress
from pipeline.local.server import LOOPBACK, free_port, log_tail, made_whole
from pipeline.local.toolchain import program

PINS: Final = Path(__file__).with_name("ethereum_node")
CHAIN_ID: Final = 1337
ETHER: Final = 10**18
BALANCE: Final = 10_000 * ETHER
GAS_LIMIT: Final = 60_000_000
START_TIMEOUT_S: Final = 30.0
BLOCK_S: Final = 1
CALLS_MAX: Final = 500
FORKS: Final = (
    "homesteadBlock", "eip150Block", "eip155Block", "eip158Block", "byzantiumBlock", "constantinopleBlock",
    "petersburgBlock", "istanbulBlock", "berlinBlock", "londonBlock", "shanghaiTime", "cancunTime",
)  # fmt: skip


class DevNode:
    """A running node."""

    def __init__(self, url: str) -> None:
        self.url = url

    def call(self, method: str, *params: Any) -> Any:
        [found] = self.calls(method, [params])
        return found

    def calls(self, method: str, params: Sequence[Sequence[Any]]) -> list[Any]:
        """The same method for each of these parameters."""
        found: list[Any] = []
        for first in range(0, len(params), CALLS_MAX):  # of our own http URL
            some = params[first : first + CALLS_MAX]
            calls = [{"jsonrpc": "2.0", "id": n, "method": method, "params": list(p)} for n, p in enumerate(some)]
            request = urllib.request.Request(  # noqa: S310 - as above
                self.url, json.dumps(calls).encode(), headers={"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - as above
                answers = sorted(json.load(response), key=lambda answer: int(answer["id"]))
            found += [answer["result"] for answer in answers]
        return found


@contextmanager
def anvil(folder: Path, senders: Sequence[str]) -> Iterator[DevNode]:
    """With a block each second; its automine stands still on thousands."""
    genesis = folder / "genesis.json"
    genesis.write_text(json.dumps(_genesis(senders)))
    argv = [str(anvil_binary()), "--init", str(genesis), "--chain-id", str(CHAIN_ID), "--accounts", "0"]
    argv += ["--block-time", str(BLOCK_S), "--gas-limit", str(GAS_LIMIT), "--host", LOOPBACK]
    with _running("anvil", folder, [*argv, "--port"]) as node:
        yield node


def anvil_binary() -> Path:
    """Installed once. Raises RuntimeFault."""
    lock = (PINS / "package-lock.json").read_bytes()
    folder = cache_dir() / "anvil" / sha256(lock).hexdigest()[:16]
    if not folder.exists():
        with progress("installing anvil from its npm package, once"), made_whole(folder) as draft:
            for file in PINS.glob("package*.json"):
                shutil.copy(file, draft)
            _install(draft)
    [binary] = folder.glob("node_modules/@foundry-rs/anvil-*/bin/anvil")
    return binary


def _install(folder: Path) -> None:
    npm = Path(sys.executable).with_name("npm")
    argv = [str(npm), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--cache", str(folder / "npm")]
    path = f"{npm.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run(
        argv, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode != 0:
        raise RuntimeFault(f"anvil could not be installed: {done.stderr.strip()[-600:]}")
    shutil.rmtree(folder / "npm", ignore_errors=True)


@contextmanager
def geth(folder: Path, senders: Sequence[str], *options: str) -> Iterator[DevNode]:
    """With a block each second; `options` beside those that keep it to this machine."""
    genesis, data = folder / "genesis.json", folder / "geth"
    genesis.write_text(json.dumps(_genesis(senders)))
    argv = [str(geth_binary()), "--datadir", str(data)]
    subprocess.run([*argv, "init", str(genesis)], check=True, capture_output=True, timeout=60)
    argv += ["--dev", "--dev.period", str(BLOCK_S), "--miner.gaslimit", str(GAS_LIMIT), "--nodiscover"]
    argv += ["--maxpeers", "0", "--ipcdisable", "--port", "0", "--authrpc.port", str(free_port())]
    with _running("geth", folder, [*argv, *options, "--http", "--http.addr", LOOPBACK, "--http.port"]) as node:
        yield node


def geth_binary() -> Path:
    """Built once. Raises RuntimeFault."""
    contents = {name: (PINS / name).read_bytes() for name in ("go.mod", "go.sum")}
    what = "building go-ethereum from its Go module, once (a few minutes)"
    return program("geth", contents, what, "github.com/ethereum/go-ethereum/cmd/geth")


def _genesis(senders: Sequence[str]) -> dict[str, Any]:
    """Every fork up to Cancun, from the first block on (Prague wants its system contracts), and accounts with money."""
    return {
        "config": {
            "chainId": CHAIN_ID,
            **dict.fromkeys(FORKS, 0),
            "terminalTotalDifficulty": 0,
            "blobSchedule": {"cancun": {"target": 3, "max": 6, "baseFeeUpdateFraction": 3_338_477}},
        },
        "difficulty": "0x0",
        "gasLimit": hex(GAS_LIMIT),
        "baseFeePerGas": hex(10**9),
        "alloc": {sender: {"balance": hex(BALANCE)} for sender in senders},
    }


@contextmanager
def _running(name: str, folder: Path, argv: Sequence[str]) -> Iterator[DevNode]:
    """`argv` ends with the flag of the port."""
    port = free_port()
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen([*argv, str(port)], stdout=output, stderr=output, cwd=folder)
    try:
        node = DevNode(f"http://{LOOPBACK}:{port}")
        _await(node, process, log)
        yield node
    finally:
        process.terminate()
        process.wait(30)


def _await(node: DevNode, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            if int(node.call("eth_chainId"), 16) == CHAIN_ID:
                return
        except (OSError, urllib.error.URLError, KeyError):
            time.sleep(0.2)
    raise RuntimeFault(f"the node does not serve: {log_tail(log)}")

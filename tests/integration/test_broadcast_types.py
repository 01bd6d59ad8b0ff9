"""What the broadcaster knows of set-code and blob transactions, before a real node (anvil)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from pydantic import SecretStr
from sha3 import keccak_256

from pipeline.adapters.blobs import BlobDirectory
from pipeline.adapters.node import RpcNode
from pipeline.ethereum.sidecar import versioned_hash
from pipeline.stages.account import Answer, Reception
from pipeline.stages.node import Receipt
from tests.blob_transactions import blob_of, signed_blobs, write
from tests.dev_node import CHAIN_ID, DevNode, anvil

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

SENDER, OTHER = b"\x01" * 32, b"\x02" * 32
CODE = "0x" + "35" * 20
FEES: dict[str, Any] = {"chainId": CHAIN_ID, "maxFeePerGas": 100 * 10**9, "maxPriorityFeePerGas": 10**9}
MINED_TIMEOUT_S = 30.0


def address(secret: bytes) -> str:
    return str(Account.from_key(secret).address).lower()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[tuple[RpcNode, DevNode]]:
    with anvil(tmp_path, [address(SENDER), address(OTHER)]) as server:
        rpc = RpcNode(SecretStr(server.url), 10)
        yield rpc, server
        await rpc.close()


async def mined(rpc: RpcNode, raw: bytes) -> Receipt:
    deadline_s = time.monotonic() + MINED_TIMEOUT_S
    while time.monotonic() < deadline_s:
        [receipt] = await rpc.receipts([keccak_256(raw).digest()])
        if receipt is not None:
            return receipt
        await asyncio.sleep(0.2)
    raise AssertionError("not mined")


async def test_an_account_becomes_delegated_by_its_authorization_and_ceases_to_be(
    node: tuple[RpcNode, DevNode],
) -> None:
    rpc, _ = node
    accounts = [address(SENDER), address(OTHER)]
    for nonce, (code, delegated) in enumerate([(CODE, True), ("0x" + "00" * 20, False)]):
        authorization = Account.sign_authorization({"chainId": CHAIN_ID, "address": code, "nonce": nonce}, OTHER)
        fields = FEES | {
            "type": 4, "nonce": nonce, "to": CODE, "value": 0, "gas": 200_000,
            "authorizationList": [authorization],
        }  # fmt: skip
        raw = bytes(Account.sign_transaction(fields, SENDER).raw_transaction)
        assert await rpc.send([raw]) == [Answer(Reception.TAKEN)]
        assert (await mined(rpc, raw)).succeeded
        assert await rpc.delegated(accounts) == [False, delegated]
        assert await rpc.nonces(accounts, await rpc.head()) == [nonce + 1, nonce + 1], "its signer's nonce is used, too"


@pytest.mark.parametrize("in_cells", [True, False], ids=["cell proofs", "blob proofs"])
async def test_a_node_mines_what_it_gets_in_its_network_form(
    in_cells: bool,  # noqa: FBT001 - a parameter
    node: tuple[RpcNode, DevNode],
    tmp_path: Path,
) -> None:
    rpc, server = node
    for nonce, count in enumerate([1, 2]):
        blobs = [blob_of(number, in_cells=in_cells) for number in range(1, count + 1)]
        for blob in blobs:
            write(tmp_path, blob)
        hashes = [versioned_hash(blob.commitment) for blob in blobs]
        raw = signed_blobs(SENDER, hashes, nonce=nonce, **FEES)
        [refused] = await rpc.send([raw])
        assert (refused.reception, "without sidecar" in refused.reason) == (Reception.REFUSED, True)
        form = await BlobDirectory(tmp_path).network_form(raw)
        assert isinstance(form, bytes), form
        assert await rpc.send([form]) == [Answer(Reception.TAKEN)]
        assert (await mined(rpc, raw)).succeeded
        found = server.call("eth_getTransactionByHash", "0x" + keccak_256(raw).hexdigest())
        assert found["blobVersionedHashes"] == ["0x" + hash_.hex() for hash_ in hashes]

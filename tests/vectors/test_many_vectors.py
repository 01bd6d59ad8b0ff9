"""Thousands of random transactions of each type (`--transactions 10000`), byte for byte as eth-account signs them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipeline.ethereum.authorization import sign_authorization
from pipeline.ethereum.kernel import sign
from tests import ethereum_rows as rows_

BATCH = 500


def number(chooser: random.Random, bits: int) -> int:
    """Of any length, so that every length of an RLP scalar comes up."""
    return chooser.getrandbits(chooser.randint(0, bits))


def random_row(chooser: random.Random, kind: int) -> rows_.Row:
    listed = kind != 0 and chooser.random() < 0.3
    return rows_.row(
        type=kind,
        to=None if kind <= 2 and chooser.random() < 0.1 else chooser.randbytes(20),
        value=rows_.wei(number(chooser, 256)),
        gas_limit=number(chooser, 63),
        max_fee_per_gas=number(chooser, 64),
        max_priority_fee_per_gas=number(chooser, 64) if kind >= 2 else None,
        data=chooser.randbytes(chooser.choice((0, 0, 1, 4, 68, chooser.randint(0, 300)))),
        access_list=[entry(chooser) for _ in range(chooser.randint(0, 3))] if listed else None,
        **(EXTRAS[kind](chooser) if kind in EXTRAS else {}),
    )


def entry(chooser: random.Random) -> rows_.Row:
    keys = [chooser.randbytes(32) for _ in range(chooser.randint(0, 3))]
    return {"address": chooser.randbytes(20), "storage_keys": keys}


def blobs(chooser: random.Random) -> rows_.Row:
    hashes = [b"\1" + chooser.randbytes(31) for _ in range(chooser.randint(1, 6))]
    return {"max_fee_per_blob_gas": number(chooser, 64), "blob_hashes": hashes}


def authorizations(chooser: random.Random) -> rows_.Row:
    return {"authorization_list": [authorization(chooser) for _ in range(chooser.randint(1, 3))]}


def authorization(chooser: random.Random) -> rows_.Row:
    """Half of them with scalars of any length, the others as an account signs them."""
    plain: dict[str, Any] = {
        "chain_id": number(chooser, 64),
        "address": chooser.randbytes(20),
        "nonce": min(number(chooser, 64), 2**64 - 2),
    }
    if chooser.random() < 0.5:
        scalars = rows_.wei(number(chooser, 256)), rows_.wei(number(chooser, 256))
        return {**plain, "y_parity": chooser.randint(0, 1), "r": scalars[0], "s": scalars[1]}
    signed = sign_authorization(chooser.randbytes(32), plain["chain_id"], f"0x{plain['address'].hex()}", plain["nonce"])
    r, s = (rows_.wei(int(signed[name], 16)) for name in "rs")
    return {**plain, "y_parity": int(signed["yParity"], 16), "r": r, "s": s}


EXTRAS: dict[int, Callable[..., rows_.Row]] = {3: blobs, 4: authorizations}


@pytest.mark.parametrize("kind", range(5))
@pytest.mark.timeout(600)
def test_many_rows_are_byte_identical_to_eth_account(kind: int, request: pytest.FixtureRequest) -> None:
    chooser = random.Random(kind)  # noqa: S311 - reproducible rows
    for _ in range(request.config.getoption("--transactions") // BATCH):
        rows = [random_row(chooser, kind) for _ in range(BATCH)]
        nonce, secret = number(chooser, 63), chooser.randbytes(32)
        signed = sign(rows_.batch_for(rows), np.ones(BATCH, np.bool_), secret, nonce)
        assert not signed.failed.any()
        for k, row in enumerate(rows):
            found = rows_.raw_of(signed, k), signed.hashes[k].tobytes()
            assert found == rows_.expected(row, nonce + k, secret), row

"""`oncesign bench kernel`: the signing kernel against bare libsecp256k1 calls and against eth-account.

The three take turns in every round, so that a slow moment of the machine hits all of them, and the medians over the
rounds are compared. Times are of the processor, not of the wall: what else runs on the machine is not measured. `ours`
is all of `kernel.sign` on a batch in memory: RLP, both hashes, signature, signed bytes. `raw` is
`secp256k1_ecdsa_sign_recoverable` alone, on hashes made before, in a compiled loop without the GIL.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.ethereum import kernel
from pipeline.ethereum.batch import BLOB_TYPE, EXTRA_COLUMNS, SET_CODE_TYPE, Batch, BatchHeader
from pipeline.ethereum.compiled import compiled
from pipeline.ethereum.secp256k1 import LIBRARY, SIGNATURE_STRUCT_BYTES, sign_opaque
from pipeline.stream import START, Stream

COUNT: Final = 1_000
ROUNDS: Final = 31
SEED: Final = 1
CHAIN_ID: Final = 1
SECRET: Final = (0x4F).to_bytes(32, "big")  # known to everyone, and of no account that holds anything
ETH_ACCOUNT_SHARE: Final = 10  # eth-account signs every tenth row: it is an order of magnitude slower

TYPES: Final = ("legacy", "access_list", "fee_market", "blob", "set_code")
#: Share of the mix up to which a row is of this form.
TRANSFER, TOKEN, CALL, CREATION = 0.55, 0.85, 0.95, 0.97
FEE_MARKET_SHARE: Final = 0.8

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Contest:
    """One batch, signed in three ways."""

    batch: Batch
    rows: Sequence[Row]

    def measure(self, rounds: int) -> dict[str, float]:
        """Medians in µs per transaction, and how ours compares: above 1 is faster."""
        sampled = self.rows[::ETH_ACCOUNT_SHARE]
        entrants: dict[str, tuple[Callable[[], object], int]] = {
            "raw": (raw_signatures(len(self.rows)), len(self.rows)),
            "ours": (self._ours, len(self.rows)),
            "eth_account": (_eth_account(sampled), len(sampled)),
        }
        times: dict[str, list[float]] = {name: [] for name in entrants}
        for turn, _count in entrants.values():
            turn()
        for _ in range(rounds):
            for name, (turn, count) in entrants.items():
                start = time.thread_time()
                turn()
                times[name].append((time.thread_time() - start) * 1e6 / count)
        raw, ours, eth_account = (statistics.median(times[name]) for name in entrants)
        return {
            "raw_us": round(raw, 3),
            "ours_us": round(ours, 3),
            "eth_account_us": round(eth_account, 3),
            "ratio_to_raw": round(raw / ours, 4),
            "ratio_to_eth_account": round(eth_account / ours, 2),
        }

    def _ours(self) -> object:
        return kernel.sign(self.batch, np.ones(len(self.rows), np.bool_), SECRET, 0)


def bench(count: int = COUNT, rounds: int = ROUNDS) -> dict[str, Any]:
    """The realistic mix, and each transaction type by itself; `count` rows each. Raises UsageError."""
    if count < 1 or rounds < 1:
        raise UsageError("count and rounds are at least 1.")
    kernel.warm()
    report: dict[str, Any] = {"count": count, "rounds": rounds, **contest(mixed_rows(count)).measure(rounds)}
    report["types"] = {name: contest(typed_rows(count, kind)).measure(rounds) for kind, name in enumerate(TYPES)}
    return report


def contest(rows: Sequence[Row]) -> Contest:
    """The rows as a batch, a wide one when there are blob or set-code rows."""
    wide = EXTRA_COLUMNS.names[0] in rows[0]
    header = BatchHeader(Stream("bench", 0), 1, START, START, CHAIN_ID, "", wide=wide)
    arrays = [pa.array([row[field.name] for row in rows], field.type) for field in header.schema]
    return Contest(Batch.build(header, pa.RecordBatch.from_arrays(arrays, schema=header.schema)), rows)


def mixed_rows(count: int) -> list[Row]:
    """55 % transfers, 30 % token transfers, 10 % calls of 200–1,000 bytes, 2 % creations, 3 % with access lists."""
    chooser = random.Random(SEED)  # noqa: S311 - reproducible rows, not secrets
    return [_mixed_row(chooser, tx_id) for tx_id in range(count)]


def typed_rows(count: int, kind: int) -> list[Row]:
    """Rows of one type: half transfers, half token transfers.

    Those of type 1 have an access list of one entry, those of type 3 have one to six blobs, those of type 4 one or two
    authorizations.
    """
    chooser = random.Random(SEED)  # noqa: S311 - as above
    entries = _access_list(chooser, 1) if kind == 1 else None
    return [
        _row(chooser, tx_id, kind, _token_call(chooser) if tx_id % 2 else b"", entries) | _extras(chooser, kind)
        for tx_id in range(count)
    ]


def _mixed_row(chooser: random.Random, tx_id: int) -> Row:
    share = chooser.random()
    kind = 2 if chooser.random() < FEE_MARKET_SHARE else 0
    if share < TRANSFER:
        return _row(chooser, tx_id, kind)
    if share < TOKEN:
        return _row(chooser, tx_id, kind, _token_call(chooser))
    if share < CALL:
        return _row(chooser, tx_id, kind, chooser.randbytes(chooser.randint(200, 1_000)))
    if share < CREATION:
        return _row(chooser, tx_id, kind, chooser.randbytes(chooser.randint(500, 6_000))) | {"to": None}
    return _row(chooser, tx_id, chooser.choice((1, 2)), b"", _access_list(chooser, chooser.randint(1, 3)))


def _row(chooser: random.Random, tx_id: int, kind: int, data: bytes = b"", entries: list[Row] | None = None) -> Row:
    fee = chooser.randint(10**9, 10**11)
    return {
        "tx_id": tx_id,
        "type": kind,
        "chain_id": CHAIN_ID,
        "to": chooser.randbytes(20),
        "value": chooser.randint(0, 10**19).to_bytes(32, "big"),
        "gas_limit": chooser.randint(21_000, 10**7),
        "max_fee_per_gas": fee,
        "max_priority_fee_per_gas": chooser.randint(0, fee) if kind >= 2 else None,
        "data": data,
        "access_list": entries,
        "defect": 0,
    }


def _extras(chooser: random.Random, kind: int) -> Row:
    """What a row of a wide batch has beside; nothing for the types that need none."""
    if kind == BLOB_TYPE:
        hashes = [b"\x01" + chooser.randbytes(31) for _ in range(chooser.randint(1, 6))]
        return {"max_fee_per_blob_gas": chooser.randint(1, 10**11), "blob_hashes": hashes, "authorization_list": None}
    if kind == SET_CODE_TYPE:
        entries = [_authorization(chooser) for _ in range(chooser.randint(1, 2))]
        return {"max_fee_per_blob_gas": None, "blob_hashes": None, "authorization_list": entries}
    return {}


def _authorization(chooser: random.Random) -> Row:
    """In form; nobody signed it."""
    return {
        "chain_id": CHAIN_ID,
        "address": chooser.randbytes(20),
        "nonce": chooser.randint(0, 1_000),
        "y_parity": chooser.randint(0, 1),
        "r": chooser.randint(1, 2**255).to_bytes(32, "big"),
        "s": chooser.randint(1, 2**254).to_bytes(32, "big"),
    }


def _token_call(chooser: random.Random) -> bytes:
    """ERC-20 `transfer(address, uint256)`."""
    return bytes.fromhex("a9059cbb") + bytes(12) + chooser.randbytes(20) + bytes(20) + chooser.randbytes(12)


def _access_list(chooser: random.Random, entries: int) -> list[Row]:
    return [
        {
            "address": chooser.randbytes(20),
            "storage_keys": [chooser.randbytes(32) for _ in range(chooser.randint(0, 3))],
        }
        for _ in range(entries)
    ]


def raw_signatures(count: int) -> Callable[[], object]:
    """What makes `count` bare signatures, of hashes made beforehand, at each call."""
    hashes = np.random.default_rng(SEED).integers(0, 256, (count, 32), np.uint8)
    struct = np.zeros(SIGNATURE_STRUCT_BYTES, np.uint8)
    key = np.frombuffer(SECRET, np.uint8).copy()
    return lambda: _sign_hashes(LIBRARY, key, hashes, struct)


@compiled
def _sign_hashes(library: Any, key: Any, hashes: Any, struct: Any) -> Any:
    signed = 0
    for row in range(len(hashes)):
        signed += sign_opaque(library, struct, hashes[row], key)
    return signed


def _eth_account(rows: Sequence[Row]) -> Callable[[], object]:
    try:
        from eth_account import Account
    except ImportError as error:
        raise UsageError("the reference, eth-account, is not installed.", hint="pip install 'oncesign[dev]'") from error
    account = Account.from_key(SECRET)
    requests = [eth_account_request(row, nonce) for nonce, row in enumerate(rows)]
    return lambda: [account.sign_transaction(request) for request in requests]


def eth_account_request(row: Row, nonce: int) -> Row:
    """A row as eth-account takes it."""
    request: Row = {
        "nonce": nonce,
        "chainId": row["chain_id"],
        "to": b"" if row["to"] is None else row["to"],
        "value": int.from_bytes(row["value"], "big"),
        "gas": row["gas_limit"],
        "data": row["data"],
    }
    if row["type"] >= 2:
        request |= {"maxFeePerGas": row["max_fee_per_gas"], "maxPriorityFeePerGas": row["max_priority_fee_per_gas"]}
    else:
        request |= {"gasPrice": row["max_fee_per_gas"]}
    if row["type"] != 0:
        entries = row["access_list"] or []
        request |= {
            "type": row["type"],
            "accessList": [
                {"address": f"0x{e['address'].hex()}", "storageKeys": [f"0x{key.hex()}" for key in e["storage_keys"]]}
                for e in entries
            ],
        }
    return request | _extra_request(row)


def _extra_request(row: Row) -> Row:
    if row["type"] == BLOB_TYPE:
        return {"maxFeePerBlobGas": row["max_fee_per_blob_gas"], "blobVersionedHashes": row["blob_hashes"]}
    if row["type"] == SET_CODE_TYPE:
        return {
            "authorizationList": [
                {
                    "chainId": e["chain_id"],
                    "address": e["address"],
                    "nonce": e["nonce"],
                    "yParity": e["y_parity"],
                    "r": int.from_bytes(e["r"], "big"),
                    "s": int.from_bytes(e["s"], "big"),
                }
                for e in row["authorization_list"]
            ]
        }
    return {}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench_kernel", description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT, help="rows per batch")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args(arguments)
    report = bench(options.count, options.rounds)
    sys.stdout.write(json.dumps(report) + "\n" if options.json else table(report))
    return 0


def table(report: dict[str, Any]) -> str:
    """The report for a person."""
    lines = ["            raw µs   ours µs   eth-account µs   of raw   eth-account"]
    for name, part in (("mix", report), *report["types"].items()):
        lines.append(
            f"{name:<11} {part['raw_us']:6.2f} {part['ours_us']:9.2f} {part['eth_account_us']:16.1f}"
            f" {part['ratio_to_raw']:8.3f} {part['ratio_to_eth_account']:12.1f}x"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())

"""Mocked transactions with the shapes of real traffic: seeded, so that the same seed gives the same rows.

Shares and sizes follow what a payout desk sends: mostly transfers and ERC-20 calls, some larger contract calls, a few
creations and access lists; values and fees are log-normal.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Final

import orjson

from pipeline.ethereum.reasons import Reason
from pipeline.stock.row import Row

GWEI: Final = 10**9
ETHER: Final = 10**18
TRANSFER: Final = bytes.fromhex("a9059cbb")  # ERC-20 transfer(address,uint256)
APPROVE: Final = bytes.fromhex("095ea7b3")  # ERC-20 approve(address,uint256)
TOKENS: Final = 12
"""How many token contracts the ERC-20 calls are spread over."""

SHAPES: Final = (
    ("transfer", 55),
    ("erc20_transfer", 22),
    ("erc20_approve", 8),
    ("call", 10),
    ("creation", 2),
    ("listed", 3),
)
TYPES: Final = ((2, 80), (0, 15), (1, 5))
SHAPE_NAMES: Final = [name for name, _ in SHAPES]
SHAPE_SHARES: Final = list(accumulate(share for _, share in SHAPES))
TYPE_NUMBERS: Final = [kind for kind, _ in TYPES]
TYPE_SHARES: Final = list(accumulate(share for _, share in TYPES))


class Mix:
    """A stream of rows for one chain."""

    def __init__(self, seed: int, chain_id: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - mocked rows, not keys
        self._chain_id = chain_id
        self._tokens = [self._random.randbytes(20) for _ in range(TOKENS)]

    def rows(self, count: int, invalid_share: float = 0.0) -> Iterator[Row]:
        """`count` rows, of which about `invalid_share` must be rejected, every reason in turn."""
        spoilers = list(SPOILERS.values())
        spoiled = 0
        for _ in range(count):
            row = self._row()
            if invalid_share and self._random.random() < invalid_share:
                row = spoilers[spoiled % len(spoilers)](row)
                spoiled += 1
            yield row

    def _row(self) -> Row:
        rng = self._random
        shape = rng.choices(SHAPE_NAMES, cum_weights=SHAPE_SHARES)[0]
        kind = 1 if shape == "listed" and rng.random() < 0.5 else 2 if shape == "listed" else self._type()
        to, value, gas, data = self._body(shape)
        tip = int(rng.lognormvariate(0, 0.6) * GWEI)
        fee = tip + int(rng.lognormvariate(3, 0.5) * GWEI)
        listed = self._access_list() if shape == "listed" else None
        entries = len(listed or ())
        keys = sum(len(keys) for _, keys in listed or ())
        return Row(
            type=kind,
            chain_id=self._chain_id,
            to=to,
            value=value,
            gas_limit=gas + 2_400 * entries + 1_900 * keys,
            max_fee_per_gas=fee,
            max_priority_fee_per_gas=tip if kind == 2 else None,
            data=data,
            access_list=_listed_json(listed) if listed else None,
        )

    def _type(self) -> int:
        return self._random.choices(TYPE_NUMBERS, cum_weights=TYPE_SHARES)[0]

    def _body(self, shape: str) -> tuple[bytes | None, int, int, bytes]:
        """Recipient, value, a sufficient gas limit, and data."""
        rng = self._random
        match shape:
            case "transfer":
                return rng.randbytes(20), self._value(), 21_000, b""
            case "erc20_transfer":
                amount = int(rng.lognormvariate(4, 2) * 10**6)
                return rng.choice(self._tokens), 0, 65_000, TRANSFER + _words(rng.randbytes(20), amount)
            case "erc20_approve":
                return rng.choice(self._tokens), 0, 60_000, APPROVE + _words(rng.randbytes(20), 2**256 - 1)
            case "creation":
                data = b"\x60\x80\x60\x40\x52" + rng.randbytes(rng.randint(200, 3_000))
                return None, 0, 1_500_000, data
            case _:
                data = rng.randbytes(4) + b"".join(self._word() for _ in range(rng.randint(3, 24)))
                return rng.randbytes(20), self._value() if rng.random() < 0.2 else 0, 350_000, data

    def _value(self) -> int:
        return int(self._random.lognormvariate(-2, 2) * ETHER)

    def _word(self) -> bytes:
        rng = self._random
        return rng.randbytes(32) if rng.random() < 0.3 else rng.randrange(10**12).to_bytes(32, "big")

    def _access_list(self) -> list[tuple[bytes, list[bytes]]]:
        rng = self._random
        return [
            (rng.randbytes(20), [rng.randbytes(32) for _ in range(rng.randint(0, 4))]) for _ in range(rng.randint(1, 3))
        ]


def _listed_json(entries: list[tuple[bytes, list[bytes]]]) -> str:
    listed = [
        {"address": "0x" + address.hex(), "storageKeys": ["0x" + key.hex() for key in keys]}
        for address, keys in entries
    ]
    return orjson.dumps(listed).decode()


def _words(address: bytes, amount: int) -> bytes:
    return address.rjust(32, b"\0") + amount.to_bytes(32, "big")


def _legacy(row: Row) -> Row:
    return row._replace(type=0, max_priority_fee_per_gas=None, access_list=None)


def _fee_market(row: Row) -> Row:
    return row._replace(type=2, max_priority_fee_per_gas=row.max_priority_fee_per_gas or 0)


SPOILERS: Final[dict[Reason, Callable[[Row], Row]]] = {
    Reason.CHAIN_ID_MISMATCH: lambda row: row._replace(chain_id=row.chain_id + 1),
    Reason.UNKNOWN_TYPE: lambda row: row._replace(type=9),
    Reason.VALUE_OUT_OF_RANGE: lambda row: row._replace(value=2**256),
    Reason.FEE_OUT_OF_RANGE: lambda row: row._replace(max_fee_per_gas=2**64),
    Reason.GAS_LIMIT_OUT_OF_RANGE: lambda row: row._replace(gas_limit=-1),
    Reason.PRIORITY_FEE_ABOVE_FEE_CAP: lambda row: _fee_market(row)._replace(
        max_priority_fee_per_gas=row.max_fee_per_gas + 1
    ),
    Reason.PRIORITY_FEE_NOT_ALLOWED: lambda row: _legacy(row)._replace(max_priority_fee_per_gas=1),
    Reason.INTRINSIC_GAS_ABOVE_GAS_LIMIT: lambda row: row._replace(gas_limit=20_999),
    Reason.INIT_CODE_TOO_LARGE: lambda row: row._replace(to=None, data=bytes(49_153), gas_limit=10_000_000),
    Reason.DATA_TOO_LARGE: lambda row: row._replace(data=bytes(131_073), gas_limit=30_000_000),
    Reason.ACCESS_LIST_MALFORMED: lambda row: _fee_market(row)._replace(access_list='[{"address": "0x12"}]'),
    Reason.ACCESS_LIST_NOT_ALLOWED: lambda row: _legacy(row)._replace(
        access_list=orjson.dumps([{"address": "0x" + "11" * 20, "storageKeys": []}]).decode()
    ),
    Reason.CREATE_WITHOUT_INIT_CODE: lambda row: row._replace(to=None, data=b""),
    Reason.COST_OUT_OF_RANGE: lambda row: row._replace(value=2**256 - 1),
}
"""How to make a row break each rule that a row of a table with our CHECKs can break."""

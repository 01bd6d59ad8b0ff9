from __future__ import annotations

from typing import Any

import pytest
from eth_account import Account
from hypothesis import given, settings

from pipeline.errors import MalformedBatch, SigningRefused
from pipeline.ethereum.authorization import authority, sign_authorization
from pipeline.ethereum.decoding import ORDER
from tests import ethereum_rows as rows_

CODE = "0x" + "5c" * 20


@settings(max_examples=150, deadline=None)
@given(
    rows_.secrets,
    rows_.integers(rows_.BOUNDARIES, 2**64 - 1),
    rows_.addresses,
    rows_.integers(rows_.BOUNDARIES, 2**64 - 2),
)
def test_it_is_what_eth_account_signs(secret: bytes, chain_id: int, address: bytes, nonce: int) -> None:
    found = sign_authorization(secret, chain_id, f"0x{address.hex()}", nonce)
    expected = Account.sign_authorization({"chainId": chain_id, "address": address, "nonce": nonce}, secret)
    assert found == {
        "chainId": hex(chain_id),
        "address": f"0x{address.hex()}",
        "nonce": hex(nonce),
        "yParity": hex(expected.y_parity),
        "r": hex(expected.r),
        "s": hex(expected.s),
    }
    assert authority(found) == rows_.address_of(secret)


def test_an_address_with_a_checksum_is_written_in_lower_case() -> None:
    mixed = "0x9d8A62f656a8d1615C1294fd71e9CFb3E4855A4F"
    signed = sign_authorization(rows_.SECRET, 1, mixed, 0)
    assert signed["address"] == rows_.ADDRESS
    assert authority(signed | {"address": mixed}) == rows_.ADDRESS


@pytest.mark.parametrize("change", [{"chainId": "0x2"}, {"nonce": "0x4"}, {"address": "0x" + "5d" * 20}])
def test_a_changed_field_changes_the_authority(change: dict[str, str]) -> None:
    signed = sign_authorization(rows_.SECRET, 1, CODE, 3)
    assert authority(signed) == rows_.ADDRESS
    assert authority(signed | change) != rows_.ADDRESS


@pytest.mark.parametrize(
    "change",
    [
        {"secret": bytes(32)},
        {"secret": ORDER.to_bytes(32, "big")},
        {"secret": b"\1" * 31},
        {"secret": b"\1" * 33},
        {"chain_id": -1},
        {"chain_id": 2**64},
        {"nonce": -1},
        {"nonce": 2**64 - 1},  # EIP-2681
        {"address": "5c" * 20},
        {"address": "0x" + "5c" * 19},
        {"address": "0x" + "5c " * 20},
        {"address": ""},
    ],
)
def test_what_cannot_be_signed_is_refused(change: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"secret": rows_.SECRET, "chain_id": 1, "address": CODE, "nonce": 3}
    with pytest.raises(SigningRefused) as caught:
        sign_authorization(**asked | change)
    assert "0101" not in str(caught.value)


@pytest.mark.parametrize("name", ["chainId", "address", "nonce", "yParity", "r", "s"])
@pytest.mark.parametrize("value", [None, "", "0xno", "-0x1", 7, "0x" + "ff" * 33])
def test_an_entry_that_is_garbled_has_no_authority(name: str, value: Any) -> None:
    signed = sign_authorization(rows_.SECRET, 1, CODE, 3)
    if value == "0x" + "ff" * 33 and name in {"chainId", "nonce"}:
        assert authority(signed | {name: value}) != rows_.ADDRESS
        return
    with pytest.raises(MalformedBatch):
        authority({key: found for key, found in (signed | {name: value}).items() if found is not None})


def test_a_high_s_has_no_authority() -> None:
    signed = sign_authorization(rows_.SECRET, 1, CODE, 3)
    flipped = {"s": hex(ORDER - int(signed["s"], 16)), "yParity": hex(1 - int(signed["yParity"], 16))}
    with pytest.raises(MalformedBatch, match="EIP-2"):
        authority(signed | flipped)

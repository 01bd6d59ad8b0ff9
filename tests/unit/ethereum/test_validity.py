from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.bench_kernel import mixed_rows
from pipeline.ethereum.decoding import HALF_ORDER, ORDER
from pipeline.ethereum.reasons import Reason
from pipeline.ethereum.validity import explain, intrinsic_gas, judge
from tests import ethereum_rows as rows_

KEY = b"\x22" * 32
ENTRY = {"address": b"\x11" * 20, "storage_keys": [KEY, KEY]}
PLENTY = 30_000_000
FULL = 2**256 - 1


def verdict(**changes: object) -> Reason:
    return Reason(judge(rows_.batch([rows_.row(**changes)]))[0])


def gas(**changes: object) -> int:
    return intrinsic_gas(rows_.batch([rows_.row(**changes)]), 0)


def test_the_codes_are_a_public_contract() -> None:
    assert {reason.code: int(reason) for reason in Reason} == {
        "signable": 0,
        "chain_id_mismatch": 1,
        "unknown_type": 2,
        "to_malformed": 3,
        "value_out_of_range": 4,
        "fee_out_of_range": 5,
        "gas_limit_out_of_range": 6,
        "priority_fee_above_fee_cap": 7,
        "priority_fee_not_allowed": 8,
        "intrinsic_gas_above_gas_limit": 9,
        "init_code_too_large": 10,
        "data_too_large": 11,
        "access_list_malformed": 12,
        "access_list_not_allowed": 13,
        "create_without_init_code": 14,
        "cost_out_of_range": 15,
        "signing_failed": 16,
        "policy_recipient": 17,
        "policy_creation": 18,
        "policy_value": 19,
        "policy_fee_cap": 20,
        "policy_gas_limit": 21,
        "policy_selector": 22,
        "sender_malformed": 23,
        "sender_unknown": 24,
        "sender_disabled": 25,
        "sender_set_apart": 26,
        "creation_not_allowed": 27,
        "blobs_malformed": 28,
        "blobs_not_allowed": 29,
        "authorizations_malformed": 30,
        "authorizations_not_allowed": 31,
        "authorization_without_effect": 32,
    }


SIGNABLE = [
    {},
    {"type": 0},
    {"type": 1},
    {"type": 1, "access_list": []},
    {"type": 0, "access_list": []},
    {"access_list": [ENTRY], "gas_limit": PLENTY},
    {"to": None, "data": b"\0", "gas_limit": PLENTY},
    {"to": None, "data": b"\1" * 49_152, "gas_limit": PLENTY},
    {"data": b"\0" * 131_072, "gas_limit": PLENTY},
    {"max_priority_fee_per_gas": 20 * 10**9},
    {"max_fee_per_gas": 0, "max_priority_fee_per_gas": 0},
    {"value": rows_.wei(0)},
    {"gas_limit": 2**63 - 1},
    {"max_fee_per_gas": 2**64 - 1},
    {"value": rows_.wei(FULL - 21_000 * 20 * 10**9)},
    {"value": rows_.wei(FULL), "max_fee_per_gas": 0, "max_priority_fee_per_gas": 0},
]

BROKEN: list[tuple[Reason, dict[str, object]]] = [
    (Reason.CHAIN_ID_MISMATCH, {"chain_id": 5}),
    (Reason.CHAIN_ID_MISMATCH, {"chain_id": 0}),
    (Reason.CHAIN_ID_MISMATCH, {"chain_id": 2**64 - 1}),
    (Reason.UNKNOWN_TYPE, {"type": 3, "max_priority_fee_per_gas": 1}),
    (Reason.UNKNOWN_TYPE, {"type": 255}),
    (Reason.FEE_OUT_OF_RANGE, {"max_priority_fee_per_gas": None}),
    (Reason.GAS_LIMIT_OUT_OF_RANGE, {"gas_limit": 2**63}),
    (Reason.GAS_LIMIT_OUT_OF_RANGE, {"gas_limit": 2**64 - 1}),
    (Reason.PRIORITY_FEE_ABOVE_FEE_CAP, {"max_priority_fee_per_gas": 20 * 10**9 + 1}),
    (Reason.PRIORITY_FEE_NOT_ALLOWED, {"type": 0, "max_priority_fee_per_gas": 1}),
    (Reason.PRIORITY_FEE_NOT_ALLOWED, {"type": 1, "max_priority_fee_per_gas": 0}),
    (Reason.INTRINSIC_GAS_ABOVE_GAS_LIMIT, {"gas_limit": 20_999}),
    (Reason.INTRINSIC_GAS_ABOVE_GAS_LIMIT, {"gas_limit": 0}),
    (Reason.INTRINSIC_GAS_ABOVE_GAS_LIMIT, {"data": b"\1"}),
    (Reason.INTRINSIC_GAS_ABOVE_GAS_LIMIT, {"access_list": [ENTRY]}),
    (Reason.INIT_CODE_TOO_LARGE, {"to": None, "data": b"\1" * 49_153, "gas_limit": PLENTY}),
    (Reason.DATA_TOO_LARGE, {"data": b"\1" * 131_073, "gas_limit": PLENTY}),
    (Reason.DATA_TOO_LARGE, {"to": None, "data": b"\1" * 131_073, "gas_limit": PLENTY}),
    (Reason.ACCESS_LIST_NOT_ALLOWED, {"type": 0, "access_list": [ENTRY], "gas_limit": PLENTY}),
    (Reason.CREATE_WITHOUT_INIT_CODE, {"to": None, "gas_limit": PLENTY}),
    (Reason.COST_OUT_OF_RANGE, {"value": rows_.wei(FULL)}),
    (Reason.COST_OUT_OF_RANGE, {"value": rows_.wei(FULL - 21_000 * 20 * 10**9 + 1)}),
    (Reason.TO_MALFORMED, {"defect": int(Reason.TO_MALFORMED)}),
    (Reason.VALUE_OUT_OF_RANGE, {"defect": int(Reason.VALUE_OUT_OF_RANGE)}),
    (Reason.ACCESS_LIST_MALFORMED, {"defect": int(Reason.ACCESS_LIST_MALFORMED)}),
]


@pytest.mark.parametrize("changes", SIGNABLE)
def test_what_breaks_no_rule_is_signable(changes: dict[str, object]) -> None:
    assert verdict(**changes) is Reason.SIGNABLE


@pytest.mark.parametrize(("reason", "changes"), BROKEN)
def test_what_breaks_a_rule_is_named_by_it(reason: Reason, changes: dict[str, object]) -> None:
    assert verdict(**changes) is reason


@pytest.mark.parametrize(("reason", "changes"), BROKEN)
def test_every_reason_is_explained_to_a_person(reason: Reason, changes: dict[str, object]) -> None:
    text = explain(rows_.batch([rows_.row(), rows_.row(**changes)]), 1, reason)
    assert len(text) > 15
    assert "\n" not in text


def test_an_explanation_has_the_numbers() -> None:
    batch = rows_.batch([rows_.row(to=None, data=b"\0")])
    text = explain(batch, 0, Reason.INTRINSIC_GAS_ABOVE_GAS_LIMIT)
    assert "21000" in text
    assert "53006" in text
    assert "EIP-3860" in text


def test_the_defect_of_a_row_comes_first() -> None:
    assert verdict(chain_id=5, type=9, gas_limit=0, defect=int(Reason.FEE_OUT_OF_RANGE)) is Reason.FEE_OUT_OF_RANGE


def test_the_chain_id_comes_before_the_rest() -> None:
    assert verdict(chain_id=5, type=9, gas_limit=0) is Reason.CHAIN_ID_MISMATCH


def test_each_row_is_judged_by_itself() -> None:
    rows = [rows_.row(**changes) for _, changes in BROKEN for changes in ({}, changes)]
    found = judge(rows_.batch(rows)).tolist()
    assert found == [code for reason, _ in BROKEN for code in (0, int(reason))]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 21_000),
        ({"data": b"\0"}, 21_010),  # the floor of EIP-7623: 10 per token
        ({"data": b"\1"}, 21_040),
        ({"data": b"\1" * 10 + b"\0" * 3}, 21_430),
        ({"to": None, "data": b"\0"}, 53_000 + 4 + 2),
        ({"to": None, "data": b"\1" * 32}, 53_000 + 32 * 16 + 2),
        ({"to": None, "data": b"\1" * 33}, 53_000 + 33 * 16 + 4),
        ({"access_list": [ENTRY]}, 21_000 + 2_400 + 2 * 1_900),
        ({"access_list": [ENTRY, ENTRY], "data": b"\1"}, 21_000 + 2 * 6_200 + 16),
    ],
)
def test_intrinsic_gas(changes: dict[str, object], expected: int) -> None:
    assert gas(**changes) == expected
    if changes.get("data") or not changes.get("to", True):
        assert verdict(**changes, gas_limit=expected) is Reason.SIGNABLE
        assert verdict(**changes, gas_limit=expected - 1) is Reason.INTRINSIC_GAS_ABOVE_GAS_LIMIT


def reference_of_extras(row: rows_.Row) -> Reason:
    """Of blobs and authorizations."""
    kind, fee, hashes = row["type"], row.get("max_fee_per_blob_gas"), row.get("blob_hashes") or []
    entries = row.get("authorization_list") or []
    if kind != 3 and (fee is not None or hashes):
        return Reason.BLOBS_NOT_ALLOWED
    if kind == 3 and (fee is None or not 1 <= len(hashes) <= 6 or any(each[0] != 1 for each in hashes)):
        return Reason.BLOBS_MALFORMED
    if (kind == 4) != bool(entries):
        return Reason.AUTHORIZATIONS_MALFORMED if kind == 4 else Reason.AUTHORIZATIONS_NOT_ALLOWED
    for entry in entries:
        r, s = int.from_bytes(entry["r"], "big"), int.from_bytes(entry["s"], "big")
        good = 0 < r < ORDER and 0 < s <= HALF_ORDER and entry["y_parity"] < 2 and entry["nonce"] < 2**64 - 1
        if not good or entry["chain_id"] not in {0, rows_.CHAIN_ID}:
            return Reason.AUTHORIZATION_WITHOUT_EFFECT
    return Reason.SIGNABLE


def reference(row: rows_.Row, *, wide: bool = False) -> Reason:  # noqa: C901, PLR0911, PLR0912 - the list of rules
    """The rules again, in plain integers."""
    kind, data, lists = row["type"], row["data"], row["access_list"] or []
    tip, fee = row["max_priority_fee_per_gas"], row["max_fee_per_gas"]
    if row["defect"]:
        return Reason(row["defect"])
    if row["chain_id"] != rows_.CHAIN_ID:
        return Reason.CHAIN_ID_MISMATCH
    if kind > (4 if wide else 2):
        return Reason.UNKNOWN_TYPE
    if row["gas_limit"] >= 2**63:
        return Reason.GAS_LIMIT_OUT_OF_RANGE
    if kind == 0 and lists:
        return Reason.ACCESS_LIST_NOT_ALLOWED
    if kind > 2 and row["to"] is None:
        return Reason.CREATION_NOT_ALLOWED
    if kind < 2 and tip is not None:
        return Reason.PRIORITY_FEE_NOT_ALLOWED
    if kind >= 2 and tip is None:
        return Reason.FEE_OUT_OF_RANGE
    if kind >= 2 and tip > fee:
        return Reason.PRIORITY_FEE_ABOVE_FEE_CAP
    if wide and (found := reference_of_extras(row)):
        return found
    if len(data) > 131_072:
        return Reason.DATA_TOO_LARGE
    if row["to"] is None and not data:
        return Reason.CREATE_WITHOUT_INIT_CODE
    if row["to"] is None and len(data) > 49_152:
        return Reason.INIT_CODE_TOO_LARGE
    nonzero = sum(byte != 0 for byte in data)
    tokens = len(data) - nonzero + 4 * nonzero
    cost = 21_000 + 4 * tokens + sum(2_400 + 1_900 * len(entry["storage_keys"]) for entry in lists)
    if row["to"] is None:
        cost += 32_000 + 2 * -(-len(data) // 32)
    if kind == 4:
        cost += 25_000 * len(row["authorization_list"])
    if max(cost, 21_000 + 10 * tokens) > row["gas_limit"]:
        return Reason.INTRINSIC_GAS_ABOVE_GAS_LIMIT
    blobs = len(row["blob_hashes"]) * 131_072 * row["max_fee_per_blob_gas"] if kind == 3 else 0
    if row["gas_limit"] * fee + blobs + int.from_bytes(row["value"], "big") >= 2**256:
        return Reason.COST_OUT_OF_RANGE
    return Reason.SIGNABLE


@settings(max_examples=300, deadline=None)
@given(
    st.builds(
        lambda row, changes: row | changes,
        rows_.rows(),
        st.fixed_dictionaries(
            {},
            optional={
                "chain_id": st.sampled_from([0, 1, 2]),
                "type": st.integers(0, 3),
                "max_priority_fee_per_gas": st.one_of(st.none(), st.integers(0, 2**64 - 1)),
                "value": rows_.integers(rows_.WEI, 2**256 - 1).map(rows_.wei),
                "defect": st.integers(0, 15),
            },
        ),
    )
)
def test_the_rules_agree_with_plain_integers(row: rows_.Row) -> None:
    assert judge(rows_.batch([row])).tolist() == [int(reference(row))]


@settings(max_examples=200, deadline=None)
@given(st.integers(21_000, 2**63 - 1), rows_.integers(rows_.BOUNDARIES, 2**64 - 1), st.integers(-2, 2))
def test_the_cost_is_exact_at_its_bound(limit: int, fee: int, beside: int) -> None:
    value = min(FULL, max(0, FULL - limit * fee + beside))
    expected = Reason.SIGNABLE if value + limit * fee <= FULL else Reason.COST_OUT_OF_RANGE
    found = verdict(value=rows_.wei(value), gas_limit=limit, max_fee_per_gas=fee, max_priority_fee_per_gas=0)
    assert found is expected


def test_the_benchmark_mix_is_signable_given_gas() -> None:
    rows = [row | {"gas_limit": PLENTY} for row in mixed_rows(500)]
    assert not judge(rows_.batch(rows)).any()

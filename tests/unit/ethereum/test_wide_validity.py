"""The rules of wide batches, which know blob and set-code transactions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.ethereum.decoding import HALF_ORDER, ORDER
from pipeline.ethereum.policy import CODES
from pipeline.ethereum.reasons import OF_SENDER, Reason
from pipeline.ethereum.rules import RULES_VERSION, WIDE_RULES_VERSION
from pipeline.ethereum.validity import explain, intrinsic_gas, judge, rules_version
from tests import ethereum_rows as rows_
from tests.ethereum_rows import BLOB_HASH, authorization
from tests.unit.ethereum.test_validity import BROKEN, ENTRY, FULL, PLENTY, SIGNABLE, reference


def verdict(**changes: object) -> Reason:
    return Reason(judge(rows_.wide_batch([rows_.row(**changes)]))[0])


def test_the_version_of_the_rules_is_that_of_the_batch() -> None:
    assert (RULES_VERSION, WIDE_RULES_VERSION) == (1, 2)
    assert rules_version(rows_.batch([rows_.row()])) == RULES_VERSION
    assert rules_version(rows_.wide_batch([rows_.row()])) == WIDE_RULES_VERSION


WIDE_SIGNABLE: list[dict[str, Any]] = [
    {"type": 3},
    {"type": 3, "blob_hashes": [BLOB_HASH] * 6, "max_fee_per_blob_gas": 0},
    {"type": 3, "authorization_list": []},
    {"type": 3, "value": rows_.wei(FULL - 21_000 * 20 * 10**9 - 131_072 * 10**9)},
    {"type": 4},
    {"type": 4, "blob_hashes": []},
    {"type": 4, "authorization_list": [authorization(chain_id=0, nonce=2**64 - 2, y_parity=0, r=rows_.wei(1))]},
    {"type": 4, "authorization_list": [authorization(s=rows_.wei(1))] * 9, "gas_limit": 21_000 + 9 * 25_000},
    {"type": 0, "blob_hashes": [], "authorization_list": []},
    {"max_fee_per_blob_gas": None, "blob_hashes": None, "authorization_list": None},
]

WIDE_BROKEN: list[tuple[Reason, dict[str, Any]]] = [
    (Reason.UNKNOWN_TYPE, {"type": 5}),
    (Reason.FEE_OUT_OF_RANGE, {"type": 3, "max_priority_fee_per_gas": None}),
    (Reason.PRIORITY_FEE_ABOVE_FEE_CAP, {"type": 4, "max_priority_fee_per_gas": 20 * 10**9 + 1}),
    (Reason.CREATION_NOT_ALLOWED, {"type": 3, "to": None}),
    (Reason.CREATION_NOT_ALLOWED, {"type": 4, "to": None, "data": b"\1"}),
    (Reason.BLOBS_MALFORMED, {"type": 3, "max_fee_per_blob_gas": None}),
    (Reason.BLOBS_MALFORMED, {"type": 3, "blob_hashes": None}),
    (Reason.BLOBS_MALFORMED, {"type": 3, "blob_hashes": []}),
    (Reason.BLOBS_MALFORMED, {"type": 3, "blob_hashes": [BLOB_HASH] * 7}),
    (Reason.BLOBS_MALFORMED, {"type": 3, "blob_hashes": [BLOB_HASH, bytes(32)]}),
    (Reason.BLOBS_MALFORMED, {"type": 3, "blob_hashes": [b"\2" * 32, BLOB_HASH]}),
    (Reason.BLOBS_MALFORMED, {"type": 3, "defect": int(Reason.BLOBS_MALFORMED)}),
    *((Reason.BLOBS_NOT_ALLOWED, {"type": kind, "max_fee_per_blob_gas": 0}) for kind in (0, 1, 2, 4)),
    *((Reason.BLOBS_NOT_ALLOWED, {"type": kind, "blob_hashes": [BLOB_HASH]}) for kind in (0, 1, 2, 4)),
    (Reason.AUTHORIZATIONS_MALFORMED, {"type": 4, "authorization_list": None}),
    (Reason.AUTHORIZATIONS_MALFORMED, {"type": 4, "authorization_list": []}),
    (Reason.AUTHORIZATIONS_MALFORMED, {"type": 4, "defect": int(Reason.AUTHORIZATIONS_MALFORMED)}),
    *(
        (Reason.AUTHORIZATIONS_NOT_ALLOWED, {"type": kind, "authorization_list": [authorization()]})
        for kind in range(4)
    ),
    (Reason.INTRINSIC_GAS_ABOVE_GAS_LIMIT, {"type": 3, "gas_limit": 20_999}),
    (Reason.INTRINSIC_GAS_ABOVE_GAS_LIMIT, {"type": 4, "gas_limit": 45_999}),
    (Reason.COST_OUT_OF_RANGE, {"type": 3, "value": rows_.wei(FULL - 21_000 * 20 * 10**9 - 131_072 * 10**9 + 1)}),
    (Reason.SENDER_MALFORMED, {"defect": int(Reason.SENDER_MALFORMED)}),
]

WITHOUT_EFFECT: list[dict[str, Any]] = [
    {"chain_id": 2},
    {"chain_id": 2**64 - 1},
    {"nonce": 2**64 - 1},
    {"y_parity": 2},
    {"y_parity": 255},
    {"r": bytes(32)},
    {"r": rows_.wei(ORDER)},
    {"r": rows_.wei(FULL)},
    {"s": bytes(32)},
    {"s": rows_.wei(HALF_ORDER + 1)},
    {"s": rows_.wei(ORDER - 1)},
]


@pytest.mark.parametrize("changes", SIGNABLE + WIDE_SIGNABLE)
def test_what_breaks_no_rule_of_a_wide_batch_is_signable(changes: dict[str, object]) -> None:
    assert verdict(**changes) is Reason.SIGNABLE


@pytest.mark.parametrize(("reason", "changes"), WIDE_BROKEN)
def test_what_breaks_a_rule_of_a_wide_batch_is_named_by_it(reason: Reason, changes: dict[str, object]) -> None:
    assert verdict(**changes) is reason


@pytest.mark.parametrize("change", WITHOUT_EFFECT)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_authorization_that_no_node_would_heed_is_refused(change: dict[str, object], place: int) -> None:
    entries = [authorization()] * 3
    entries[place] = authorization(**change)
    batch = rows_.wide_batch([rows_.row(type=4, authorization_list=entries, gas_limit=PLENTY)])
    assert judge(batch).tolist() == [int(Reason.AUTHORIZATION_WITHOUT_EFFECT)]
    text = explain(batch, 0, Reason.AUTHORIZATION_WITHOUT_EFFECT)
    assert f"authorization {place + 1} of 3 is for chain id {entries[place]['chain_id']} and nonce " in text


@pytest.mark.parametrize("kind", [3, 4])
def test_a_narrow_batch_knows_neither_blob_nor_set_code(kind: int) -> None:
    row = rows_.row(type=kind, gas_limit=PLENTY)
    batch = rows_.batch([row])
    assert judge(batch).tolist() == [int(Reason.UNKNOWN_TYPE)]
    assert explain(batch, 0, Reason.UNKNOWN_TYPE) == f"type {kind}; known are 0 legacy, 1 access list, 2 fee market"
    assert judge(rows_.wide_batch([row])).tolist() == [int(Reason.SIGNABLE)]


def test_every_reason_is_tested() -> None:
    tested = {reason for reason, _ in BROKEN + WIDE_BROKEN} | {Reason.AUTHORIZATION_WITHOUT_EFFECT}
    assert tested == set(Reason) - set(CODES) - OF_SENDER - {Reason.SIGNABLE, Reason.SIGNING_FAILED}


@pytest.mark.parametrize("blobs", [False, True])
def test_each_row_of_a_wide_batch_is_judged_by_itself(*, blobs: bool) -> None:
    broken = [(reason, changes) for reason, changes in WIDE_BROKEN if (changes.get("type") == 3) == blobs]
    plain = [{"type": 3}, *WIDE_SIGNABLE[1:4]] if blobs else [{"type": 4}, *WIDE_SIGNABLE[4:]]
    pairs = [(reason, changes, plain[k % len(plain)]) for k, (reason, changes) in enumerate(broken)]
    batch = rows_.wide_batch([rows_.row(**each) for _, changes, good in pairs for each in (good, changes, good)])
    assert judge(batch).tolist() == [code for reason, _, _ in pairs for code in (0, int(reason), 0)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"type": 3, "blob_hashes": [BLOB_HASH] * 6}, 21_000),
        ({"type": 4}, 46_000),
        ({"type": 4, "authorization_list": [authorization()] * 3, "access_list": [ENTRY]}, 21_000 + 6_200 + 75_000),
        ({"type": 4, "data": b"\1" * 1_000}, 62_000),  # 1,000 · 16 + 25,000 against the floor of 1,000 · 40
        ({"type": 4, "data": b"\1" * 2_000}, 101_000),  # the floor
    ],
)
def test_intrinsic_gas(changes: dict[str, object], expected: int) -> None:
    assert intrinsic_gas(rows_.wide_batch([rows_.row(**changes)]), 0) == expected
    assert verdict(**changes | {"gas_limit": expected}) is Reason.SIGNABLE
    assert verdict(**changes | {"gas_limit": expected - 1}) is Reason.INTRINSIC_GAS_ABOVE_GAS_LIMIT


@pytest.mark.parametrize("reason", sorted(set(Reason) - {Reason.SIGNABLE}))
@pytest.mark.parametrize("kind", range(5))
def test_every_reason_of_a_wide_batch_is_explained_to_a_person(kind: int, reason: Reason) -> None:
    batch = rows_.wide_batch([rows_.row(type=kind, tx_id=k) for k in range(2)], sender=rows_.ADDRESS)
    text = explain(batch, 1, reason)
    assert len(text) > 15
    assert "\n" not in text
    if reason in {Reason.SENDER_UNKNOWN, Reason.SENDER_DISABLED}:
        assert rows_.ADDRESS in text


def test_an_explanation_has_the_numbers_of_blobs_and_authorizations() -> None:
    blobs = rows_.wide_batch([rows_.row(type=3), rows_.row(type=3, blob_hashes=[BLOB_HASH] * 7)])
    assert explain(blobs, 1, Reason.BLOBS_MALFORMED).startswith("blob hashes: 7, blob fee: 1000000000;")
    codes = rows_.wide_batch([rows_.row(), rows_.row(type=4, gas_limit=7), rows_.row(type=9)])
    text = explain(codes, 1, Reason.INTRINSIC_GAS_ABOVE_GAS_LIMIT)
    assert text.startswith("gas limit 7 is below the intrinsic gas 46000 (EIP-2028, ")
    assert explain(codes, 1, Reason.AUTHORIZATIONS_NOT_ALLOWED).endswith("here are 1")
    assert explain(codes, 0, Reason.BLOBS_NOT_ALLOWED).endswith("blob hashes: 0, blob fee: none")
    assert explain(codes, 2, Reason.UNKNOWN_TYPE).endswith("3 blob, 4 set code")


some_authorizations = st.fixed_dictionaries(
    {},
    optional={
        "chain_id": st.sampled_from([0, 2]),
        "nonce": st.integers(0, 2**64 - 1),
        "y_parity": st.integers(0, 2),
        "r": st.sampled_from([0, 1, ORDER - 1, ORDER]).map(rows_.wei),
        "s": st.sampled_from([0, 1, HALF_ORDER, HALF_ORDER + 1]).map(rows_.wei),
    },
).map(lambda changes: authorization(**changes))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    st.builds(
        lambda row, changes: row | changes,
        rows_.rows(kinds=range(5)),
        st.fixed_dictionaries(
            {"gas_limit": st.sampled_from([0, 21_000, 46_000, PLENTY, 2**63 - 1, 2**63])},
            optional={
                "chain_id": st.sampled_from([1, 2]),
                "type": st.integers(0, 5),
                "to": st.one_of(st.none(), rows_.addresses),
                "max_priority_fee_per_gas": st.one_of(st.none(), st.integers(0, 10)),
                "value": st.integers(FULL - 2**110, FULL).map(rows_.wei),
                "data": st.just(b""),
                "access_list": st.none(),
                "defect": st.sampled_from([0, 5, 28, 30]),
                "max_fee_per_blob_gas": st.one_of(st.none(), st.integers(0, 2**64 - 1)),
                "blob_hashes": st.one_of(st.none(), st.lists(st.sampled_from([BLOB_HASH, bytes(32)]), max_size=8)),
                "authorization_list": st.one_of(st.none(), st.lists(some_authorizations, max_size=3)),
            },
        ),
    )
)
def test_the_rules_of_a_wide_batch_agree_with_plain_integers(row: rows_.Row) -> None:
    assert judge(rows_.wide_batch([row])).tolist() == [int(reference(row, wide=True))]


@settings(max_examples=200, deadline=None)
@given(
    st.integers(21_000, 2**63 - 1),
    rows_.integers(rows_.BOUNDARIES, 2**64 - 1),
    st.integers(1, 6),
    rows_.integers(rows_.BOUNDARIES, 2**64 - 1),
    st.integers(-2, 2),
)
def test_the_cost_with_blobs_is_exact_at_its_bound(
    limit: int, fee: int, blobs: int, blob_fee: int, beside: int
) -> None:
    paid = limit * fee + blobs * 131_072 * blob_fee
    value = min(FULL, max(0, FULL - paid + beside))
    expected = Reason.SIGNABLE if value + paid <= FULL else Reason.COST_OUT_OF_RANGE
    found = verdict(
        type=3,
        value=rows_.wei(value),
        gas_limit=limit,
        max_fee_per_gas=fee,
        max_priority_fee_per_gas=0,
        max_fee_per_blob_gas=blob_fee,
        blob_hashes=[BLOB_HASH] * blobs,
    )
    assert found is expected

"""Policies: the reader's columns and the verifier's plain comparisons say the same of every row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputFileError, MalformedBatch
from pipeline.ethereum.batch import CODEC, POLICY_CODEC, Batch
from pipeline.ethereum.policy import Policy, applied
from pipeline.ethereum.policy_file import read_policy
from pipeline.ethereum.reasons import Reason
from pipeline.ethereum.validity import explain, judge
from tests.ethereum_rows import BOUNDARIES, WEI, header, record_batch, row, wei, wide_record_batch

ALICE, BOB = b"\xaa" * 20, b"\xbb" * 20
TRANSFER = bytes.fromhex("a9059cbb")

addresses = st.sampled_from([ALICE, BOB, bytes(20), b"\xff" * 20, None])
amounts = st.sampled_from(WEI) | st.integers(0, 2**256 - 1)
words = st.sampled_from(BOUNDARIES) | st.integers(0, 2**64 - 1)
payloads = st.sampled_from([b"", b"\x01", TRANSFER, TRANSFER[:3], TRANSFER + b"x", b"\x00" * 40])


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


policies = st.builds(
    Policy,
    version=st.just(3),
    recipients=maybe(st.frozensets(st.sampled_from([ALICE, BOB, bytes(20)]))),
    creations=st.booleans(),
    value_max=maybe(amounts),
    fee_cap_max=maybe(words),
    gas_limit_max=maybe(words),
    selectors=maybe(st.frozensets(st.sampled_from([TRANSFER, b"\x00" * 4]))),
)
rows = st.builds(
    row,
    to=addresses,
    value=amounts.map(wei),
    max_fee_per_gas=words,
    gas_limit=words,
    data=payloads,
    defect=st.sampled_from([0, 0, 0, int(Reason.TO_MALFORMED)]),
)


def reasons(policy: Policy, *given_rows: dict[str, Any]) -> list[Reason]:
    batch = applied(policy, record_batch(given_rows))
    return [Reason(int(defect)) for defect in batch.column("defect").to_numpy(zero_copy_only=False)]


@settings(max_examples=400)
@given(policies, st.lists(rows, min_size=1, max_size=12))
def test_columns_and_comparisons_agree(policy: Policy, given_rows: list[dict[str, Any]]) -> None:
    for found, one in zip(reasons(policy, *given_rows), given_rows, strict=True):
        if one["defect"]:
            assert found is Reason(one["defect"])
            continue
        value = int.from_bytes(one["value"], "big")
        assert found is policy.verdict(one["to"], value, one["max_fee_per_gas"], one["gas_limit"], one["data"])


@pytest.mark.parametrize(
    ("policy", "good", "bad", "reason"),
    [
        (Policy(1, recipients=frozenset({ALICE})), {"to": ALICE}, {"to": BOB}, Reason.POLICY_RECIPIENT),
        (Policy(1, recipients=frozenset()), {"to": None}, {"to": BOB}, Reason.POLICY_RECIPIENT),
        (Policy(1, creations=False), {"to": ALICE}, {"to": None, "data": b"x"}, Reason.POLICY_CREATION),
        (Policy(1, value_max=5), {"value": wei(5)}, {"value": wei(6)}, Reason.POLICY_VALUE),
        (Policy(1, value_max=2**192), {"value": wei(2**192)}, {"value": wei(2**192 + 1)}, Reason.POLICY_VALUE),
        (Policy(1, value_max=2**64 - 1), {"value": wei(7)}, {"value": wei(2**64)}, Reason.POLICY_VALUE),
        (Policy(1, fee_cap_max=9), {"max_fee_per_gas": 9}, {"max_fee_per_gas": 10}, Reason.POLICY_FEE_CAP),
        (Policy(1, gas_limit_max=21_000), {"gas_limit": 21_000}, {"gas_limit": 21_001}, Reason.POLICY_GAS_LIMIT),
        (Policy(1, selectors=frozenset({TRANSFER})), {"data": TRANSFER + b"1"}, {"data": b"1"}, Reason.POLICY_SELECTOR),
        (Policy(1, selectors=frozenset()), {"data": b""}, {"data": TRANSFER}, Reason.POLICY_SELECTOR),
        (Policy(1, selectors=frozenset()), {"to": None, "data": b"init"}, {"data": b"init"}, Reason.POLICY_SELECTOR),
    ],
)
def test_each_bound(policy: Policy, good: dict[str, Any], bad: dict[str, Any], reason: Reason) -> None:
    assert reasons(policy, row(**good), row(**bad)) == [Reason.SIGNABLE, reason]


def test_a_denied_row_is_rejected_and_told_why() -> None:
    policy = Policy(7, recipients=frozenset({ALICE}), value_max=10**18)
    named = replace(header(), policy=7)
    given_rows = [row(to=ALICE), row(to=BOB), row(to=ALICE, value=wei(2 * 10**18))]
    batch = Batch.build(named, applied(policy, record_batch(given_rows)))
    found = [Reason(int(each)) for each in judge(batch)]
    assert found == [Reason.SIGNABLE, Reason.POLICY_RECIPIENT, Reason.POLICY_VALUE]
    assert explain(batch, 1, found[1]) == "policy 7 does not list the recipient"
    assert explain(batch, 2, found[2]) == "the value is above what policy 7 allows"


@pytest.mark.parametrize("kind", [2, 3, 4])
def test_a_wide_batch_is_denied_the_same(kind: int) -> None:
    policy = Policy(7, recipients=frozenset({ALICE}), value_max=10**18)
    given_rows = [row(type=kind, to=ALICE), row(type=kind, to=BOB), row(type=kind, to=ALICE, value=wei(2 * 10**18))]
    rows = applied(policy, wide_record_batch(given_rows))
    batch = Batch.build(replace(header(), policy=7, wide=True), rows)
    assert judge(batch).tolist() == [0, int(Reason.POLICY_RECIPIENT), int(Reason.POLICY_VALUE)]
    assert rows.drop_columns(["defect"]).equals(wide_record_batch(given_rows).drop_columns(["defect"]))
    assert Batch.decode(batch.encode()).digest == batch.digest


def test_every_code_is_explained() -> None:
    batch = Batch.build(replace(header(), policy=7), record_batch([row()]))
    for reason in Reason:
        if reason.name.startswith("POLICY"):
            assert "policy 7" in explain(batch, 0, reason)


def test_the_version_is_under_the_digest() -> None:
    made = [Batch.build(replace(header(), policy=version), record_batch([row()])) for version in (0, 1, 2)]
    assert len({batch.digest for batch in made}) == 3
    assert [batch.header.codec for batch in made] == [CODEC, POLICY_CODEC, POLICY_CODEC]
    for batch in made:
        assert Batch.decode(batch.encode()).header == batch.header
    changed = made[1].encode().replace(b"oncesign.policy\x00", b"oncesign.polizy\x00")
    assert changed != made[1].encode()
    with pytest.raises(MalformedBatch, match="lacks or garbles 'policy'"):
        Batch.decode(changed)


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_is_read() -> None:
    text = f"""
# what payouts may do
recipients = ["0x{ALICE.hex()}", "0x{BOB.hex().upper()}"]
creations = false
value_max_wei = "1000000000000000000000"
fee_cap_max_wei = 200_000_000_000
gas_limit_max = 0
selectors = ["0xa9059cbb"]
"""
    assert read_policy("file", text, 4) == Policy(
        4, frozenset({ALICE, BOB}), creations=False, value_max=10**21, fee_cap_max=2 * 10**11, gas_limit_max=0,
        selectors=frozenset({TRANSFER}),
    )  # fmt: skip
    assert read_policy("file", "", 1) == Policy(1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("creations = maybe", "file:1: Invalid value"),
        ("\n\ncreations = ", "file:3: Invalid value"),
        ("creations = false\nvalue_max = 3", "file:2: value_max is none of recipients, creations"),
        ("creations = 0", "file:1: creations is neither true nor false"),
        ("\nvalue_max_wei = -1", "file:2: value_max_wei is not a whole number from 0 to"),
        ("value_max_wei = 1.5", "file:1: value_max_wei is not a whole number"),
        ("value_max_wei = true", "file:1: value_max_wei is not a whole number"),
        (f'value_max_wei = "{2**256}"', "file:1: value_max_wei is not a whole number"),
        (f'gas_limit_max = "{2**64}"', "file:1: gas_limit_max is not a whole number"),
        ('\n\nrecipients = "0x12"', "file:3: recipients is not a list"),
        ('recipients = ["0x12"]', "file:1: recipients lists '0x12', which is not 0x and 40 hex digits"),
        ('creations = true\nselectors = ["0xa9059cbb", 7]', "file:2: selectors lists '7', which is not 0x and 8"),
        ("creations = true\ncreations = true", "file:2: Cannot overwrite a value"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_line(text: str, said: str) -> None:
    with pytest.raises(InputFileError) as caught:
        read_policy("file", text, 1)
    assert str(caught.value).startswith(said)
    assert "See docs/custody.md" in str(caught.value)

"""What was written by earlier versions is read as it was meant, for ever."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.ethereum.authorization import authority
from pipeline.ethereum.batch import Batch
from pipeline.ethereum.decoding import decode
from pipeline.ethereum.kernel import sign
from pipeline.ethereum.policy import NO_POLICY
from pipeline.ethereum.reasons import Reason
from pipeline.ethereum.rejected import Rejection
from pipeline.ethereum.signed import SignedRecord
from pipeline.ethereum.validity import judge, rules_version
from tests import ethereum_rows as rows_
from tests.ethereum_rows import ADDRESS, header

FOLDER = Path(__file__).parent / "recorded"
RECORDED: dict[str, str] = json.loads((FOLDER / "codec1.json").read_text())
POLICY: dict[str, str] = json.loads((FOLDER / "codec2.json").read_text())
WIDE: dict[str, str] = json.loads((FOLDER / "codec3.json").read_text())


def test_a_batch_of_codec_1() -> None:
    found = Batch.decode(base64.b64decode(RECORDED["batch"]))
    assert (found.header, found.header.policy, found.digest) == (header(), NO_POLICY, RECORDED["digest"])
    assert [Reason(int(each)) for each in judge(found)] == [Reason.SIGNABLE] * 3 + [Reason.TO_MALFORMED]
    assert Batch.decode(found.encode()).digest == RECORDED["digest"]


def test_a_signed_record_of_codec_1() -> None:
    found = SignedRecord.decode(base64.b64decode(RECORDED["signed"]))
    assert (found.header.sender, found.header.first_nonce, found.header.count) == (ADDRESS, 5, 3)
    assert (found.header.digest, found.header.policy) == (RECORDED["digest"], NO_POLICY)
    assert found.encode() == base64.b64decode(RECORDED["signed"])


def test_a_rejection_from_before_there_were_policies() -> None:
    found = Rejection.from_json(RECORDED["rejection"].encode())
    assert (found.tx_id, found.reason, found.policy) == (4, Reason.TO_MALFORMED.code, NO_POLICY)


@pytest.mark.parametrize("name", ["batch", "signed"])
def test_what_was_recorded_is_of_codec_1(name: str) -> None:
    assert b"oncesign.codec" in base64.b64decode(RECORDED[name])
    assert b"oncesign.policy" not in base64.b64decode(RECORDED[name])


def test_a_batch_of_codec_2() -> None:
    found = Batch.decode(base64.b64decode(POLICY["batch"]))
    assert (found.header, found.digest) == (replace(header(), policy=7), POLICY["digest"])
    assert (found.header.codec, rules_version(found)) == (2, 1)
    assert [Reason(int(each)) for each in judge(found)] == [Reason.SIGNABLE] * 3 + [Reason.POLICY_VALUE]
    assert Batch.decode(found.encode()).digest == POLICY["digest"]


def test_a_rejection_by_a_policy() -> None:
    found = Rejection.from_json(POLICY["rejection"].encode())
    assert (found.tx_id, found.reason, found.policy) == (4, Reason.POLICY_VALUE.code, 7)
    assert found.rules_version == 1


def test_a_batch_of_codec_3_of_blobs() -> None:
    found = Batch.decode(base64.b64decode(WIDE["blob_batch"]))
    assert found.header == replace(header(), policy=7, wide=True, sender=ADDRESS)
    assert (found.header.codec, rules_version(found), found.digest) == (3, 2, WIDE["blob_digest"])
    assert found.blobs
    assert [Reason(int(each)) for each in judge(found)] == [Reason.SIGNABLE] * 2 + [Reason.BLOBS_MALFORMED]
    assert found.extras.blob_fee.tolist() == [10**9, 2**64 - 1, 10**9]
    assert found.extras.blob_offsets.tolist() == [0, 1, 7, 8]
    assert Batch.decode(found.encode()).digest == WIDE["blob_digest"]


def test_a_batch_of_codec_3_of_set_code() -> None:
    found = Batch.decode(base64.b64decode(WIDE["set_code_batch"]))
    assert found.header == replace(header(), wide=True)
    assert (found.header.codec, rules_version(found), found.digest) == (3, 2, WIDE["set_code_digest"])
    assert not found.blobs
    expected = [Reason.SIGNABLE] * 4 + [Reason.AUTHORIZATION_WITHOUT_EFFECT]
    assert [Reason(int(each)) for each in judge(found)] == expected
    assert found.extras.auth_offsets.tolist() == [0, 1, 3, 3, 3, 4]
    assert Batch.decode(found.encode()).digest == WIDE["set_code_digest"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("blob", Reason.BLOBS_MALFORMED), ("set_code", Reason.AUTHORIZATION_WITHOUT_EFFECT)],
)
def test_a_rejection_by_the_rules_of_wide_batches(name: str, reason: Reason) -> None:
    found = Rejection.from_json(WIDE[f"{name}_rejection"].encode())
    assert (found.reason, found.rules_version) == (reason.code, 2)


@pytest.mark.parametrize(
    ("batch", "signed"),
    [
        (POLICY["batch"], POLICY["signed"]),
        (WIDE["blob_batch"], WIDE["blob_signed"]),
        (WIDE["set_code_batch"], WIDE["set_code_signed"]),
    ],
)
def test_a_signed_record_is_what_its_batch_gives_today(batch: str, signed: str) -> None:
    asked, found = Batch.decode(base64.b64decode(batch)), SignedRecord.decode(base64.b64decode(signed))
    head = found.header
    assert (head.sender, head.first_nonce, head.fence, head.worker) == (ADDRESS, 5, 7, "signer-0")
    assert (head.digest, head.policy) == (asked.digest, asked.header.policy)
    again = sign(asked, judge(asked) == 0, rows_.SECRET, head.first_nonce)
    assert SignedRecord.build(head, again).encode() == base64.b64decode(signed)


def test_the_authorizations_that_were_recorded_name_who_gave_them() -> None:
    raw: list[Any] = SignedRecord.decode(base64.b64decode(WIDE["set_code_signed"])).rows.column("raw").to_pylist()
    entries = [entry for one in raw for entry in decode(one).authorizations]
    names = ("chainId", "nonce", "yParity", "r", "s")
    found = [
        authority(
            dict(zip(names, map(hex, (chain_id, nonce, parity, r, s)), strict=True)) | {"address": f"0x{address.hex()}"}
        )
        for chain_id, address, nonce, parity, r, s in entries
    ]
    secrets = (rows_.SECRET, bytes(31) + b"\1", bytes(31) + b"\2")
    assert found == [rows_.address_of(secret) for secret in secrets]

"""What was written by earlier versions is read as it was meant, for ever."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from pipeline.ethereum.batch import Batch
from pipeline.ethereum.policy import NO_POLICY
from pipeline.ethereum.reasons import Reason
from pipeline.ethereum.rejected import Rejection
from pipeline.ethereum.signed import SignedRecord
from pipeline.ethereum.validity import judge
from tests.ethereum_rows import ADDRESS, header

RECORDED: dict[str, str] = json.loads((Path(__file__).parent / "recorded" / "codec1.json").read_text())


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

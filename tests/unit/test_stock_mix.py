"""Mocked rows: reproducible, like real traffic, signable unless asked otherwise, and of every reason when asked."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from pipeline.ethereum.batch import COLUMNS, Batch, BatchHeader
from pipeline.ethereum.policy import CODES
from pipeline.ethereum.reasons import Reason
from pipeline.ethereum.validity import judge
from pipeline.stock.mix import APPROVE, SPOILERS, TRANSFER, Mix
from pipeline.stock.row import Row
from pipeline.stream import START, Cursor, Stream
from pipeline.testing.source import TwinSource

NEWER = {reason for reason in Reason if reason >= Reason.SENDER_MALFORMED}
CANNOT_BE_A_ROW = {Reason.SIGNABLE, Reason.TO_MALFORMED, Reason.SIGNING_FAILED, *CODES, *NEWER}


async def verdicts(rows: list[Row], chain_id: int = 1) -> list[Reason]:
    source = TwinSource(shards=1)
    source.insert(*rows)
    table = await source.rows_after(0, START, len(rows))
    header = BatchHeader(Stream("payouts", 0), 1, START, Cursor(3, len(rows)), chain_id, "x")
    batch = Batch.build(header, table.select(COLUMNS.names).combine_chunks().to_batches()[0])
    return [Reason(int(reason)) for reason in judge(batch)]


def test_a_seed_gives_the_same_rows_however_many_are_asked_for() -> None:
    assert list(Mix(7, 1).rows(500, 0.1)) == list(islice(Mix(7, 1).rows(900, 0.1), 500))
    assert list(Mix(7, 1).rows(50)) != list(Mix(8, 1).rows(50))


async def test_every_row_can_be_signed() -> None:
    assert Counter(await verdicts(list(Mix(3, 137).rows(4_000)), chain_id=137)) == {Reason.SIGNABLE: 4_000}


async def test_the_invalid_ones_break_every_rule_that_a_row_can_break() -> None:
    found = Counter(await verdicts(list(Mix(3, 1).rows(700, invalid_share=0.2))))
    assert set(found) == set(Reason) - CANNOT_BE_A_ROW | {Reason.SIGNABLE}
    assert 0.75 < found[Reason.SIGNABLE] / 700 < 0.85


@pytest.mark.parametrize("reason", SPOILERS, ids=lambda reason: reason.code)
async def test_a_spoiled_row_breaks_the_rule_that_it_should(reason: Reason) -> None:
    rows = [SPOILERS[reason](row) for row in Mix(5, 1).rows(20)]
    assert set(await verdicts(rows)) == {reason}


def test_it_looks_like_traffic() -> None:
    rows = list(Mix(1, 1).rows(5_000))
    kinds = Counter(row.type for row in rows)
    assert kinds[2] > 3_500
    assert kinds[0] > 500
    assert kinds[1] > 100
    selectors = Counter(row.data[:4] for row in rows)
    assert selectors[TRANSFER] > 800
    assert selectors[APPROVE] > 200
    assert all(len(row.data) == 68 for row in rows if row.data[:4] in (TRANSFER, APPROVE))
    assert sum(row.to is None for row in rows) > 50
    assert sum(row.access_list is not None for row in rows) > 80
    assert sum(len(row.data) > 200 for row in rows) > 300
    fees = np.log([row.max_fee_per_gas for row in rows])
    assert 0.2 < fees.std() < 1.0
    assert len({row.to for row in rows}) > 3_000

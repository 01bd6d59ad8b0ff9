from __future__ import annotations

import json

import numpy as np
import pytest

from jobs.bench_kernel import TYPES, bench, main, mixed_rows, table, typed_rows
from pipeline.errors import UsageError

FIGURES = {"raw_us", "ours_us", "eth_account_us", "ratio_to_raw", "ratio_to_eth_account"}


def test_the_report_has_its_fields_and_they_fit_together() -> None:
    report = bench(40, 3)
    assert set(report) == FIGURES | {"count", "rounds", "types"}
    assert set(report["types"]) == set(TYPES)
    for part in (report, *report["types"].values()):
        assert part["ratio_to_raw"] == pytest.approx(part["raw_us"] / part["ours_us"], rel=0.01)
        assert part["ratio_to_eth_account"] == pytest.approx(part["eth_account_us"] / part["ours_us"], rel=0.01)
        assert part["raw_us"] > 1  # a signature that takes less was not made
        assert part["ratio_to_eth_account"] > 2
    assert all(name in table(report) for name in ("mix", *TYPES))


def test_json_is_one_object_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "--count", "10", "--rounds", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["count"] == 10


@pytest.mark.parametrize(("count", "rounds"), [(0, 1), (1, 0), (-5, 3)])
def test_nothing_to_measure_is_refused(count: int, rounds: int) -> None:
    with pytest.raises(UsageError):
        bench(count, rounds)


def test_the_mix_is_as_described() -> None:
    rows = mixed_rows(5_000)
    data = np.array([len(row["data"]) for row in rows])
    share = {
        "creation": np.mean([row["to"] is None for row in rows]),
        "list": np.mean([row["access_list"] is not None for row in rows]),
        "token": np.mean(data == 68),
        "call": np.mean([200 <= len(row["data"]) <= 1_000 and row["to"] is not None for row in rows]),
    }
    expected = {"creation": 0.02, "list": 0.03, "token": 0.30, "call": 0.10}
    assert share == pytest.approx(expected, abs=0.02)
    assert mixed_rows(50) == rows[:50]


@pytest.mark.parametrize("kind", range(5))
def test_rows_of_one_type_are_of_it(kind: int) -> None:
    assert {row["type"] for row in typed_rows(20, kind)} == {kind}

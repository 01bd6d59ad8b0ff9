"""A source with a policy, on real servers and by the command line."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import psycopg
import pytest

from pipeline.adapters.postgres import connection_string
from pipeline.custody.sealing import Kek
from pipeline.settings import Settings, SourceSettings
from tests.command_line import Oncesign
from tests.pipeline_run import running, stock

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

ROWS = 2_000


@pytest.fixture
def settings(deployed: Settings, tmp_path: Path) -> Settings:
    Kek.create(deployed.kek_path)
    source = SourceSettings(policy_file=tmp_path / "policy.toml")
    return deployed.model_copy(update={"sources": [source]})


async def signed(settings: Settings, kek: Kek, policy: str, seed: int) -> None:
    """As many more rows under a policy."""
    [source] = settings.sources
    assert source.policy_file is not None
    source.policy_file.write_text(policy)
    stock(settings, ROWS, seed=seed, invalid=0.1)
    async with running(settings, kek) as run:
        await run.until(ROWS)
        assert not run.consumer.halted


def test_each_version_denies_and_all_of_it_verifies(settings: Settings, kek: Kek, oncesign: Oncesign) -> None:
    stricter = "creations = false\ngas_limit_max = 30000\n"
    for seed, policy in enumerate(("creations = false\n", stricter, stricter)):
        asyncio.run(signed(settings, kek, policy, seed))
    verified = oncesign("verify", "--json")
    assert verified.code == 0, verified.err
    found = json.loads(verified.out)
    assert (found["violations"], found["signed"] + found["rejected"]) == (0, 3 * ROWS)
    history = [json.loads(line) for line in oncesign("policy", "history", "--json").out.splitlines()]
    assert [(entry["source"], entry["version"]) for entry in history] == [("payouts", 1), ("payouts", 2)]
    rejections = [json.loads(line) for line in exported(oncesign, settings)]
    reasons = {row["reason"] for row in rejections}
    assert {"policy_creation", "policy_gas_limit"} <= reasons
    assert {row["detail"] for row in rejections if row["reason"] == "policy_gas_limit"} != set()


def test_a_spent_budget_waits_for_the_next_period(settings: Settings, kek: Kek, oncesign: Oncesign) -> None:
    [source] = settings.sources
    assert source.policy_file is not None
    stock(settings, ROWS)
    with psycopg.connect(connection_string(settings.postgres)) as connection:
        [[cost]] = connection.execute("SELECT sum(value + gas_limit * max_fee_per_gas) FROM transactions").fetchall()
    budget = str(int(cost) * 2 // 5)  # whatever the moment, some of it has to wait for the period after the next
    source.policy_file.write_text(f'budget_wei = "{budget}"\nbudget_period_s = 10\n')
    assert asyncio.run(looks_over_budget(settings, kek)) > 0
    assert json.loads(oncesign("verify", "--json").out)["violations"] == 0
    assert json.loads(oncesign("status", "--json").out)["budgets"][source.name]["of_wei"] == budget


async def looks_over_budget(settings: Settings, kek: Kek) -> int:
    """Sign everything; how often the key manager was seen to say that the budget is spent."""
    seen = 0
    async with running(settings, kek) as run:
        while run.consumer.count.signed < ROWS:
            seen += run.manager.status()["over_budget"] == [settings.sources[0].name]
            await asyncio.sleep(0.05)
        await run.until(ROWS)
        assert not run.consumer.halted
    return seen


def exported(oncesign: Oncesign, settings: Settings) -> list[str]:
    file = settings.data_dir / "rejected.jsonl"
    ended = oncesign("export", str(file), "--status", "rejected")
    assert ended.code == 0, ended.err
    return file.read_text().splitlines()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("creations = false\ncolour = 1\n", "policy.toml:2: colour is none of"),
        ("creations = \n", "policy.toml:1: Invalid value"),
        (None, "policy.toml: No such file or directory."),
    ],
)
def test_a_policy_that_cannot_be_read_is_refused_at_start(
    oncesign: Oncesign, settings: Settings, text: str | None, said: str
) -> None:
    [source] = settings.sources
    assert source.policy_file is not None
    if text is not None:
        source.policy_file.write_text(text)
    assert oncesign("keys", "create").code == 0
    for command in (["sign"], ["policy", "check", str(source.policy_file)]):
        ended = oncesign(*command)
        assert ended.code == 2
        assert said in ended.error
    if text is not None:
        source.policy_file.write_text("creations = false\n")
        assert oncesign("policy", "check", str(source.policy_file)).code == 0

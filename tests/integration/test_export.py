"""`oncesign export` and `oncesign tail` on what a real pipeline signed, against the source and eth-account."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from eth_account import Account
from hexbytes import HexBytes
from pyarrow import parquet

from actors.composition import verifying
from pipeline.adapters.kafka import client_config
from pipeline.adapters.postgres import connection_string
from pipeline.custody.sealing import Kek
from pipeline.ethereum.decoding import decode
from pipeline.ethereum.rejected import Rejection
from pipeline.export.columns import COLUMNS
from pipeline.settings import ReaderSettings, Settings
from tests.bus import KafkaBus
from tests.cloud_events import checked
from tests.command_line import Oncesign, environment
from tests.pipeline_run import running, stock

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

ROWS = 240
KEK = Kek(bytes(range(32)))
DEPLOYMENT = "exporting"
BATCH_ROWS = 25


@pytest.fixture(scope="module")
def settings(deployed_for_all: Settings) -> Settings:
    """Where a pipeline has signed, and a verifier has decided, `ROWS` rows."""
    made = deployed_for_all.model_copy(update={"reader": ReaderSettings(batch_rows_max=BATCH_ROWS)})
    stock(made, ROWS, invalid=0.1)
    asyncio.run(signed_and_verified(made))
    return made


async def signed_and_verified(settings: Settings) -> None:
    async with running(settings, KEK, keys=3) as run:
        await run.until(ROWS)
    async with verifying.verifier(settings) as verifier:
        await verifier.catch_up()
        assert await verifier.reconcile() == []


def queried(settings: Settings, query: str) -> list[dict[str, Any]]:
    with psycopg.connect(connection_string(settings.postgres), row_factory=psycopg.rows.dict_row) as connection:
        return connection.execute(query.encode()).fetchall()


def decided(settings: Settings) -> dict[int, dict[str, Any]]:
    found = queried(settings, "SELECT * FROM outcomes")
    return {row["tx_id"]: row for row in found}


# ── export ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_row_is_exported_as_it_was_signed(oncesign: Oncesign, settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    ended = oncesign("export", str(path), "--json")
    assert ended.code == 0, ended.err
    table = parquet.read_table(path)
    assert table.schema.equals(COLUMNS)
    exported = table.to_pylist()
    outcomes, source = decided(settings), {row["id"]: row for row in queried(settings, "SELECT * FROM transactions")}
    assert sorted(row["tx_id"] for row in exported) == sorted(source) == sorted(outcomes)
    for row in exported:
        outcome, asked = outcomes[row["tx_id"]], source[row["tx_id"]]
        for name in ("source", "status", "chain_id", "sender", "nonce", "hash", "decided_at"):
            assert row[name] == outcome[name], name
        assert (row["reason"] or "") == outcome["reason"]
        if row["status"] == "rejected":
            assert (row["raw"], row["nonce"]) == (None, None)
            continue
        tx = decode(row["raw"])
        assert Account.recover_transaction(HexBytes(row["raw"])).lower() == "0x" + row["sender"].hex()
        assert (tx.nonce, tx.hash, tx.to, tx.value, tx.data) == (
            row["nonce"], row["hash"], asked["to"], int(asked["value"]), asked["data"],
        )  # fmt: skip
    assert len({(row["sender"], row["nonce"]) for row in exported if row["raw"]}) == len(
        [row for row in exported if row["raw"]]
    )
    places = [
        (o["topic"], o["partition"], o["kafka_offset"], o["nonce"]) for o in (outcomes[r["tx_id"]] for r in exported)
    ]
    assert places == sorted(places, key=lambda at: (*at[:3], at[3] or 0))
    summary = json.loads(ended.out)
    assert summary["signed"] + summary["rejected"] == summary["rows"] == ROWS
    assert summary["rejected"] == sum(row["status"] == "rejected" for row in exported) > 0
    assert (summary["without_raw"], summary["waiting"], summary["fillers"]) == (0, 0, 0)


def test_the_other_formats_say_the_same(oncesign: Oncesign, tmp_path: Path) -> None:
    binary, lines = tmp_path / "a.parquet", tmp_path / "a.jsonl"
    for path in (binary, lines):
        assert oncesign("export", str(path)).code == 0
    stdout = oncesign("export", "-", "--format", "csv")
    assert stdout.code == 0
    as_csv = list(csv.DictReader(io.StringIO(stdout.out)))
    as_json = [json.loads(line) for line in lines.read_text().splitlines()]
    expected = parquet.read_table(binary).to_pylist()
    assert len(as_csv) == len(as_json) == len(expected) == ROWS
    for row, from_csv, from_json in zip(expected, as_csv, as_json, strict=True):
        for name in ("sender", "hash", "raw"):
            row[name] = None if row[name] is None else "0x" + row[name].hex()
        row["decided_at"] = row["decided_at"].strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        assert from_json == row
        assert from_csv == {name: "" if value is None else str(value) for name, value in row.items()}
    assert "signed and" in stdout.err


def test_one_status_or_one_source(oncesign: Oncesign) -> None:
    rows = [json.loads(line) for line in oncesign("export", "-", "--format", "jsonl").out.splitlines()]
    for status in ("signed", "rejected"):
        ended = oncesign("export", "-", "--format", "jsonl", "--status", status, "--source", "payouts")
        assert [json.loads(line) for line in ended.out.splitlines()] == [r for r in rows if r["status"] == status]


def test_what_cannot_be_written(oncesign: Oncesign, tmp_path: Path) -> None:
    (tmp_path / "there.csv").write_text("precious")
    (tmp_path / "folder.csv").mkdir()
    before = sorted(tmp_path.iterdir())
    for arguments, says in (
        ([str(tmp_path / "there.csv")], "is there already. Nothing was written. To replace it: --force"),
        ([str(tmp_path / "folder.csv")], "is a directory. Nothing was written."),
        ([str(tmp_path / "none" / "a.csv")], "No such file or directory. Nothing was written."),
        (["/proc/a.csv"], "Nothing was written."),
        ([str(tmp_path / "rows.xlsx")], "no format has this suffix. Give --format: parquet, csv, jsonl."),
        (["-"], "no format has this suffix. Give --format: parquet, csv, jsonl."),
        (["-", "--format", "parquet"], "Parquet is not for stdout. Name a file, or give --format csv or jsonl."),
        ([str(tmp_path / "a.csv"), "--source", "nope"], "no source is called 'nope'. Known: payouts."),
    ):
        ended = oncesign("export", *arguments)
        assert (ended.code, ended.out) == (2, "")
        assert ended.error.endswith(says)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "there.csv").read_text() == "precious"
    assert oncesign("export", str(tmp_path / "there.csv"), "--force").code == 0
    assert (tmp_path / "there.csv").read_text().count("\n") == ROWS + 1


NO_POSTGRES = {"ONCESIGN_POSTGRES__DSN": "postgresql://me@127.0.0.1:1/x"}
NO_KAFKA = {"ONCESIGN_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"}


def test_a_server_that_is_not_there(oncesign: Oncesign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.adapters.topics.CALL_TIMEOUT_S", 1.0)
    export = ("export", str(tmp_path / "a.csv"))
    for arguments, env, says in (
        (export, NO_POSTGRES, "Postgres at 127.0.0.1:1/x"),
        (export, NO_KAFKA, "Kafka at 127.0.0.1:1"),
        (("tail",), NO_KAFKA, "Kafka at 127.0.0.1:1"),
    ):
        ended = oncesign(*arguments, env=env)
        assert (ended.code, ended.out) == (3, "")
        assert ended.error.startswith(says)
    assert list(tmp_path.iterdir()) == []


def test_who_reads_stdout_may_stop(settings: Settings) -> None:
    script = f'"{sys.executable}" -m jobs.app export - --format jsonl | head -n 1; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", script], env=os.environ | environment(settings), capture_output=True, text=True, check=True
    )
    row, code = done.stdout.splitlines()
    assert json.loads(row)["source"] == "payouts"
    assert (code, done.stderr) == ("0", "")


# ── tail ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_transaction_is_an_event(oncesign: Oncesign, settings: Settings) -> None:
    ended = oncesign("tail", "--json", "--from", "start", "--limit", str(ROWS))
    assert ended.code == 0, ended.err
    events = [checked(line) for line in ended.out.splitlines()]
    assert len({(event["source"], event["id"]) for event in events}) == ROWS
    outcomes = decided(settings)
    assert {int(event["subject"]) for event in events} == set(outcomes)
    for event in events:
        outcome, data = outcomes[int(event["subject"])], event["data"]
        assert event["type"] == f"oncesign.transaction.{outcome['status']}.v1"
        assert event["source"] == f"/oncesign/{DEPLOYMENT}/payouts/{outcome['shard']}"
        place = f"{outcome['topic']}/{outcome['partition']}/{outcome['kafka_offset']}/"
        assert event["id"].startswith(place)
        if outcome["status"] == "signed":
            assert decode(bytes.fromhex(data["raw"][2:])).hash == outcome["hash"] == bytes.fromhex(data["hash"][2:])
        else:
            assert data["reason"] == outcome["reason"]
    again = oncesign("tail", "--json", "--from", "start", "--limit", str(ROWS)).out.splitlines()
    assert sorted(again) == sorted(ended.out.splitlines())


def test_lines_for_people_and_a_limit(oncesign: Oncesign) -> None:
    ended = oncesign("tail", "--from", "start", "--limit", "2", "--status", "signed")
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert len(lines) == 2
    assert all(" signed   payouts/" in line and f"at {DEPLOYMENT}.signed[" in line for line in lines)
    [rejected] = oncesign("tail", "--from", "end-5", "--limit", "1", "--status", "rejected").out.splitlines()
    assert " rejected payouts/" in rejected


def test_tail_says_what_is_wrong(oncesign: Oncesign) -> None:
    ended = oncesign("tail", "--from", "yesterday")
    assert (ended.code, ended.error) == (
        2,
        "--from yesterday: there is no such place. Give start, now, or for example end-100.",
    )
    ended = oncesign("tail", env={"ONCESIGN_KAFKA__TOPIC_PREFIX": "nobody"})
    assert ended.code == 2
    assert ended.error.startswith("topic nobody.rejected is not there. The first `oncesign sign` makes it.")


# ── processes that are ended ─────────────────────────────────────────────────────────────────────────────────────────


class Begun:
    """A command as a process of its own, past its first words."""

    def __init__(self, settings: Settings, *arguments: str) -> None:
        argv = [sys.executable, "-m", "jobs.app", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(argv, env=os.environ | environment(settings), text=True, **pipes)  # type: ignore[call-overload]
        self.first = self.process.stderr.readline()

    def ended(self) -> tuple[int, str]:
        _, err = self.process.communicate(timeout=20)
        return self.process.returncode, err


def test_tail_follows_and_ends_with_its_reader_or_with_ctrl_c(settings: Settings) -> None:
    followers = [Begun(settings, "tail", "--json", "--status", "rejected") for _ in range(2)]
    assert {follower.first for follower in followers} == {f"following {DEPLOYMENT}.rejected; Ctrl-C ends\n"}
    began_s = time.time()
    rejection = Rejection(1, "elsewhere", 0, 1, 1, "unknown_type", "", 1, 0)
    asyncio.run(publish(settings, rejection))
    for follower in followers:
        event = checked(follower.process.stdout.readline())
        assert event["source"] == f"/oncesign/{DEPLOYMENT}/elsewhere/0"
        assert event["data"]["reason"] == "unknown_type"
        assert time.strftime("%Y-%m-%dT%H", time.gmtime(began_s)) in event["time"]
    followers[0].process.stdout.close()  # as `| head -1` does, and nothing more is published
    followers[0].process.stdout = None
    assert followers[0].ended() == (0, "")
    followers[1].process.send_signal(signal.SIGINT)
    assert followers[1].ended() == (130, "interrupted; nothing that was committed is lost\n")


async def publish(settings: Settings, rejection: Rejection) -> None:
    bus = KafkaBus(settings.kafka, "stranger")
    await bus.append(f"{DEPLOYMENT}.rejected", 0, rejection.to_json())
    await bus.close()


def test_an_interrupted_export_leaves_no_file(settings: Settings, tmp_path: Path) -> None:
    with psycopg.connect(connection_string(settings.postgres)) as connection:
        connection.execute("LOCK TABLE outcomes IN ACCESS EXCLUSIVE MODE")  # so that it waits in the middle
        begun = Begun(settings, "export", str(tmp_path / "rows.parquet"))
        while not blocked(settings):
            time.sleep(0.05)
        assert len(list(tmp_path.iterdir())) == 1
        begun.process.send_signal(signal.SIGINT)
        assert begun.ended() == (130, "interrupted; nothing that was committed is lost\n")
    assert list(tmp_path.iterdir()) == []


def blocked(settings: Settings) -> bool:
    query = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return bool(queried(settings, query))


# ── what is missing; last, for it changes what the others read ───────────────────────────────────────────────────────


def test_rows_without_an_outcome_and_records_that_kafka_deleted(
    oncesign: Oncesign, settings: Settings, tmp_path: Path
) -> None:
    stock(settings, 7, seed=2)
    signed = [row for row in decided(settings).values() if row["status"] == "signed" and row["partition"] == 0]
    signed = signed or [row for row in decided(settings).values() if row["status"] == "signed"]
    partition, first = signed[0]["partition"], min(row["kafka_offset"] for row in signed)
    admin = AdminClient(client_config(settings.kafka))
    [deleted] = admin.delete_records([TopicPartition(f"{DEPLOYMENT}.signed", partition, first + 1)]).values()
    deleted.result(10)
    gone = {row["tx_id"] for row in signed if (row["partition"], row["kafka_offset"]) == (partition, first)}
    path = tmp_path / "rows.jsonl"
    ended = oncesign("export", str(path))
    assert ended.code == 0
    assert f"{len(gone)} of the signed are without their bytes: Kafka has deleted the records." in ended.err
    assert "7 rows have no outcome yet." in ended.err
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == ROWS
    assert {row["tx_id"] for row in rows if row["status"] == "signed" and row["raw"] is None} == gone

"""Recovery is measured from the end of a fault, by rows of every shard, and says whether another fault was near."""

from __future__ import annotations

import time

from jobs.chaos.load import Commit, Load
from jobs.chaos.watch import Watch
from pipeline.settings import PostgresSettings, SourceSettings

SHARDS = 2


def idle_load() -> Load:
    return Load(PostgresSettings(), SourceSettings(shards=SHARDS), seed=1, rate=100)


def test_canaries_are_the_first_rows_of_every_shard_that_were_committed_later() -> None:
    load = idle_load()
    load._commits += [Commit(1.0, ((1, 1), (2, 0))), Commit(3.0, ((3, 1), (5, 1)))]
    assert load.first_after(2.0) is None
    load._commits.append(Commit(4.0, ((6, 0), (7, 1), (8, 0))))
    assert load.first_after(2.0) == (3, 6)
    assert load.first_after(0.5) == (1, 2)


def test_a_fault_beside_another_is_disturbed_and_one_after_it_too_late_is_not() -> None:
    watch = Watch(PostgresSettings(), "payouts", idle_load())
    watch.began()
    watch.began()
    first = watch.over("kill signer", done=True)
    second = watch.over("cut kafka", done=True)
    assert first.disturbed
    assert not second.disturbed
    second.recovered_s = second.ended_s + 2
    watch.began()
    skipped = watch.over("fill disk of etcd", done=False)
    assert not second.disturbed
    assert skipped.kind not in {ended.kind for ended in watch.ended()}
    assert [ended.recovery_s for ended in watch.ended()] == [None, 2.0]


def test_waiting_for_a_recovery_has_an_end() -> None:
    watch = Watch(PostgresSettings(), "payouts", idle_load())
    watch.began()
    case = watch.over("kill signer", done=True)
    assert not watch.wait(case, time.monotonic() + 0.05)
    case.recovered_s = time.monotonic()
    assert watch.wait(case, time.monotonic())

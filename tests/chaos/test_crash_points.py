"""The crash points that matter most, by SIGKILL on real servers; all of them: `python -m tests.chaos.crash_points`."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import psycopg
import pytest

from pipeline.adapters.batch_log import KafkaBatchLog
from pipeline.adapters.kafka import Topics
from pipeline.adapters.postgres import connection_string
from pipeline.adapters.round_writer import KafkaRoundWriter
from pipeline.effects import Moment
from pipeline.ports import Outgoing
from pipeline.settings import EtcdSettings, KafkaSettings, PostgresSettings, Settings
from pipeline.testing.simulation.crashes import Boundary
from tests.chaos.crash_points import LANES, Runner, named, never_met, unexcused
from tests.chaos.crash_points_case import Case
from tests.chaos.crash_points_ground import Ground
from tests.chaos.crash_points_life import ROWS, Place, Point, Record, check
from tests.chaos.crash_points_repair import WRITES, Loss, Repairs
from tests.chaos.crash_points_zygote import Zygote

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

RECORD = Boundary("signer", "postgres", "record")
END = Boundary("consumer", "kafka", "EndTxn")
TXN = Boundary("key-manager", "etcd", "Txn")
POINTS = [
    Point(RECORD, Moment.BEFORE, 2),
    Point(RECORD, Moment.AFTER, 2),
    Point(END, Moment.BEFORE),
    Point(END, Moment.AFTER),
    Point(TXN, Moment.BEFORE, 7),
    Point(TXN, Moment.AFTER, 7),
    Point(Boundary("consumer", "kafka", "TxnOffsetCommit"), Moment.AFTER),
    Point(Boundary("verifier", "postgres", "save"), Moment.AFTER),
]
REPAIR = Point(WRITES, Moment.AFTER)
NOWHERE = Point(RECORD, Moment.AFTER, 1_000_000)


@pytest.fixture(scope="module")
def ground(
    etcd_server: EtcdSettings,
    postgres_server: PostgresSettings,
    kafka_server: KafkaSettings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Ground:
    return Ground(tmp_path_factory.mktemp("crash-points"), etcd_server.endpoints, postgres_server, kafka_server)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


@pytest.fixture(scope="module")
def cases(ground: Ground, zygote: Zygote) -> dict[Point, Case]:
    """All at once: most of a recovery is waiting."""
    runner, repairs = Runner(ground, zygote), Repairs(ground, zygote, 1)
    with ThreadPoolExecutor(LANES) as lanes:
        repair = lanes.submit(repairs.case, Loss.LOST, REPAIR)
        ran = [*lanes.map(lambda point: runner.once((point,)), [*POINTS, NOWHERE]), repair.result()]
    return {case.points[0]: case for case in ran}


@pytest.fixture(scope="module")
def calm(ground: Ground, zygote: Zygote) -> tuple[Place, Record]:
    """A life that nobody kills."""
    place = ground.place()
    return place, zygote.live(place, None, "calm")


@pytest.mark.parametrize("point", [*POINTS, REPAIR], ids=str)
def test_a_death_there_is_recovered_from(cases: dict[Point, Case], point: Point) -> None:
    assert cases[point].breaches == []
    assert cases[point].met == [True]
    assert cases[point].settled_s > 0


def test_a_point_that_is_never_met_is_no_success(cases: dict[Point, Case]) -> None:
    assert cases[NOWHERE].breaches == []
    assert cases[NOWHERE].verdict == "never met"
    assert {"etcd Txn", "kafka EndTxn"} <= named()
    assert "kafka Produce" in never_met(cases.values())
    assert "kafka EndTxn" not in never_met(cases.values())


def test_every_effect_that_is_named_is_met_or_has_an_excuse(
    cases: dict[Point, Case], calm: tuple[Place, Record]
) -> None:
    """Where a life comes by, it can be killed; these tables are migrated already."""
    seen = [calm[1].seen, *(case.seen for case in cases.values())]
    assert unexcused(boundary for boundary, _ in chain.from_iterable(seen)) == {"postgres migrate"}


async def test_what_is_wrong_at_rest_is_reported(calm: tuple[Place, Record]) -> None:
    place, record = calm
    assert record.breaches == []
    settings = place.settings()
    assert await check(settings) == []
    with psycopg.connect(connection_string(settings.postgres)) as connection:
        connection.execute("CREATE TEMPORARY TABLE extra AS SELECT * FROM outcomes WHERE status = 'rejected' LIMIT 1")
        connection.execute("UPDATE extra SET tx_id = %s", [ROWS + 1])
        connection.execute("INSERT INTO outcomes SELECT * FROM extra")
        connection.execute("DELETE FROM outcomes WHERE tx_id = %s", [ROWS])
    await publish_again(settings)
    found = await check(settings)
    assert any(line.startswith("I5: batch") and line.endswith("was published 2 times") for line in found), found
    assert any(f"('payouts', {ROWS + 1}) has the outcome rejected" in line for line in found), found
    assert any(f"('payouts', {ROWS}) has the outcome None" in line for line in found), found


async def publish_again(settings: Settings) -> None:
    """The first signed record, as by a producer that was told of no commit and repeats it."""
    topic = Topics(settings.kafka.topic_prefix).signed
    log, writer = KafkaBatchLog(settings.kafka, settings.deployment), KafkaRoundWriter(settings.kafka, "stranger")
    ends = await log.ends(topic)
    partition = next(number for number, end in enumerate(ends) if end)
    scan = log.scan(topic, partition, 0, ends[partition])
    first = await anext(scan)
    await scan.aclose()
    await writer.open()
    assert await writer.commit([Outgoing(topic, partition, first.key, first.value)], {}, None)
    await writer.close()
    await log.close()

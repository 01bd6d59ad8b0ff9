"""What a broker that is on its way up says of offsets, partition by partition."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, TopicPartition

from pipeline.adapters import offsets as module
from pipeline.adapters.offsets import Committed, GroupOffsets
from pipeline.errors import BusUnavailable
from pipeline.settings import KafkaSettings


class Admin:
    """Answers with these errors, one each, then with none."""

    def __init__(self, errors: Iterator[KafkaError]) -> None:
        self._errors = errors
        self.asked = 0

    def alter_consumer_group_offsets(
        self, requests: list[ConsumerGroupTopicPartitions], **_options: Any
    ) -> dict[str, Future[ConsumerGroupTopicPartitions]]:
        self.asked += 1
        [wanted] = requests
        error = next(self._errors, None)
        partitions = [Answer(tp, error) for tp in wanted.topic_partitions or []]
        future: Future[Any] = Future()
        future.set_result(type("Answered", (), {"topic_partitions": partitions}))
        return {wanted.group_id: future}


class Answer:
    def __init__(self, tp: TopicPartition, error: KafkaError | None) -> None:
        self.topic, self.partition, self.error = tp.topic, tp.partition, error


def asked_of(monkeypatch: pytest.MonkeyPatch, *codes: int) -> tuple[GroupOffsets, Admin]:
    admin = Admin(iter([KafkaError(code) for code in codes]))
    monkeypatch.setattr(module, "AdminClient", lambda _config: admin)
    return GroupOffsets(KafkaSettings(bootstrap_servers="127.0.0.1:1")), admin


async def test_a_coordinator_that_is_loading_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    offsets, admin = asked_of(monkeypatch, KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.NOT_COORDINATOR)
    await offsets.commit("group", "topic", {0: Committed(0, "0"), 1: Committed(0, "0")})
    assert admin.asked == 3
    await offsets.close()


async def test_a_refusal_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    offsets, admin = asked_of(monkeypatch, KafkaError.UNKNOWN_MEMBER_ID)
    with pytest.raises(BusUnavailable):
        await offsets.commit("group", "topic", {0: Committed(0, "0")})
    assert admin.asked == 1
    await offsets.close()

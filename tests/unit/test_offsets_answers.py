"""What a broker that is on its way up says of offsets, partition by partition."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, ConsumerGroupTopicPartitions, KafkaError, TopicPartition

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


class Ends:
    """A broker whose leaders have died: of these many questions each leaves one partition without an offset."""

    def __init__(self, unanswered: int) -> None:
        self.unanswered = unanswered
        self.asked = 0

    def list_topics(self, topic: str, **_options: Any) -> Any:
        described = type("Topic", (), {"error": None, "partitions": {0: None, 1: None}})
        return type("Metadata", (), {"topics": {topic: described}})

    def list_offsets(self, asked: dict[TopicPartition, Any], **_options: Any) -> dict[TopicPartition, Future[Any]]:
        self.asked += 1
        missing = OFFSET_INVALID if self.asked <= self.unanswered else 7
        offsets = {0: 5, 1: missing}
        answers: dict[TopicPartition, Future[Any]] = {}
        for tp in asked:
            answers[tp] = Future()
            answers[tp].set_result(type("Found", (), {"offset": offsets[tp.partition]}))
        return answers


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


async def test_an_end_without_an_offset_is_asked_for_again_and_never_taken_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    admin = Ends(unanswered=2)
    monkeypatch.setattr(module, "AdminClient", lambda _config: admin)
    offsets = GroupOffsets(KafkaSettings(bootstrap_servers="127.0.0.1:1"))
    assert await offsets.ends("tx.signed", committed=True) == (5, 7)
    assert admin.asked == 3
    monkeypatch.setattr(module, "ANSWER_TIMEOUT_S", 0.0)
    admin.unanswered = 100
    with pytest.raises(BusUnavailable):
        await offsets.ends("tx.signed", committed=True)
    await offsets.close()

"""A connection whose first packet nobody answers, as on a cluster whose packets still go to a pod that has ended."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from confluent_kafka import KafkaError, Producer

from pipeline.adapters import kafka
from pipeline.local.server import LOOPBACK
from pipeline.settings import KafkaSettings

CONNECT_TIMEOUT_S = 1.0
ENOUGH_S = 10.0
"""Far from the 30 s of librdkafka."""


@pytest.fixture
def silent() -> Iterator[str]:
    """An address where the queue of connections is full, so that the kernel drops what comes."""
    with ExitStack() as sockets:
        server = sockets.enter_context(socket.socket())
        server.bind((LOOPBACK, 0))
        server.listen(0)
        for _ in range(4):
            waiting = sockets.enter_context(socket.socket())
            waiting.settimeout(0)
            waiting.connect_ex(server.getsockname())
        yield f"{LOOPBACK}:{server.getsockname()[1]}"


def test_a_connection_that_nobody_answers_is_given_up(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "CONNECT_TIMEOUT_S", CONNECT_TIMEOUT_S)
    said: list[KafkaError] = []
    settings = KafkaSettings(bootstrap_servers=silent)
    client = Producer(kafka.client_config(settings) | {"error_cb": said.append})
    begun_s = time.monotonic()
    while not said:
        assert time.monotonic() - begun_s < ENOUGH_S
        client.poll(0.1)
    assert said[0].code() == KafkaError._ALL_BROKERS_DOWN
    assert time.monotonic() - begun_s >= CONNECT_TIMEOUT_S

"""What is logged: one JSON line for each event, with its result and what it is about; a sentence for people."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline import journal
from pipeline.errors import BusUnavailable
from pipeline.journal import Journal
from pipeline.stream import Stream

TOLD = Journal("pipeline.told", "consumer")
STREAM = Stream("payouts", 3)


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers.clear()
    stream = io.StringIO()
    journal.start(stream)
    try:
        yield stream
    finally:
        root.handlers[:] = before
        root.setLevel(level)


def lines(output: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.getvalue().splitlines()]


def test_an_event_is_one_line_with_its_fields(output: io.StringIO) -> None:
    TOLD.succeeded("published", stream=STREAM, seq=7)
    TOLD.denied("halted", stream=STREAM, reason="another\ndigest")
    TOLD.failed("tries again", error=BusUnavailable("no", address="h:1", hint=""))
    succeeded, denied, failed = lines(output)
    assert succeeded.pop("time").endswith("Z")
    assert succeeded.pop("pid") > 0
    assert succeeded == {
        "level": "info", "part": "consumer", "result": "succeeded", "what": "published", "stream": "payouts/3",
        "seq": 7,
    }  # fmt: skip
    assert (denied["level"], denied["result"], denied["reason"]) == ("error", "denied", "another\ndigest")
    assert (failed["level"], failed["result"], failed["error"]) == ("warning", "failed", "Kafka at h:1: no")


def test_frames_are_told_without_their_locals(output: io.StringIO) -> None:
    def fails(secret: str) -> None:
        raise ValueError(len(secret))

    try:
        fails("0xdead" + "beef")
    except ValueError as error:
        TOLD.ended("stage", frames=error, error=error)
    [line] = lines(output)
    assert (line["level"], line["result"]) == ("error", "failed")
    assert "in fails" in line["frames"]
    assert "deadbeef" not in output.getvalue()


def test_what_others_log_is_a_line_too(output: io.StringIO) -> None:
    logging.getLogger("somebody").warning("said %s", "so")
    [line] = lines(output)
    assert (line["part"], line["what"], line["level"]) == ("somebody", "said so", "warning")
    assert "result" not in line


def test_people_read_a_sentence(caplog: pytest.LogCaptureFixture) -> None:
    TOLD.failed("signed again", stream=STREAM, seq=7, error="why")
    TOLD.ended("exits")
    assert caplog.messages == [
        "consumer: failed: signed again; stream payouts/3, seq 7: why",
        "consumer: failed: exits",
    ]


def test_what_nobody_listens_to_is_not_even_written(caplog: pytest.LogCaptureFixture) -> None:
    class Unwritable:
        def __str__(self) -> str:
            raise AssertionError

    with caplog.at_level(logging.ERROR):
        TOLD.failed("tries again", error=Unwritable())
    assert caplog.messages == []

"""How the in-memory broker says no: Kafka's error codes, as far as the pipeline can meet them.

They are what a client library sees, and never leave the twins: those raise the errors of pipeline.errors.
"""

from __future__ import annotations

from enum import StrEnum


class Code(StrEnum):
    """Kafka's protocol errors, and `NO_ANSWER` for a request or a reply that was lost."""

    NO_ANSWER = "no answer"
    FENCED = "producer fenced"
    INVALID_STATE = "invalid transaction state"
    UNKNOWN_TOPIC = "unknown topic or partition"
    OUT_OF_RANGE = "offset out of range"
    TOO_LARGE = "message size too large"
    UNKNOWN_MEMBER = "unknown member id"
    STALE_MEMBER = "stale member epoch"
    UNSTABLE = "unstable offset commit"


class Refused(Exception):
    """The broker's answer was an error, or there was none."""

    def __init__(self, code: Code, detail: str = "") -> None:
        self.code = code
        super().__init__(f"{code}: {detail}" if detail else str(code))

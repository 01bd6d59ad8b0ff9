"""How `oncesign sign` ends, by the summary of its job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.command_line import Ended, in_process

GIVEN = {
    "ONCESIGN_ETCD__ENDPOINTS": "http://127.0.0.1:1",
    "ONCESIGN_POSTGRES__DSN": "postgresql://x@127.0.0.1:1/x",
    "ONCESIGN_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
}
DONE = {"signed": 3, "rejected": 0, "seconds": 1.0, "tx_per_s": 3, "drained": True, "halted": {}, "exit_code": 0}


@pytest.mark.parametrize(
    ("arguments", "summary", "code", "says"),
    [
        (["--until-drained"], DONE, 0, "Next: oncesign verify"),
        (["--until-drained"], DONE | {"drained": False}, 130, "interrupted; nothing that was committed is lost"),
        (["--until-drained"], {"exit_code": 0, "stopped": True}, 130, "interrupted; nothing"),
        ([], DONE | {"drained": False}, 0, "Next: oncesign verify"),
        (
            ["--until-drained"],
            {"exit_code": 5, "error": "stream a/1 is halted: why."},
            5,
            "error: stream a/1 is halted",
        ),
        (["--json"], {"exit_code": 3, "error": "Kafka: no."}, 3, "error: Kafka: no."),
    ],
)
def test_the_exit_code_says_how_it_ended(
    arguments: list[str],
    summary: dict[str, Any],
    code: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("jobs.signing.run_pipeline", lambda *_args, **_more: summary)
    ended: Ended = in_process(monkeypatch, capfd, tmp_path)("sign", *arguments, env=GIVEN)
    assert ended.code == code
    assert ended.err.rstrip().splitlines()[-1].startswith(says)
    assert ended.err.count("error: ") == (code in (3, 5))

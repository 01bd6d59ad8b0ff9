"""`oncesign` as its user meets it: arguments and environment in; exit code, stdout and stderr out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import orjson
import pytest

from jobs import app
from pipeline.settings import Settings


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what is wrong; there is never more than one, and never a traceback."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert self.err.rstrip().endswith(lines[0]), self.err
        assert "Traceback" not in self.err + self.out
        return lines[0].removeprefix("error: ")


Oncesign: TypeAlias = Callable[..., Ended]


def in_process(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], data_dir: Path) -> Oncesign:
    """Commands in this very process: the same main(), without a second of imports for each."""

    def run(*arguments: str, env: Mapping[str, str] | None = None) -> Ended:
        capfd.readouterr()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", ["oncesign", *arguments])
            for name, value in ({"ONCESIGN_DATA_DIR": str(data_dir)} | dict(env or {})).items():
                patched.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                app.main()
        code = ended.value.code
        said = capfd.readouterr()
        return Ended(code if isinstance(code, int) else int(code is not None), said.out, said.err)

    return run


def environment(settings: Settings) -> dict[str, str]:
    """The variables that make a command use the servers, deployment and topics of a test."""
    sources: list[Any] = [source.model_dump(mode="json") for source in settings.sources]
    return {
        "ONCESIGN_DEPLOYMENT": settings.deployment,
        "ONCESIGN_DATA_DIR": str(settings.data_dir),
        "ONCESIGN_ETCD__ENDPOINTS": settings.etcd.endpoints,
        "ONCESIGN_POSTGRES__DSN": settings.postgres.dsn.get_secret_value(),
        "ONCESIGN_POSTGRES__PASSWORD_FILE": str(settings.postgres.password_file),
        "ONCESIGN_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "ONCESIGN_KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix,
        "ONCESIGN_KAFKA__SIGNED_PARTITIONS": str(settings.kafka.signed_partitions),
        "ONCESIGN_SOURCES": orjson.dumps(sources).decode(),
        "ONCESIGN_READER__BATCH_ROWS_MAX": str(settings.reader.batch_rows_max),
    }

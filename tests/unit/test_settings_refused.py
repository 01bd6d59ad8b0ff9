"""A wrong environment: which variable, why, what to do; exit 2, before anything is connected to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import in_process

SOURCES = "ONCESIGN_SOURCES"
CASES = [
    ("ONCESIGN_FOO", "1", "ONCESIGN_FOO: there is no such setting."),
    ("ONCESIGN_ETCD__FOO", "1", "ONCESIGN_ETCD__FOO: there is no such setting."),
    ("ONCESIGN_ETCD", "1", "ONCESIGN_ETCD: "),
    ("ONCESIGN_POOL__SIGNERS", "x", "ONCESIGN_POOL__SIGNERS: input should be a valid integer"),
    ("ONCESIGN_POOL__SIGNERS", "-1", "ONCESIGN_POOL__SIGNERS: input should be greater than or equal to 0"),
    ("ONCESIGN_DEPLOYMENT", "A b", "ONCESIGN_DEPLOYMENT: "),
    ("ONCESIGN_ETCD__ENDPOINTS", "127.0.0.1:2379", "ONCESIGN_ETCD__ENDPOINTS: each should be http://host:port"),
    ("ONCESIGN_ETCD__ENDPOINTS", "http://a:99999", "ONCESIGN_ETCD__ENDPOINTS: each should be http://host:port"),
    ("ONCESIGN_ETCD__ENDPOINTS", ",", "ONCESIGN_ETCD__ENDPOINTS: each should be http://host:port"),
    ("ONCESIGN_ETCD__LEASE_TTL_S", "3", "must not exceed lease_ttl_s"),
    ("ONCESIGN_KAFKA__SECURITY_PROTOCOL", "FOO", "ONCESIGN_KAFKA__SECURITY_PROTOCOL: input should be 'PLAINTEXT'"),
    ("ONCESIGN_KAFKA__TOPIC_PREFIX", "a b", "ONCESIGN_KAFKA__TOPIC_PREFIX: "),
    ("ONCESIGN_KAFKA__MESSAGE_MAX_BYTES", "400000", "ONCESIGN_READER: batch_bytes_max + 65536 must not exceed"),
    ("ONCESIGN_SERVICE__PORT", "8080", "ONCESIGN_SERVICE: a port needs a token_file"),
    ("ONCESIGN_SERVICE__PORT", "70000", "ONCESIGN_SERVICE__PORT: input should be less than or equal to 65535"),
    (SOURCES, "x", "ONCESIGN_SOURCES: is not JSON."),
    (SOURCES, "[]", "ONCESIGN_SOURCES: list should have at least 1 item"),
    (SOURCES, '[{"name":"UPPER"}]', "ONCESIGN_SOURCES: 0: name: lower-case letters"),
    (SOURCES, '[{"nam":"a"}]', "ONCESIGN_SOURCES: 0: nam: "),
    (SOURCES, '[{"name":"a"},{"name":"a","table":"b"}]', "ONCESIGN_SOURCES: two of them have the same name."),
    (SOURCES, '[{"name":"a"},{"name":"b"}]', "ONCESIGN_SOURCES: two of them have the same table."),
]


@pytest.mark.parametrize(("variable", "value", "says"), CASES)
def test_a_setting_that_cannot_be_is_named(
    variable: str,
    value: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    ended = in_process(monkeypatch, capfd, tmp_path)("config", env={variable: value})
    assert ended.code == 2
    assert says in ended.error
    assert ended.error.endswith("Mend or unset it; `oncesign config` lists all settings.")
    assert ended.out == ""


def test_an_empty_variable_is_none(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    oncesign = in_process(monkeypatch, capfd, tmp_path)
    ended = oncesign("config", "--json", env={"ONCESIGN_KEK_FILE": "", "ONCESIGN_POSTGRES__DSN": ""})
    assert ended.code == 0
    assert '"setting":"ONCESIGN_KEK_FILE","value":null,"source":"default"' in ended.out.replace(" ", "")


@pytest.mark.parametrize("command", ["up", "down", "status", "migrate", "verify"])
def test_a_data_directory_that_is_a_file(
    command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    ended = in_process(monkeypatch, capfd, tmp_path / "file")(command)
    assert ended.code == 2
    assert ended.error == f"ONCESIGN_DATA_DIR: {tmp_path}/file is not a directory. Name another."


def test_a_data_directory_that_cannot_be_made(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    ended = in_process(monkeypatch, capfd, tmp_path / "file" / "below")("up")
    assert ended.code == 2
    assert "ONCESIGN_DATA_DIR: " in ended.error
    assert "cannot be made (Not a directory)" in ended.error


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["foo"], "No such command 'foo'"),
        (["sign", "--until-draned"], "--until-drained"),
        (["tx", "abc"], "Invalid value for 'ID'"),
        (["tx", str(2**63)], "Invalid value for 'ID'"),
        (["stock", "--count", "-1"], "Invalid value for '--count'"),
        (["demo", "--count", "0"], "Invalid value for '--count'"),
        (["recover", "--from-start"], "--from-start needs --stream."),
        (["up", "--members", "2"], "--members is 2; it can be 1 or 3."),
    ],
)
def test_a_command_that_is_none(
    arguments: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    ended = in_process(monkeypatch, capfd, tmp_path)(*arguments)
    assert ended.code == 2
    assert says in " ".join(ended.err.replace("│", " ").split())
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("command", "server"), [("migrate", "Postgres"), ("keys", "etcd"), ("sign", "etcd"), ("verify", "etcd")]
)
def test_nothing_runs(
    command: str, server: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = [command, "list"] if command == "keys" else [command]
    ended = in_process(monkeypatch, capfd, tmp_path)(*arguments)
    assert ended.code == 3
    assert ended.error.startswith(f"{server}: no embedded one runs in {tmp_path}. Start it with `oncesign up`")


def test_a_fault_of_our_own_is_one_line_and_a_file(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(_settings: object) -> None:
        secret = "cafe"  # noqa: F841 - what a locals-printing traceback would show
        raise KeyError("never")

    monkeypatch.setattr("jobs.servers.bring_up", lambda settings, _members: broken(settings))
    (tmp_path / "logs").mkdir()
    ended = in_process(monkeypatch, capfd, tmp_path)("up")
    assert ended.code == 1
    log = tmp_path / "logs" / "faults.log"
    assert ended.error == f"a fault of oncesign's own: KeyError: 'never'. More is in {log}."
    assert "in broken" in log.read_text()
    assert "= cafe" not in log.read_text()

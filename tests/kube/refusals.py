"""Bad input, and what each answers: a problem, a line in a job's log, an event of a pod."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import requests
from ray.job_submission import JobStatus

from pipeline.service.problem import CONTENT_TYPE, Code
from pipeline.stream import START
from tests.kube.namespace import NAME, Dashboard, Forward, KubeError, kubectl, pods, ready, secret, until

HTTP_TIMEOUT_S: Final = 15.0
JOB_TIMEOUT_S: Final = 300.0
EVENT_TIMEOUT_S: Final = 180.0
READY_TIMEOUT_S: Final = 300.0
WRONG_PASSWORD: Final = "sh -c 'echo wrong > /tmp/wrong; ONCESIGN_POSTGRES__PASSWORD_FILE=/tmp/wrong oncesign migrate'"
BATCH: Final = {
    "stream": "nobody/0",
    "seq": 1,
    "prev": str(START),
    "cursor": "5:7",
    "digest": "11" * 32,
    "chain_id": 1,
    "system_id": "7000000000000000001",
    "rows": 1,
    "count": 1,
    "rules_version": 1,
    "batch_offset": 0,
    "signed_from": [0],
}
ASSIGN: Final = {"worker": "desk-1", "node": "outside", "deadline_s": 0, "batches": [BATCH]}
RELEASE: Final = {"worker": "desk-1", "batches": []}


def missed(jobs: Dashboard) -> list[str]:
    """What was not refused as it should be. Raises KubeError."""
    return [*_of_the_service(), *_of_a_password(jobs), *_of_a_missing_key()]


def _of_the_service() -> Iterator[str]:
    forward = Forward("key-manager", 8080)
    token = secret("oncesign-service", "token").strip()
    try:
        forward.open()
        asked = [
            (Code.UNAUTHORIZED, _post(forward, "/v1/assign", b"{}", "w" * 32)),
            (Code.NOT_JSON, _post(forward, "/v1/assign", b"{", token)),
            (Code.UNKNOWN_STREAM, _post(forward, "/v1/assign", json.dumps(ASSIGN).encode(), token)),
            (Code.INVALID, _post(forward, "/v1/release", json.dumps(RELEASE).encode(), token)),
        ]
    except requests.RequestException as error:
        raise KubeError(f"the key manager's service: {error}") from error
    finally:
        forward.close()
    for code, answer in asked:
        kind = answer.headers.get("Content-Type", "")
        if kind != CONTENT_TYPE or answer.json()["code"] != code:
            yield f"{code} was to be answered: {answer.status_code} {kind} {answer.text[:300]}"


def _post(forward: Forward, path: str, data: bytes, token: str) -> requests.Response:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    return requests.post(forward.url + path, data=data, headers=headers, timeout=HTTP_TIMEOUT_S)


def _of_a_password(jobs: Dashboard) -> Iterator[str]:
    status, logs = jobs.end_of(WRONG_PASSWORD, JOB_TIMEOUT_S)
    lines = [line for line in logs.splitlines() if line.startswith("error: ")]
    if status is not JobStatus.FAILED or not (len(lines) == 1 and "password" in lines[0]):
        yield f"a wrong password of Postgres: {status} {logs[-300:]}"


def _of_a_missing_key() -> Iterator[str]:
    """A pod of signers without the key-encryption key does not start, and says why."""
    kept: dict[str, Any] = json.loads(kubectl("-n", NAME, "get", "secret", "oncesign-kek", "-o", "json"))
    for field in ("resourceVersion", "uid", "creationTimestamp"):
        kept["metadata"].pop(field, None)
    kubectl("-n", NAME, "delete", "secret", "oncesign-kek")
    try:
        victim = pods("ray.io/group=signers")[0]["metadata"]["name"]
        kubectl("-n", NAME, "delete", "pod", victim, timeout_s=EVENT_TIMEOUT_S)
        until("the event of a missing Secret", _is_said, EVENT_TIMEOUT_S)
    except KubeError as error:
        yield f"a missing key-encryption key: {error}"
    finally:
        kubectl("apply", "-f", "-", given=json.dumps(kept))
    until("the RayCluster is ready again", ready, READY_TIMEOUT_S)


def _is_said() -> bool:
    said = kubectl(
        "-n", NAME, "get", "events", "--field-selector=reason=FailedMount", "-o", "jsonpath={.items[*].message}"
    )
    return 'secret "oncesign-kek" not found' in said

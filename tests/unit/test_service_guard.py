"""Who may ask the service, what it says of itself, and how it refuses."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pipeline.errors import DeploymentHalted, NotLeader, OncesignError, SecretFileError, StoreUnavailable
from pipeline.service import application, openapi, page, readiness, token
from pipeline.service.problem import MEANINGS, Code
from pipeline.service.route import ROUTES, Route
from pipeline.service.token import Token
from pipeline.testing.clock import TwinClock
from tests.unit.assignment_records import CHAIN, A, request
from tests.unit.service_world import BODY_MAX, TOKEN, Office, asking, batch, first, opened

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    async with opened(tmp_path) as made:
        yield made


def path_of(pattern: str) -> str:
    return pattern.format(chain_id=CHAIN, address="0x" + "00" * 20)


# ── the token ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.operation)
@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[1:]}"]
)
async def test_no_route_answers_without_the_token(office: Office, route: Route, given: str) -> None:
    headers = {"Authorization": given} if given else {}
    async with office.client.request(route.method, path_of(route.path), headers=headers) as response:
        assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert response.content_type == "application/problem+json"
        assert (await response.json(content_type=None))["code"] == "unauthorized"


@pytest.mark.parametrize("content", [b"", b"short", b"fifteen letters\n", b"two words are not one token", b"\xff" * 20])
def test_a_token_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(SecretFileError, match=r"ONCESIGN_SERVICE__TOKEN_FILE"):
        Token(file, TwinClock())


def test_a_missing_token_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SecretFileError, match="No such file"):
        Token(tmp_path / "none", TwinClock())


async def test_a_new_token_counts_without_a_restart(tmp_path: Path) -> None:
    file, clock = tmp_path / "token", TwinClock()
    file.write_text(TOKEN)
    made = Token(file, clock)
    file.write_text("another-token-of-16")
    assert made.accepts(f"Bearer {TOKEN}")
    await clock.advance(token.READ_AGAIN_S)
    assert made.accepts("bearer another-token-of-16")
    assert not made.accepts(f"Bearer {TOKEN}")
    file.unlink()
    await clock.advance(token.READ_AGAIN_S)
    assert made.accepts("Bearer another-token-of-16")


def test_a_token_does_not_print(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    assert TOKEN not in repr(Token(file, TwinClock()))


# ── bodies ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "code"), [(b"{", "not_json"), (b"\xff", "not_json"), (b"", "not_json"), (b"[]", "invalid")]
)
async def test_a_body_that_is_none_is_refused(office: Office, body: bytes, code: str) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with office.client.post("/v1/assign", data=body, headers=headers) as response:
        problem = await response.json(content_type=None)
        assert (response.status, problem["code"], problem["type"]) == (400, code, "about:blank")


async def test_each_field_that_is_wrong_is_named(office: Office) -> None:
    _, problem = await office.post("/v1/assign", first(seq=-1, cursor="x"))
    assert [error["field"] for error in problem["errors"]] == ["batches.0.seq", "batches.0.cursor"]


async def test_a_body_is_bounded(office: Office) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with office.client.post("/v1/assign", data=b" " * (BODY_MAX + 1), headers=headers) as response:
        assert response.status == 413
        assert (await response.json(content_type=None))["code"] == "too_large"


async def test_a_body_that_does_not_come_is_waited_for_no_longer(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "BODY_TIMEOUT_S", 0.1)

    async def slowly() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(5)

    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with office.client.post("/v1/assign", data=slowly(), headers=headers) as response:
        assert response.status == 408


async def test_requests_at_once_are_bounded(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "REQUESTS_MAX", 0)
    async with office.client.get("/v1/keys", headers={"Authorization": f"Bearer {TOKEN}"}) as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "5")
        assert (await response.json(content_type=None))["code"] == "busy"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/v2/keys", 404, "not_found"), ("GET", "/v1/assign", 405, "method_not_allowed")],
)
async def test_there_is_no_such_route(office: Office, method: str, path: str, status: int, code: str) -> None:
    found, problem = await office.ask(method, path)
    assert (found, problem["code"]) == (status, code)


async def test_a_fault_shows_nothing_of_itself(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken() -> None:
        raise ValueError("a secret")

    monkeypatch.setattr(office.manager, "list_keys", broken)
    status, problem = await office.ask("GET", "/v1/keys")
    assert (status, problem["code"]) == (500, "failed")
    assert "secret" not in str(problem)


# ── leading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (NotLeader("another leads."), "not_leader"),
        (DeploymentHalted("etcd is behind the ledger."), "halted"),
        (StoreUnavailable("no answer"), "dependency_down"),
    ],
)
async def test_one_that_cannot_lead_says_why(office: Office, refusal: OncesignError, code: str) -> None:
    office.refusal = refusal
    for path in ("/readyz", "/v1/keys"):
        async with office.client.get(path, headers={"Authorization": f"Bearer {TOKEN}"}) as response:
            problem = await response.json(content_type=None)
            assert (response.status, response.headers["Retry-After"]) == (503, "5")
            assert (problem["code"], problem["detail"]) == (code, refusal.message)
    async with office.client.get("/healthz") as response:
        assert response.status == 200


async def test_it_is_ready_as_soon_as_it_leads(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    async with office.client.get("/readyz") as response:
        assert response.status == 200
    monkeypatch.setattr(readiness, "TRY_AGAIN_S", 0.0)
    office.refusal = NotLeader()
    async with office.client.get("/readyz") as response:
        assert response.status == 503
    office.refusal = None
    async with office.client.get("/readyz") as response:
        assert response.status == 200


async def test_it_is_not_ready_while_it_cannot_write(office: Office) -> None:
    office.etcd.down = True
    assigning = asyncio.create_task(office.post("/v1/assign", first(deadline_s=20)))
    status, problem = await asyncio.wait_for(assigning, 30)
    assert (status, problem["code"]) == (503, "dependency_down")
    async with office.client.get("/readyz") as response:
        assert response.status == 503
    office.etcd.down = False


async def test_a_lost_fence_ends_it(office: Office) -> None:
    office.etcd.revoke(next(iter(office.etcd.leases)))
    status, problem = await office.post("/v1/assign", first(deadline_s=5))
    assert (status, problem["code"]) == (503, "not_leader")
    assert office.fence_lost == [True]
    async with office.client.get("/readyz") as response:
        assert response.status == 503


# ── metrics, document, page ──────────────────────────────────────────────────────────────────────────────────────────


async def test_metrics_count_and_name_no_address(office: Office) -> None:
    await office.post("/v1/assign", asking(batch(request(A, 1))))
    await office.post("/v1/assign", {})
    await office.ask("GET", "/nowhere/0x" + "ab" * 20)
    async with office.client.get("/metrics") as response:
        text = await response.text()
    prefix = "oncesign_key_manager_"
    for line in (
        "leader 1.0",
        'keys{state="free"} 1.0',
        'keys{state="locked"} 1.0',
        "assignments 1.0",
        "queue_length 0.0",
        "streams_halted 0.0",
        'requests_total{result="succeeded",route="/v1/assign"} 1.0',
        'requests_total{result="denied",route="/v1/assign"} 1.0',
        'requests_total{result="denied",route="other"} 1.0',
    ):
        assert prefix + line in text, line
    age = re.search(rf"^{prefix}lock_oldest_seconds (\S+)", text, re.MULTILINE)
    assert age is not None
    assert 0 <= float(age[1]) < 5
    assert "0x" not in text


async def test_metrics_of_one_that_does_not_lead(office: Office) -> None:
    await office.get("/v1/keys")
    await office.manager.stop()
    async with office.client.get("/metrics") as response:
        text = await response.text()
    assert "oncesign_key_manager_leader 0.0" in text
    assert "oncesign_key_manager_keys" not in text


async def test_the_document_is_served_and_kept(office: Office) -> None:
    async with office.client.get("/openapi.json") as response:
        served = await response.read()
    assert served == openapi.text()
    assert served == (ROOT / "docs" / "openapi.json").read_bytes(), (
        "run: python -m pipeline.service.openapi > docs/openapi.json"
    )


async def test_the_page_runs_only_what_is_in_it(office: Office) -> None:
    async with office.client.get("/") as response:
        text = await response.text()
        policy = response.headers["Content-Security-Policy"]
    assert text == page.html()
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert not re.search(r"\sstyle=|\son[a-z]+=", text)


def test_every_code_has_a_status_and_a_meaning() -> None:
    assert set(MEANINGS) == set(Code)

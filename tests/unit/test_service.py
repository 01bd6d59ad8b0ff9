"""The key manager over HTTP: assign, release, lists, keys, and that a request may be sent again."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from eth_keyfile.keyfile import create_keyfile_json

from pipeline.assignment.budget import Budget
from pipeline.custody.generation import address_of, new_secret
from pipeline.ethereum.rules import WIDE_RULES_VERSION
from pipeline.service import idempotency
from tests.unit.assignment_records import CHAIN, A, B, request
from tests.unit.service_world import WORKER, Office, asking, batch, first, opened, until_queued

SCRYPT_WORK = 2


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    async with opened(tmp_path) as made:
        yield made


# ── assign and release ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_batch_gets_a_key_that_the_kek_opens(office: Office) -> None:
    status, answer = await office.post("/v1/assign", first())
    assert status == 200
    [reply] = answer["replies"]
    made = reply["assignment"]
    assert (reply["status"], made["first_nonce"], made["count"], made["worker"]) == ("assigned", 0, 10, WORKER)
    assert office.kek.unseal(base64.b64decode(reply["sealed"]), made["address"]).address == made["address"]


async def test_a_source_with_a_budget_must_be_told_the_cost(office: Office) -> None:
    office.manager._budgets = {A.source: Budget(100, 10**12)}
    status, answer = await office.post("/v1/assign", first())
    assert (status, answer["code"]) == (400, "invalid")
    assert "source payouts has a budget" in answer["detail"]
    for spend, said in (("101", "waiting"), ("100", "assigned"), ("100", "assigned")):
        _, answer = await office.post("/v1/assign", first(spend_wei=spend))
        assert [reply["status"] for reply in answer["replies"]] == [said]
    [stream] = [each for each in (await office.get("/v1/streams"))["streams"] if each["stream"] == str(A)]
    assert stream["spent_wei"] == "100"


async def test_the_lists_say_which_worker_holds_which_key(office: Office) -> None:
    _, answer = await office.post("/v1/assign", first())
    [reply] = answer["replies"]
    found = await office.get("/v1/keys")
    free, locked = found["keys"]
    assert (found["total"], free["state"], free["holder"]) == (2, "free", None)
    assert (locked["state"], locked["address"]) == ("locked", reply["assignment"]["address"])
    fence = reply["assignment"]["fence"]
    assert locked["holder"] == {"stream": str(A), "seq": 1, "worker": WORKER, "node": "outside", "fence": fence}
    assert locked["since_unix_ms"] >= free["since_unix_ms"]
    assert await office.get("/v1/assignments") == {"total": 1, "assignments": [reply["assignment"]]}


async def test_a_list_is_cut_where_the_client_says(office: Office) -> None:
    found = await office.get("/v1/keys?limit=1")
    assert (found["total"], len(found["keys"])) == (2, 1)


async def test_several_batches_at_once_are_answered_in_order(office: Office) -> None:
    body = asking(batch(request(A, 1)), batch(request(B, 1)), batch(request(A, 2)))
    _, answer = await office.post("/v1/assign", body)
    assert [reply["status"] for reply in answer["replies"]] == ["assigned", "assigned", "waiting"]


async def test_what_was_signed_is_released_and_then_published(office: Office) -> None:
    await office.post("/v1/assign", first())
    await office.swear_all()
    released = {"batches": [{"stream": str(A), "seq": 1}], "worker": WORKER}
    for _ in range(2):  # the second finds it gone
        status, answer = await office.post("/v1/release", released)
        assert (status, answer) == (200, {"released": released["batches"]})
    assert [key["state"] for key in (await office.get("/v1/keys"))["keys"]] == ["free", "free"]
    _, answer = await office.post("/v1/assign", first())
    assert answer == {"replies": [{"status": "published"}]}


async def test_a_batch_is_released_by_its_holder_only(office: Office) -> None:
    await office.post("/v1/assign", asking(batch(request(A, 1)), batch(request(B, 1))))
    await office.post("/v1/assign", asking(batch(request(B, 1)), worker="desk-8"))
    await office.swear_all()
    both = [{"stream": str(stream), "seq": 1} for stream in (A, B)]
    status, problem = await office.post("/v1/release", {"batches": both, "worker": WORKER})
    assert (status, problem["code"]) == (409, "not_releasable")
    assert problem["detail"] == f"batch 1 of {B} is held by desk-8, not by {WORKER}."
    assert (await office.get("/v1/assignments"))["total"] == 2


async def test_a_batch_that_nobody_signed_is_not_released(office: Office) -> None:
    await office.post("/v1/assign", first())
    status, problem = await office.post("/v1/release", {"batches": [{"stream": str(A), "seq": 1}], "worker": WORKER})
    assert (status, problem["code"]) == (409, "not_releasable")
    assert "not in the signing ledger" in problem["detail"]
    assert (await office.get("/v1/assignments"))["total"] == 1


async def test_the_next_worker_inherits_key_and_nonces(office: Office) -> None:
    _, before = await office.post("/v1/assign", first())
    _, after = await office.post("/v1/assign", asking(batch(request(A, 1)), worker="desk-8"))
    old, new = before["replies"][0]["assignment"], after["replies"][0]["assignment"]
    assert {**old, "worker": "desk-8"} == new


async def test_a_request_waits_in_line_until_a_key_is_free(office: Office) -> None:
    await office.post("/v1/assign", asking(batch(request(A, 1)), batch(request(B, 1))))
    waiting = asyncio.create_task(office.post("/v1/assign", asking(batch(request(A, 2)), deadline_s=30)))
    await until_queued(office, 1)
    queue = await office.get("/v1/queue")
    assert (queue["length"], queue["waiting"][0]["seq"], queue["waiting"][0]["worker"]) == (1, 2, WORKER)
    await office.swear_all()
    await office.post("/v1/release", {"batches": [{"stream": str(B), "seq": 1}], "worker": WORKER})
    _, answer = await waiting
    assert answer["replies"][0]["status"] == "assigned"


async def test_a_request_waits_no_longer_than_it_says(office: Office) -> None:
    await office.post("/v1/assign", asking(batch(request(A, 1)), batch(request(B, 1))))
    _, answer = await office.post("/v1/assign", asking(batch(request(A, 2)), deadline_s=0.3))
    assert answer == {"replies": [{"status": "waiting"}]}
    assert office.manager.status()["queue"] == 0


async def test_a_client_that_goes_away_leaves_its_batch_to_the_next(office: Office) -> None:
    await office.post("/v1/assign", asking(batch(request(A, 1)), batch(request(B, 1))))
    gone = asyncio.create_task(office.post("/v1/assign", asking(batch(request(A, 2)), deadline_s=30)))
    await until_queued(office, 1)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    await office.swear_all()
    await office.post("/v1/release", {"batches": [{"stream": str(B), "seq": 1}], "worker": WORKER})
    _, answer = await office.post("/v1/assign", asking(batch(request(A, 2)), worker="desk-8", deadline_s=5))
    assert answer["replies"][0]["assignment"]["worker"] == "desk-8"
    assert office.manager.status()["queue"] == 0


async def test_a_halted_stream_refuses_with_its_reason(office: Office) -> None:
    await office.manager.halt(A, "somebody looked twice")
    _, answer = await office.post("/v1/assign", asking(batch(request(A, 1)), batch(request(B, 1))))
    assert [reply["status"] for reply in answer["replies"]] == ["refused", "assigned"]
    assert answer["replies"][0]["reason"] == "somebody looked twice"
    assert [s["halted"] for s in (await office.get("/v1/streams"))["streams"]] == ["somebody looked twice", ""]


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"stream": "payroll/0"}, 404, "unknown_stream"),
        ({"stream": "payouts/2"}, 404, "unknown_stream"),
        ({"chain_id": 5}, 409, "conflict"),
        ({"rules_version": WIDE_RULES_VERSION + 1}, 409, "conflict"),
        ({"count": 11}, 400, "invalid"),
        ({"seq": 0}, 400, "invalid"),
        ({"digest": "ab"}, 400, "invalid"),
        ({"secret": 1}, 400, "invalid"),
    ],
)
async def test_a_batch_that_would_halt_its_stream_is_refused_first(
    office: Office, fields: dict[str, Any], status: int, code: str
) -> None:
    found, problem = await office.post("/v1/assign", first(**fields))
    assert (found, problem["status"], problem["code"]) == (status, status, code)
    assert all(not stream["halted"] for stream in (await office.get("/v1/streams"))["streams"])


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_created_keys_are_sealed_by_the_kek(office: Office) -> None:
    status, answer = await office.post("/v1/keys/create", {"chain_id": CHAIN, "count": 3})
    assert (status, len(answer["addresses"])) == (200, 3)
    sealed = office.manager.view().sealed
    assert all(office.kek.unseal(sealed[address], address) for address in answer["addresses"])


async def test_a_keystore_is_imported_once(office: Office) -> None:
    secret = new_secret()
    keystore = create_keyfile_json(secret, b"open sesame", kdf="scrypt", iterations=SCRYPT_WORK)
    body = {"chain_id": CHAIN, "keystore": keystore, "password": "open sesame", "next_nonce": 42}
    assert await office.post("/v1/keys/import", body) == (200, {"addresses": [address_of(secret)]})
    key = next(k for k in (await office.get("/v1/keys"))["keys"] if k["address"] == address_of(secret))
    assert key["next_nonce"] == 42
    status, problem = await office.post("/v1/keys/import", body)
    assert (status, problem["code"]) == (409, "conflict")


@pytest.mark.parametrize(
    ("password", "change", "says"),
    [
        ("wrong", {}, "wrong password"),
        ("open sesame", {"crypto": {}}, "not a keystore V3 file"),
        ("open sesame", {"crypto": {"kdfparams": {"n": 2**30, "r": 8, "p": 1}}}, "not a keystore V3 file"),
        ("open sesame", {"crypto": {"kdfparams": {"n": 2**21, "r": 8, "p": 1}}}, "more work"),
    ],
)
async def test_a_keystore_that_does_not_open_is_refused_without_its_password(
    office: Office, password: str, change: dict[str, object], says: str
) -> None:
    keystore = create_keyfile_json(new_secret(), b"open sesame", kdf="scrypt", iterations=SCRYPT_WORK) | change
    body = {"chain_id": CHAIN, "keystore": keystore, "password": password}
    status, problem = await office.post("/v1/keys/import", body)
    assert (status, problem["code"]) == (400, "invalid")
    assert says in problem["detail"]
    assert "sesame" not in json.dumps(problem)
    assert (await office.get("/v1/keys"))["total"] == 2


@pytest.mark.parametrize("path", ["/v1/keys/create", "/v1/keys/import"])
async def test_a_missing_kek_is_named(office: Office, path: str) -> None:
    office.settings.kek_path.unlink()
    body = {"chain_id": CHAIN} | ({"keystore": {}, "password": "x"} if path.endswith("import") else {})
    status, problem = await office.post(path, body)
    assert (status, problem["code"]) == (503, "kek_unusable")
    assert "No such file" in problem["detail"]
    assert "ONCESIGN_KEK_FILE" in problem["hint"]


async def test_a_key_is_disabled_and_enabled(office: Office) -> None:
    address = (await office.get("/v1/keys"))["keys"][0]["address"]
    for change, state in (("disable", "disabled"), ("enable", "free")):
        status, answer = await office.post(f"/v1/keys/{CHAIN}/{address.upper().replace('0X', '0x')}/{change}")
        assert (status, answer) == (200, {"chain_id": CHAIN, "address": address})
        [key] = [k for k in (await office.get("/v1/keys"))["keys"] if k["address"] == address]
        assert key["state"] == state
    status, problem = await office.post(f"/v1/keys/7/{address}/disable")
    assert (status, problem["code"]) == (404, "unknown_key")


# ── again ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_same_key_and_body_give_the_same_answer_and_do_nothing_twice(office: Office) -> None:
    body = {"chain_id": CHAIN, "count": 2}
    one, two, other = [
        await office.post("/v1/keys/create", body, Idempotency_Key=key) for key in ('"a-1"', "a-1", "a-2")
    ]
    assert one == two
    assert one != other
    assert (await office.get("/v1/keys"))["total"] == 2 + 2 + 2


async def test_two_at_once_with_one_key_are_one(office: Office) -> None:
    body = {"chain_id": CHAIN, "count": 2}
    one, two = await asyncio.gather(*(office.post("/v1/keys/create", body, Idempotency_Key="k") for _ in range(2)))
    assert one == two
    assert (await office.get("/v1/keys"))["total"] == 2 + 2


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/keys/create", {"chain_id": CHAIN, "count": 1}), ("/v1/assign", first())]
)
async def test_the_same_key_with_another_request_is_refused(office: Office, path: str, body: dict[str, object]) -> None:
    await office.post("/v1/keys/create", {"chain_id": CHAIN, "count": 2}, Idempotency_Key="k")
    status, problem = await office.post(path, body, Idempotency_Key="k")
    assert (status, problem["code"]) == (422, "idempotency_key_reused")


async def test_what_is_not_final_is_asked_again_under_the_same_key(office: Office) -> None:
    await office.post("/v1/assign", asking(batch(request(A, 1)), batch(request(B, 1))))
    body = asking(batch(request(A, 2)))
    _, answer = await office.post("/v1/assign", body, Idempotency_Key="k")
    assert answer["replies"][0]["status"] == "waiting"
    await office.add_keys(1)
    _, answer = await office.post("/v1/assign", body, Idempotency_Key="k")
    assert answer["replies"][0]["status"] == "assigned"


async def test_answers_are_forgotten_when_there_are_too_many(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "KEPT_MAX", 2)
    body = {"chain_id": CHAIN, "count": 1}
    first_answer = await office.post("/v1/keys/create", body, Idempotency_Key="k1")
    for key in ("k2", "k3"):
        await office.post("/v1/keys/create", body, Idempotency_Key=key)
    again = await office.post("/v1/keys/create", body, Idempotency_Key="k1")
    assert again != first_answer


@pytest.mark.parametrize("key", ["", " ", "x" * 129, '"open'])
async def test_a_key_that_is_none_is_refused(office: Office, key: str) -> None:
    status, problem = await office.post("/v1/keys/create", {"chain_id": CHAIN}, Idempotency_Key=key)
    assert (status, problem["code"]) == (400, "invalid")

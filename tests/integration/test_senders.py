"""Rows that name their senders, and rows of every type, on real servers and by the command line."""

from __future__ import annotations

import asyncio
import json
import random

import psycopg
import pytest
from eth_account import Account

from pipeline.adapters.postgres import connection_string
from pipeline.assignment.records import KeyState
from pipeline.custody.sealing import Kek
from pipeline.settings import Settings
from pipeline.stock.mix import Mix
from pipeline.stock.row import Row, insert
from tests.command_line import Oncesign
from tests.pipeline_run import running

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

RUN = 400
NOBODY = b"\x99" * 20
AUTHORITY = b"\x21" * 32


@pytest.fixture
def settings(deployed: Settings) -> Settings:
    Kek.create(deployed.kek_path)
    return deployed


def named(address: str) -> bytes:
    return bytes.fromhex(address[2:])


def stocked(settings: Settings, rows: list[Row]) -> int:
    return insert(settings.postgres, settings.sources[0].table, rows)


def outcomes(settings: Settings) -> list[tuple[bytes | None, int, bytes | None, str]]:
    """Sender that a row names, its type, who signed it, why it was rejected."""
    query = """SELECT t.sender, t.type, o.sender, o.reason FROM transactions t LEFT JOIN outcomes o ON o.tx_id = t.id
               ORDER BY t.id"""
    with psycopg.connect(connection_string(settings.postgres)) as connection:
        return connection.execute(query).fetchall()


def test_each_row_is_signed_by_the_sender_that_it_names(settings: Settings, kek: Kek, oncesign: Oncesign) -> None:
    assert oncesign("keys", "create", "--count", "4").code == 0
    keys = [json.loads(line)["address"] for line in oncesign("keys", "list", "--json").out.splitlines()]
    assert oncesign("keys", "disable", keys[2]).code == 0
    runs = [named(keys[0]), None, named(keys[1]), named(keys[2]), NOBODY, named(keys[0])]
    mix = Mix(3, 1).rows(RUN * len(runs))
    rows = [next(mix)._replace(sender=sender) for sender in runs for _ in range(RUN)]
    stocked(settings, rows)
    asyncio.run(drain(settings, kek, len(rows)))
    verified = oncesign("verify", "--json")
    assert verified.code == 0, verified.err
    assert json.loads(verified.out)["signed"] == 4 * RUN
    for wanted, _, signer, reason in outcomes(settings):
        if wanted == NOBODY:
            assert (signer, reason) == (None, "sender_unknown")
        elif wanted == named(keys[2]):
            assert (signer, reason) == (None, "sender_disabled")
        else:
            assert reason == ""
            assert signer in ([wanted] if wanted else [named(key) for key in (keys[0], keys[1], keys[3])])


async def drain(settings: Settings, kek: Kek, rows: int) -> None:
    async with running(settings, kek) as run:
        await run.until(rows)
        assert not run.consumer.halted


def test_a_disabled_sender_is_waited_for_by_none_and_lent_when_it_is_enabled(settings: Settings, kek: Kek) -> None:
    asyncio.run(disabled_in_the_middle(settings, kek))


async def disabled_in_the_middle(settings: Settings, kek: Kek) -> None:
    async with running(settings, kek, keys=2) as run:
        mine, other = [key.address for key in await run.manager.list_keys()]
        rows = list(Mix(5, 1).rows(3 * RUN))
        stocked(settings, [row._replace(sender=named(mine)) for row in rows[:RUN]])
        await run.until(RUN)
        await run.manager.disable(1, mine)
        stocked(settings, [row._replace(sender=named(mine)) for row in rows[RUN : 2 * RUN]])
        await run.until(2 * RUN)
        assert run.consumer.count.rejected == RUN
        await run.manager.enable(1, mine)
        stocked(settings, [row._replace(sender=named(mine)) for row in rows[2 * RUN :]])
        await run.until(3 * RUN)
        assert run.consumer.count.signed == 2 * RUN
        assert {key.state for key in await run.manager.list_keys()} == {KeyState.FREE}
        assert [key.next_nonce for key in await run.manager.list_keys() if key.address == other] == [0]


# ── every type ───────────────────────────────────────────────────────────────────────────────────────────────────────


def of_every_type(count: int) -> list[Row]:
    """Rows of types 0 to 4, in no order."""
    rng = random.Random(1)  # noqa: S311 - mocked rows, not keys
    return [newer(row, kind, rng) if (kind := rng.choice([0, 3, 4])) else row for row in Mix(9, 1).rows(count)]


def newer(row: Row, kind: int, rng: random.Random) -> Row:
    tip = row.max_priority_fee_per_gas or 0
    made = row._replace(type=kind, to=rng.randbytes(20), access_list=None, gas_limit=2_000_000)
    made = made._replace(max_priority_fee_per_gas=tip)
    if kind == 3:
        hashes = ["0x01" + rng.randbytes(31).hex() for _ in range(rng.randint(1, 6))]
        return made._replace(max_fee_per_blob_gas=rng.randint(1, 2**40), blob_hashes=json.dumps(hashes))
    return made._replace(authorization_list=json.dumps([authorization(rng) for _ in range(rng.randint(1, 3))]))


def authorization(rng: random.Random) -> dict[str, object]:
    asked = {"chainId": rng.choice([0, 1]), "address": rng.randbytes(20), "nonce": rng.randint(0, 2**40)}
    signed = Account.sign_authorization(asked, AUTHORITY)
    return {
        "chainId": signed.chain_id,
        "address": "0x" + signed.address.hex(),
        "nonce": signed.nonce,
        "yParity": signed.y_parity,
        "r": hex(signed.r),
        "s": hex(signed.s),
    }


def test_rows_of_every_type_are_signed_and_blobs_by_keys_of_their_own(
    settings: Settings, kek: Kek, oncesign: Oncesign
) -> None:
    assert oncesign("keys", "create", "--count", "4").code == 0
    keys = [json.loads(line)["address"] for line in oncesign("keys", "list", "--json").out.splitlines()]
    assert oncesign("keys", "set-apart", *keys[:2]).code == 0
    shown = [json.loads(line) for line in oncesign("keys", "list", "--json").out.splitlines()]
    assert {key["address"] for key in shown if key["set_apart"] == "blobs"} == set(keys[:2])
    rows = of_every_type(1_500)
    stocked(settings, rows)
    asyncio.run(drain(settings, kek, len(rows)))
    verified = oncesign("verify", "--json")
    assert verified.code == 0, verified.err
    found = outcomes(settings)
    assert {kind for _, kind, _, _ in found} == {0, 1, 2, 3, 4}
    assert {reason for *_, reason in found} == {""}
    assert {signer for _, kind, signer, _ in found if kind == 3} == {named(key) for key in keys[:2]}
    assert {signer for _, kind, signer, _ in found if kind != 3} == {named(key) for key in keys[2:]}


def test_blob_rows_wait_until_a_key_is_set_apart(settings: Settings, kek: Kek) -> None:
    asyncio.run(set_apart_in_the_middle(settings, kek))


async def set_apart_in_the_middle(settings: Settings, kek: Kek) -> None:
    blobs = [row for row in of_every_type(60) if row.type == 3]
    async with running(settings, kek, keys=2) as run:
        stocked(settings, blobs)
        for _ in range(200):
            if run.manager.status()["no_blob_keys"] == [1]:
                break
            await asyncio.sleep(0.05)
        assert run.manager.status()["no_blob_keys"] == [1]
        assert run.manager.status()["no_keys"] == []
        [first, _] = await run.manager.list_keys()
        await run.manager.set_apart(1, first.address, apart=True)
        await run.until(len(blobs))
        assert run.consumer.count.signed == len(blobs)

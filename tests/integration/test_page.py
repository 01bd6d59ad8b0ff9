"""The key manager's page in a real browser.

`python -m tests.integration.test_page docs/images/key-manager.png` takes the picture in the manual.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.browser import NAMES, Tab, binary, tab
from tests.unit.assignment_records import A, B, request
from tests.unit.service_world import TOKEN, WORKER, Office, asking, batch, opened, until_queued

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(binary() is None, reason=f"none of {', '.join(NAMES)} is on PATH"),
]

HALT = "batch 4 came with another digest than the one assigned"
MARKUP = " <img src=x onerror=alert(1)>"
KEYS = 6


@asynccontextmanager
async def shown(folder: Path, halt: str = HALT) -> AsyncIterator[tuple[Office, Tab]]:
    """A busy office, and its page before the token was typed."""
    async with opened(folder, keys=KEYS) as office:
        await office.post("/v1/assign", asking(batch(request(A, 1)), batch(request(B, 1))))
        await office.post("/v1/assign", asking(batch(request(A, 2)), worker="desk-8"))
        await office.manager.halt(B, halt)
        async with tab(folder / "profile") as page:
            await page.open(str(office.client.make_url("/")))
            yield office, page


async def enter(page: Tab, token: str) -> None:
    await page.value("document.getElementById('token').value = ''; document.getElementById('token').focus()")
    await page.type(token)
    await page.press_enter()


def text(place: str) -> str:
    return f"document.getElementById('{place}').innerText"


async def test_the_page_shows_the_pool_live(tmp_path: Path) -> None:
    async with shown(tmp_path, HALT + MARKUP) as (office, page):
        await enter(page, "not-the-token-at-all")
        await page.until(f"{text('message')}.includes('Unauthorized')")
        assert await page.value("document.getElementById('content').hidden")
        page.said.clear()  # the browser reports the 401
        await enter(page, TOKEN)
        await page.until("!document.getElementById('content').hidden")
        rows = await page.value("[...document.querySelectorAll('#keys tbody tr')].map(row => row.innerText)")
        held = (await office.get("/v1/keys"))["keys"]
        assert [row.split("\t")[0] for row in rows] == [key["address"] for key in held]
        assert sum(f"{WORKER} on outside: {A} batch 1" in row for row in rows) == 1
        assert f"{B} is halted: {HALT}{MARKUP}" in await page.value(text("halts"))
        assert "Nobody waits" in await page.value(text("queue"))
        [free] = [key for key in held if key["state"] == "free"][:1]
        await office.manager.disable(free["chain_id"], free["address"])
        await page.until("document.querySelectorAll('#keys .disabled').length === 1")
        await office.manager.unhalt(B)
        await page.until(f"{text('halts')} === ''")
        assert await page.value(text("message")) == ""
        assert page.said == []


async def test_the_page_shows_who_waits(tmp_path: Path) -> None:
    async with shown(tmp_path) as (office, page):
        await office.manager.unhalt(B)
        for key in (await office.get("/v1/keys"))["keys"]:
            await office.manager.disable(key["chain_id"], key["address"])
        waiting = asyncio.create_task(office.post("/v1/assign", asking(batch(request(A, 3)), deadline_s=10)))
        await until_queued(office, 1)
        await enter(page, TOKEN)
        await page.until(f"{text('queue')}.includes('{WORKER} on outside')")
        await office.add_keys(1)
        await page.until(f"{text('queue')}.includes('Nobody waits')")
        assert (await waiting)[1]["replies"][0]["status"] == "assigned"


async def picture() -> bytes:
    """The one in the manual."""
    folder = Path(tempfile.mkdtemp(prefix="page"))
    try:
        async with shown(folder) as (_, page):
            await enter(page, TOKEN)
            await page.until("!document.getElementById('content').hidden")
            return await page.picture()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(asyncio.run(picture()))

"""The pictures of the manual, taken from a pipeline at work by a headless browser.

`python -m tests.pictures docs/images`, with a Chromium on PATH.

Ray's dashboard: the signing job with its metadata, and the actors. The key manager's page has its own, see
tests/integration/test_page.py.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from actors import cluster
from pipeline.adapters.secret_file import secret_of
from tests.browser import Tab, tab

ROWS: Final = 400_000
KEYS: Final = 16
WARM_S: Final = 20.0
DRAWN_S: Final = 4.0
SIZE: Final[dict[str, Any]] = {"width": 1720, "height": 900, "deviceScaleFactor": 1, "mobile": False}
LOGIN: Final = """
fetch('/api/authenticate', {method: 'POST', headers: {Authorization: 'Bearer TOKEN'}})
    .then(answer => window.in = answer.ok)
"""
PAGES: Final = {"ray-jobs.png": "#/jobs", "ray-actors.png": "#/actors"}


@contextmanager
def signing(folder: Path) -> Iterator[Path]:
    """A pipeline at work; its data directory."""
    env = os.environ | {"ONCESIGN_DATA_DIR": str(folder / "data")}

    def oncesign(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "jobs.app", *arguments]

    commands = (["up"], ["migrate"], ["keys", "create", "--count", str(KEYS)], ["stock", "--count", str(ROWS)])
    try:
        for command in commands:
            subprocess.run(oncesign(*command), env=env, check=True, stdout=subprocess.DEVNULL)
        with subprocess.Popen(oncesign("sign"), env=env, stdout=subprocess.DEVNULL) as job:
            yield folder / "data"
            job.terminate()
    finally:
        subprocess.run(oncesign("down"), env=env, check=False)


async def take(data: Path, into: Path, profile: Path) -> None:
    """Every picture."""
    head = await found(data)
    await asyncio.sleep(WARM_S)
    token = secret_of(Path(head.token_file), "Ray's token")
    async with tab(profile) as page:
        await page.open(head.dashboard)
        await page.value(LOGIN.replace("TOKEN", token))
        await page.until("window.in === true")
        await page.call("Emulation.setDeviceMetricsOverride", **SIZE)
        for name, place in PAGES.items():
            await show(page, f"{head.dashboard}/{place}")
            (into / name).write_bytes(await page.picture())


async def found(data: Path) -> Any:
    """Ray's head, once it is there."""
    while (head := cluster.running(data)) is None:
        await asyncio.sleep(1)
    return head


async def show(page: Tab, address: str) -> None:
    """Of an application that draws itself after it was loaded."""
    await page.call("Page.navigate", url="about:blank")
    await page.open(address)
    await asyncio.sleep(DRAWN_S)


def main(into: Path) -> None:
    """Into a folder."""
    with tempfile.TemporaryDirectory(prefix="pictures") as folder, signing(Path(folder)) as data:
        asyncio.run(take(data, into, Path(folder) / "profile"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

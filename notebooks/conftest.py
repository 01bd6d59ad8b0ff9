"""The notebooks as tests: `pytest --nbmake notebooks` runs them on one embedded stack and one Ray cluster of their own.

Notebooks are no functions, so no fixture reaches them: what they share is set up before the first of them, and ends
with the folder they are in. Settings of the one who runs the tests are not theirs: they insert rows.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from pipeline.local.cache import cache_dir
from pipeline.settings import ENV_PREFIX
from tests.conftest import KEPT, SCRUBBED

HERE: Final = Path(__file__).parent
TIMEOUT_S: Final = 600
COMMAND_TIMEOUT_S: Final = 120
RAY: Final = "from jobs import loading, submission; submission.here(loading.load_settings())"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.acceptance)
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    yield
    folder = next(node for node in item.listchain() if isinstance(node, pytest.Dir) and node.path == HERE)
    if SHARED not in folder.stash:
        folder.stash[SHARED] = shared = ExitStack()
        folder.addfinalizer(shared.close)
        _share(shared)


SHARED: Final = pytest.StashKey[ExitStack]()


def _share(shared: ExitStack) -> None:
    """A data directory in the environment of every kernel; what runs on it is ended, and all of it removed."""
    folder = shared.enter_context(tempfile.TemporaryDirectory(prefix="nb"))
    patch = shared.enter_context(pytest.MonkeyPatch.context())
    for name in os.environ:
        if name.startswith(SCRUBBED) and name not in KEPT:
            patch.delenv(name)
    patch.setenv(f"{ENV_PREFIX}DATA_DIR", folder)
    patch.setenv("IPYTHONDIR", f"{folder}/ipython")
    patch.setenv("JUPYTER_RUNTIME_DIR", f"{folder}/jupyter")
    patch.setenv("MPLCONFIGDIR", str(cache_dir() / "matplotlib"))  # its list of fonts takes seconds to make
    shared.callback(_command, "down")
    _command("up")
    _python("-c", RAY)


def _command(name: str) -> None:
    _python("-m", "jobs.app", name)


def _python(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, timeout=COMMAND_TIMEOUT_S)

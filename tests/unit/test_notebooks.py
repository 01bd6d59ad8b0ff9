"""What holds for every notebook without running it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))
NAMES = ["01_quickstart", "02_follow_one_transaction", "03_key_pool", "04_throughput", "05_incident"]
OF_A_MACHINE = re.compile(r"/(?:home|Users|root|work|tmp|mnt|opt|var)/|[A-Z]:\\\\")
ADDRESSES = ("ONCESIGN_ETCD__ENDPOINTS", "ONCESIGN_POSTGRES__DSN", "ONCESIGN_KAFKA__BOOTSTRAP_SERVERS", "`ADDRESS`")


def cells(notebook: Path, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def text(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_the_readme_lists_them() -> None:
    assert [notebook.stem for notebook in NOTEBOOKS] == NAMES
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[`(\w+)`\]\(notebooks/\1\.ipynb\) \|", readme, re.MULTILINE) == NAMES


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_it_is_stripped(self, notebook: Path) -> None:
        whole = json.loads(notebook.read_text(encoding="utf-8"))
        assert set(whole["metadata"]) == {"kernelspec", "language_info"}
        assert set(whole["metadata"]["language_info"]) == {"name"}  # no version of whoever saved it
        for cell in cells(notebook, "code"):
            assert (cell["outputs"], cell["execution_count"], cell["metadata"]) == ([], None, {}), text(cell)

    def test_it_names_no_path_of_a_machine(self, notebook: Path) -> None:
        for cell in cells(notebook, "code") + cells(notebook, "markdown"):
            assert not OF_A_MACHINE.search(text(cell)), text(cell)

    def test_its_parameters_come_first(self, notebook: Path) -> None:
        first = text(cells(notebook, "code")[0])
        assert "\nROWS = " in f"\n{first}"
        assert '\nADDRESS = ""' in first
        assert all(re.match(r"[A-Z_]+ = .+", line) for line in first.splitlines()), first

    def test_it_says_where_it_runs(self, notebook: Path) -> None:
        [place] = [text(cell) for cell in cells(notebook, "markdown") if "**Where this runs.**" in text(cell)]
        for address in ADDRESSES:
            assert address in place, address

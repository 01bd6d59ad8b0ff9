"""`python -m tests.sizes`: no file over 440 lines, no function over 70 (TigerStyle's limit); data tables aside."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

FILE_LINES_MAX = 440
FUNCTION_LINES_MAX = 70
ROOT = Path(__file__).resolve().parents[1]
UNROLLED = {"_permute", "_permute_four", "permute", "permute4"}  # Keccak's rounds are long by nature


def too_long(path: Path) -> list[str]:
    """What is too long in one file."""
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    found = [f"{path.relative_to(ROOT)}: {lines} lines"] if lines > FILE_LINES_MAX else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in UNROLLED:
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES_MAX:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {length} lines")
    return found


def main() -> None:
    """Exit 1 with a list when anything is too long."""
    folders = ("pipeline", "actors", "jobs", "tests")
    found = [line for name in folders for path in sorted((ROOT / name).rglob("*.py")) for line in too_long(path)]
    sys.stdout.write("".join(line + "\n" for line in found))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()

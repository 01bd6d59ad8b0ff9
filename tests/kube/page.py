"""The commands of docs/kubernetes.md, run as a reader types them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Final

from tests.kube.namespace import KubeError, checkout, say

PAGE: Final = "docs/kubernetes.md"
APPLY, REACH, FILL, SIGN, REMOVE = 2, 3, 4, 5, 6
"""Numbers of the page's steps."""

SETTLE_S: Final = 5
"""What a reader needs to type the next step; a forwarded port listens by then."""

FRAME: Final = "set -e\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n"
"""Ends at the first failure, and what runs in the background with it."""


def step(number: int) -> str:
    """The commands of a step. Raises KubeError."""
    text = (checkout() / PAGE).read_text(encoding="utf-8")
    found = re.search(rf"^{number}\. .*?```text\n(.*?)^ +```", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise KubeError(f"{PAGE} has no step {number}")
    return textwrap.dedent(found[1])


def follow(*numbers: int, timeout_s: float) -> str:
    """What the commands of these steps print, one after the other in one shell. Raises KubeError."""
    typed = f"sleep {SETTLE_S}\n".join(step(number) for number in numbers)
    for line in typed.splitlines():
        say(f"$ {line}")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", FRAME + typed],
        cwd=checkout(),
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode:
        raise KubeError(f"{PAGE}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout

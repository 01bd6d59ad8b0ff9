"""What a process loads before it does anything: a command waits for it, and a pipeline has ten processes that start."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("ray", "numba", "pyarrow", "pandas", "aiohttp", "confluent_kafka")
SERVER = "pipeline.service.server"


@pytest.mark.parametrize(
    ("module", "loaded"),
    [
        ("jobs.commands", set()),
        ("actors.signer", {"ray", "numba", "pyarrow"}),
        ("actors.key_manager", {"ray", "aiohttp", SERVER}),
    ],
)
def test_a_process_loads_what_it_needs(module: str, loaded: set[str]) -> None:
    ask = f"print(json.dumps([name for name in {(*HEAVY, SERVER)} if name in sys.modules]))"
    script = f"import json, sys, {module}; {ask}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert set(json.loads(done.stdout)) == loaded

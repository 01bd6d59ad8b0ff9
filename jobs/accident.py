"""`python -m jobs.accident NAME`: kill the process of an actor with SIGKILL, wherever it runs; a job for drills.

What the fault of a machine would do: no handler runs, nothing is drained. Ray starts the actor again. With `--busy` it
waits until batches are under way.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from typing import Any, Final

import orjson
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors import names
from actors.clients import ask
from actors.host import StageStatus
from actors.names import CALL_TIMEOUT_S, START_TIMEOUT_S
from jobs.desk import connect
from jobs.loading import load_settings
from pipeline.errors import OncesignError, RuntimeFault
from pipeline.settings import Settings

CONSUMER: Final = "consumer-0"
BUSY_TIMEOUT_S: Final = 60.0


@ray.remote
class _Executioner:
    """On the node of its victim, and ready before the moment comes."""

    def ready(self) -> None:
        """Answers when its process runs."""

    def kill(self, pid: int) -> None:
        """No signal handler runs."""
        os.kill(pid, signal.SIGKILL)


async def kill(settings: Settings, name: str, *, busy: bool) -> dict[str, Any]:
    """Which process it was, and when. Raises RayUnavailable when the actor does not run, RuntimeFault."""
    status = await _status(settings, name)
    there = NodeAffinitySchedulingStrategy(status.ray_node, soft=False)  # a process of another node is not ours to see
    executioner = _Executioner.options(num_cpus=0, scheduling_strategy=there).remote()  # type: ignore[attr-defined]
    await ask(executioner.ready.remote(), START_TIMEOUT_S, f"the node of {name}")
    deadline_s = time.monotonic() + BUSY_TIMEOUT_S
    while busy and not (await _status(settings, CONSUMER)).counts.get("in_flight"):
        if time.monotonic() > deadline_s:
            raise RuntimeFault(f"no batch was under way for {BUSY_TIMEOUT_S:.0f} s.", hint="Insert rows meanwhile.")
    at_s = time.time()
    await ask(executioner.kill.remote(status.pid), CALL_TIMEOUT_S, f"the node of {name}")
    return {"killed": status.pid, "ray_node": status.ray_node, "at_s": at_s}


async def _status(settings: Settings, name: str) -> StageStatus:
    status: StageStatus = await ask(names.find(name, settings.deployment).status.remote(), CALL_TIMEOUT_S, name)
    return status


def main() -> None:
    """The exit code is flattened by Ray; the last line says which process it was."""
    parser = argparse.ArgumentParser(prog="python -m jobs.accident", description=__doc__)
    parser.add_argument("name", help="as in signer-0, consumer-0, reader-payouts-0, key-manager, tx-verifier")
    parser.add_argument("--busy", action="store_true", help="when batches are under way")
    try:
        arguments = parser.parse_args()
        settings = load_settings()
        connect(settings)
        done = asyncio.run(kill(settings, arguments.name, busy=arguments.busy))
    except OncesignError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    finally:
        ray.shutdown()
    sys.stdout.write(orjson.dumps(done).decode() + "\n")


if __name__ == "__main__":
    main()

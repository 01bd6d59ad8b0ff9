"""`python -m jobs.accident NAME`: kill the process of an actor with SIGKILL, wherever it runs; a job for drills.

What the fault of a machine would do: no handler runs, nothing is drained. Ray starts the actor again.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys

import orjson
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors import names
from actors.clients import ask
from actors.host import StageStatus
from actors.names import CALL_TIMEOUT_S, START_TIMEOUT_S
from jobs.desk import connect
from jobs.loading import load_settings
from pipeline.errors import OncesignError
from pipeline.settings import Settings


@ray.remote
def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


async def kill(settings: Settings, name: str) -> StageStatus:
    """The actor as it was before. Raises RayUnavailable when it does not run, RuntimeFault."""
    status: StageStatus = await ask(names.find(name, settings.deployment).status.remote(), CALL_TIMEOUT_S, name)
    there = NodeAffinitySchedulingStrategy(status.ray_node, soft=False)  # a process of another node is not ours to see
    task = _kill.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(status.pid)
    await ask(task, START_TIMEOUT_S, f"the node of {name}")
    return status


def main() -> None:
    """The exit code is flattened by Ray; the last line says which process it was."""
    parser = argparse.ArgumentParser(prog="python -m jobs.accident", description=__doc__)
    parser.add_argument("name", help="as in signer-0, consumer-0, reader-payouts-0, key-manager, tx-verifier")
    try:
        settings = load_settings()
        connect(settings)
        status = asyncio.run(kill(settings, parser.parse_args().name))
    except OncesignError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    finally:
        ray.shutdown()
    sys.stdout.write(orjson.dumps({"killed": status.pid, "ray_node": status.ray_node}).decode() + "\n")


if __name__ == "__main__":
    main()

"""`python -m jobs.leave`: what a pod runs before it ends (a preStop hook of its container).

The actors on this Ray node finish what they hold: readers their batch, consumers the rounds whose batches have a key;
a key manager gives up its lead if there is another node for it, so that the next need not wait for its lease. A pod
that is killed instead loses nothing; the others wait a few seconds longer. Ray's autoscaler takes an idle node out of
the cluster before it has the pod deleted: then there is nothing to leave.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Final

import psutil
import ray

from actors import names
from actors.clients import ask
from actors.host import ray_node
from actors.key_manager import NAME as KEY_MANAGER
from actors.supervisor import NAME as SUPERVISOR
from jobs.desk import connect
from jobs.loading import load_settings
from pipeline.errors import OncesignError
from pipeline.settings import Settings

LEAVE_TIMEOUT_S: Final = 45.0
"""Less than the pods' terminationGracePeriodSeconds, which is 60 at least."""

NODE: Final = "raylet"
"""The process that is a Ray node."""


async def leave(settings: Settings, node: str) -> None:
    """What runs on that Ray node leaves it. Raises RuntimeFault, RayUnavailable."""
    running = names.running(settings.deployment)
    if SUPERVISOR in running:
        supervisor = names.find(SUPERVISOR, settings.deployment)
        await ask(supervisor.leave.remote(node), LEAVE_TIMEOUT_S, SUPERVISOR)
    elif KEY_MANAGER in running:
        manager = names.find(KEY_MANAGER, settings.deployment)
        await ask(manager.leave.remote(node), LEAVE_TIMEOUT_S, KEY_MANAGER)


def node_runs() -> bool:
    """Whether a Ray node is here to leave; ray.init() would look for one for a minute."""
    return any(process.info["name"] == NODE for process in psutil.process_iter(["name"]))


def main() -> None:
    """Exit code 0 also when nothing could be asked: the pod ends anyway."""
    if not node_runs():
        return
    try:
        settings = load_settings()
        connect(settings)
        asyncio.run(leave(settings, ray_node()))
    except OncesignError as error:
        sys.stderr.write(f"error: {error}\n")
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()

"""Names and shapes of the actors of a deployment, and what Ray is told of each."""

from __future__ import annotations

from typing import Any, Final

import ray

from pipeline.errors import RayUnavailable

CALL_TIMEOUT_S: Final = 30.0
"""Bound of one actor call that does no signing."""

START_TIMEOUT_S: Final = 90.0
"""Bound of the first answer of a new actor: a worker process starts and imports."""

UNLIMITED: Final = -1


def namespace(deployment: str) -> str:
    """The Ray namespace of a deployment."""
    return f"oncesign-{deployment}"


def options(name: str, *, cpus: float, concurrency: int = 64) -> dict[str, Any]:
    """Options of a restartable actor.

    A dead process is started again by Ray, without its state; the supervisor then gives it its work again. A call
    that was under way is never repeated by Ray (max_task_retries=0): whoever called decides.
    """
    return {
        "name": name,
        "num_cpus": cpus,
        "max_restarts": UNLIMITED,
        "max_task_retries": 0,
        "max_concurrency": concurrency,
    }


def find(name: str, deployment: str) -> Any:
    """The handle of a running actor. Raises RayUnavailable."""
    try:
        return ray.get_actor(name, namespace=namespace(deployment))
    except ValueError as error:
        raise RayUnavailable(f"no actor called {name} runs for deployment {deployment}") from error

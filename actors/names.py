"""Names and shapes of the actors of a deployment, and what Ray is told of each."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

import ray
from ray.util import list_named_actors

from pipeline.errors import RayUnavailable
from pipeline.settings import Settings

CALL_TIMEOUT_S: Final = 30.0
"""Bound of one actor call that does no signing."""

START_TIMEOUT_S: Final = 90.0
"""Bound of the first answer of a new actor: a worker process starts and imports."""

UNLIMITED: Final = -1
PLACE: Final = 0.001
"""How much of its group's resource an actor takes: the resource says where, not how many."""


class Group(StrEnum):
    """Node groups of a cluster, by the Ray resource that they offer."""

    KEY_MANAGER = "key_manager"
    SIGNERS = "signers"
    IO = "io"


def namespace(deployment: str) -> str:
    """The Ray namespace of a deployment."""
    return f"oncesign-{deployment}"


def options(settings: Settings, name: str, group: Group, *, cpus: float, concurrency: int = 64) -> dict[str, Any]:
    """Options of a restartable actor.

    A dead process is started again by Ray, without its state; the supervisor then gives it its work again. A call
    that was under way is never repeated by Ray (max_task_retries=0): whoever called decides. Where they are placed,
    actors of a group are spread over its nodes: Ray's default would fill one of them first.
    """
    made: dict[str, Any] = {
        "name": name,
        "namespace": namespace(settings.deployment),
        "num_cpus": cpus,
        "max_restarts": UNLIMITED,
        "max_task_retries": 0,
        "max_concurrency": concurrency,
    }
    if settings.pool.placed:
        made |= {"lifetime": "detached", "resources": {group.value: PLACE}, "scheduling_strategy": "SPREAD"}
    return made


def find(name: str, deployment: str) -> Any:
    """The handle of a running actor. Raises RayUnavailable."""
    try:
        return ray.get_actor(name, namespace=namespace(deployment))
    except ValueError as error:
        raise RayUnavailable(f"no actor called {name} runs for deployment {deployment}") from error


def running(deployment: str) -> list[str]:
    """The names of all actors of a deployment."""
    mine = namespace(deployment)
    return sorted(actor["name"] for actor in list_named_actors(all_namespaces=True) if actor["namespace"] == mine)


def is_elsewhere(group: Group, ray_node: str) -> bool:
    """Whether another living Ray node belongs to the group, too."""
    everyone: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = (node for node in everyone if node["Alive"] and node["NodeID"] != ray_node)
    return any(group.value in node["Resources"] for node in nodes)


def end(name: str, deployment: str) -> None:
    """End an actor for good, if it is there."""
    try:
        ray.kill(ray.get_actor(name, namespace=namespace(deployment)), no_restart=True)
    except ValueError:
        return

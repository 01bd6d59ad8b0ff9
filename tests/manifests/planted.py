"""Small objects that are right, for tests to break."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from tests.manifests.rendered import Manifest


def container(name: str, **more: Any) -> dict[str, Any]:
    """One that breaks no rule."""
    return {
        "name": name,
        "image": "oncesign:1",
        "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    } | more


def template(name: str, labels: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """Of a pod that breaks no rule."""
    context = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"automountServiceAccountToken": False, "securityContext": context, "containers": [container(name)]}
    return {"metadata": {"labels": labels or {}}, "spec": spec | more}


def ray_cluster(*groups: str) -> Manifest:
    """With a token and these groups of workers."""
    workers = [
        {
            "groupName": group,
            "replicas": 1,
            "minReplicas": 1,
            "maxReplicas": 4,
            "rayStartParams": {"resources": f'"{{\\"{group}\\": 1000}}"'},
            "template": template("ray-worker"),
        }
        for group in groups
    ]
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": "oncesign", "namespace": "demo"},
        "spec": {
            "rayVersion": "2.60.0",
            "authOptions": {"mode": "token"},
            "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": template("ray-head")},
            "workerGroupSpecs": workers,
        },
    }


def ray_job() -> Manifest:
    """On a cluster that is there."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": "sign", "namespace": "demo"},
        "spec": {"entrypoint": "python -m jobs.sign", "clusterSelector": {"ray.io/cluster": "oncesign"}},
    }


def policy(name: str, selects: dict[str, str], **directions: list[dict[str, Any]]) -> Manifest:
    """A NetworkPolicy; without a rule for a direction it is one of default deny."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "demo"},
        "spec": {
            "podSelector": {"matchLabels": selects},
            "policyTypes": ["Ingress", "Egress"],
            **deepcopy(directions),
        },
    }


def changed(item: Manifest, path: str, value: Any) -> Manifest:
    """A copy with another value at a path such as `spec/workerGroupSpecs/0/replicas`; None removes it."""
    made = deepcopy(item)
    *steps, last = [int(step) if step.isdecimal() else step for step in path.split("/")]
    at: Any = made
    for step in steps:
        at = at.setdefault(step, {}) if isinstance(at, dict) else at[step]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return made

"""Everybody of whom docs/security.md says who may reach whom, and what it says."""

from __future__ import annotations

import re
from typing import Final

from tests.manifests.pods import pods
from tests.manifests.reachability import Network, Party, elsewhere, of_pod, text
from tests.manifests.rendered import ROOT, Manifest, named

PAGE: Final = ROOT / "docs" / "security.md"
RAY: Final = ("head", "key-manager", "signers", "io")
EVERY_POD: Final = "every pod"
MANAGED: Final = {
    "etcd": "192.0.2.1",
    "Postgres": "192.0.2.17",
    "Kafka": "192.0.2.33",
    "Redis": "192.0.2.49",
    "API server": "192.0.2.65",
}
"""Addresses inside the blocks that overlays/production has as examples."""

Reach = dict[tuple[str, str], str]
"""Ports, as text, of each pair that has some."""


def parties(objects: list[Manifest]) -> list[Party]:
    """The pods of an overlay and those who are not in it."""
    namespace = named(objects, "Namespace")["metadata"]
    ours = [of_pod(pod, namespace.get("labels", {})) for pod in pods(objects)]
    head = next(party for party in ours if party.name == "head")
    cleanup = dict(head.labels) | {"ray.io/node-type": "redis-cleanup"}
    here = namespace["name"]
    ours += [
        Party("redis-cleanup", here, tuple(sorted(cleanup.items())), head.namespace_labels),
        Party("submitter", here, (("oncesign.io/role", "submitter"),), head.namespace_labels),
        Party("another pod of the namespace", here, (), head.namespace_labels),
    ]
    return [
        *ours,
        elsewhere("client", "shop", {"oncesign.io/client": "true"}),
        elsewhere("Prometheus", "monitoring", {"app.kubernetes.io/name": "prometheus"}),
        elsewhere("KubeRay's operator", "kuberay-system", {"app.kubernetes.io/name": "kuberay-operator"}),
        elsewhere("DNS", "kube-system", {"k8s-app": "kube-dns"}),
        elsewhere("a pod of another namespace", "shop"),
        Party("the internet", address="203.0.113.7"),
        *(Party(name, address=address) for name, address in MANAGED.items() if not _own_servers(objects)),
    ]


def _own_servers(objects: list[Manifest]) -> bool:
    return any(item["kind"] == "StatefulSet" for item in objects)


def computed(objects: list[Manifest]) -> Reach:
    """What the policies of an overlay allow; ways between two who are both outside are not its affair."""
    everybody, network = parties(objects), Network(objects)
    here = named(objects, "Namespace")["metadata"]["name"]
    found = {}
    for caller in everybody:
        for called in everybody:
            ports = network.ports(caller, called)
            if ports and here in (caller.namespace, called.namespace):
                found[caller.name, called.name] = text(ports)
    return found


def documented(overlay: str, everybody: list[Party], here: str) -> Reach:
    """The table of an overlay in docs/security.md. Raises ValueError for a pair that two rows have."""
    section = PAGE.read_text(encoding="utf-8").split(f"<!-- reach: {overlay} -->")[1]
    every = [party.name for party in everybody if party.namespace == here]
    found: Reach = {}
    for line in section.strip().splitlines()[2:]:
        if not line.startswith("|"):
            break
        callers, called, ports, _ = (cell.strip() for cell in line.strip("|").split("|", 3))
        for pair in ((a, b) for a in _names(callers, every) for b in _names(called, every)):
            if pair in found:
                raise ValueError(f"{pair} is in two rows")
            found[pair] = ports
    return found


def _names(cell: str, every: list[str]) -> list[str]:
    return every if cell == EVERY_POD else re.split(r",\s*", cell)

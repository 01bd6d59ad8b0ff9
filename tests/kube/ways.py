"""Every way between two pods, tried, and compared with what the NetworkPolicies allow."""

from __future__ import annotations

from typing import Final

from tests.kube.namespace import NAME, kubectl, pods
from tests.manifests.parties import parties
from tests.manifests.reachability import Network
from tests.manifests.rendered import render

CALLERS: Final = {
    "head": "ray.io/node-type=head",
    "key-manager": "ray.io/group=key-manager",
    "signers": "ray.io/group=signers",
    "io": "ray.io/group=io",
}
CALLED: Final = {
    "etcd": ("app=etcd", 2379),
    "pgsql": ("app=pgsql", 5432),
    "kafka": ("app=kafka", 31092),
    "redis": ("app=redis", 6379),
    "key-manager": ("ray.io/group=key-manager", 8080),
    "head": ("ray.io/node-type=head", 6379),
}
CONNECT_TIMEOUT_S: Final = 3
PROBE: Final = """
import socket, sys
for way in sys.argv[1:]:
    name, host, port = way.split(",")
    try:
        socket.create_connection((host, int(port)), {timeout}).close()
        print(name)
    except OSError:
        pass
"""


def allowed() -> set[tuple[str, str]]:
    """Pairs that the demo's policies let through."""
    objects = render("overlays/demo")
    network, everybody = Network(objects), {party.name: party for party in parties(objects)}
    return {
        (caller, called)
        for caller in CALLERS
        for called, (_, port) in CALLED.items()
        if any(first <= port <= last for _, first, last in network.ports(everybody[caller], everybody[called]))
    }


def open_ways() -> set[tuple[str, str]]:
    """Pairs that a connection goes through, tried from inside the pods. Raises KubeError."""
    ways = [f"{name},{pods(selector)[0]['status']['podIP']},{port}" for name, (selector, port) in CALLED.items()]
    probe = PROBE.format(timeout=CONNECT_TIMEOUT_S)
    found = set()
    for caller, selector in CALLERS.items():
        pod = pods(selector)[0]["metadata"]["name"]
        container = "ray-head" if caller == "head" else "ray-worker"
        answer = kubectl("-n", NAME, "exec", pod, "-c", container, "--", "python", "-c", probe, *ways)
        found |= {(caller, called) for called in answer.split()}
    return found

"""Who may open a connection to whom, computed from NetworkPolicies as Kubernetes defines them.

A pod that no policy selects for a direction is open in that direction. A connection needs both: the egress of the one
and the ingress of the other. See https://kubernetes.io/docs/concepts/services-networking/network-policies/.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from tests.manifests.pods import Pod
from tests.manifests.rendered import Manifest, of_kind

PORT_MAX: Final = 65535
NAMESPACE_LABEL: Final = "kubernetes.io/metadata.name"
Span = tuple[str, int, int]
"""A protocol, a first port and a last."""

EVERYTHING: Final[frozenset[Span]] = frozenset({("TCP", 0, PORT_MAX), ("UDP", 0, PORT_MAX)})


@dataclass(frozen=True, slots=True)
class Party:
    """Somebody who may open a connection, or be called: a kind of pod, or an address outside the cluster."""

    name: str
    namespace: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    namespace_labels: tuple[tuple[str, str], ...] = ()
    named_ports: tuple[tuple[str, int], ...] = ()
    address: str = ""


def of_pod(pod: Pod, namespace_labels: dict[str, str]) -> Party:
    """A kind of pod as a party."""
    ports = {
        port["name"]: port["containerPort"] for c in pod.containers for port in c.get("ports", []) if "name" in port
    }
    labels = namespace_labels | {NAMESPACE_LABEL: pod.namespace}
    return Party(pod.name, pod.namespace, _items(pod.labels), _items(labels), _items(ports))


def elsewhere(name: str, namespace: str, labels: dict[str, str] | None = None) -> Party:
    """A pod of another namespace."""
    return Party(name, namespace, _items(labels or {}), _items({NAMESPACE_LABEL: namespace}))


def _items(mapping: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(mapping.items()))


class Network:
    """The policies of rendered objects."""

    def __init__(self, objects: list[Manifest]) -> None:
        self._policies = of_kind(objects, "NetworkPolicy")

    def ports(self, caller: Party, called: Party) -> frozenset[Span]:
        """The ports of `called` that `caller` may reach."""
        out = self._allowed("egress", caller, called, called)
        into = self._allowed("ingress", called, caller, called)
        return frozenset(_joined(_overlap(out, into)))

    def _allowed(self, direction: str, subject: Party, peer: Party, called: Party) -> frozenset[Span]:
        policies = [policy for policy in self._policies if _selects(policy, direction, subject)]
        if not policies:
            return EVERYTHING
        spans: set[Span] = set()
        for policy in policies:
            for rule in policy["spec"].get(direction) or []:
                peers = rule.get("from" if direction == "ingress" else "to")
                if not peers or any(_is(peer, one, policy["metadata"].get("namespace", "default")) for one in peers):
                    spans |= _spans(rule.get("ports"), called)
        return frozenset(spans)


def _selects(policy: Manifest, direction: str, party: Party) -> bool:
    spec = policy["spec"]
    types = spec.get("policyTypes", ["Ingress"] + (["Egress"] if "egress" in spec else []))
    return (
        direction.capitalize() in types
        and policy["metadata"].get("namespace", "default") == party.namespace
        and matches(spec.get("podSelector", {}), dict(party.labels))
    )


def _is(party: Party, peer: dict[str, Any], namespace: str) -> bool:
    if block := peer.get("ipBlock"):
        return bool(party.address) and _in_block(party.address, block)
    if party.address:
        return False
    if "namespaceSelector" in peer:
        if not matches(peer["namespaceSelector"], dict(party.namespace_labels)):
            return False
    elif party.namespace != namespace:
        return False
    return matches(peer.get("podSelector", {}), dict(party.labels))


def _in_block(address: str, block: dict[str, Any]) -> bool:
    def inside(network: str) -> bool:
        return ipaddress.ip_address(address) in ipaddress.ip_network(network)

    return inside(block["cidr"]) and not any(inside(hole) for hole in block.get("except", []))


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """A LabelSelector; an empty one selects everything. Raises KeyError for an operator that there is not."""
    tests: dict[str, Callable[[str, list[str]], bool]] = {
        "In": lambda key, values: labels.get(key) in values,
        "NotIn": lambda key, values: labels.get(key) not in values,
        "Exists": lambda key, _: key in labels,
        "DoesNotExist": lambda key, _: key not in labels,
    }
    equal = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    expressions = selector.get("matchExpressions", [])
    return equal and all(tests[one["operator"]](one["key"], one.get("values", [])) for one in expressions)


def _spans(ports: list[dict[str, Any]] | None, called: Party) -> set[Span]:
    if not ports:
        return set(EVERYTHING)
    found: set[Span] = set()
    for port in ports:
        protocol, number = port.get("protocol", "TCP"), port.get("port")
        if number is None:
            found.add((protocol, 0, PORT_MAX))
            continue
        if isinstance(number, str):
            number = dict(called.named_ports).get(number)
        if number is not None:  # a name that the pod does not have allows nothing
            found.add((protocol, number, port.get("endPort", number)))
    return found


def _overlap(ours: frozenset[Span], theirs: frozenset[Span]) -> Iterator[Span]:
    for protocol, first, last in ours:
        for other, low, high in theirs:
            if protocol == other and max(first, low) <= min(last, high):
                yield protocol, max(first, low), min(last, high)


def _joined(spans: Iterator[Span]) -> list[Span]:
    """Without overlaps: two policies that allow one port allow it once."""
    made: list[Span] = []
    for protocol, first, last in sorted(set(spans)):
        if made and made[-1][0] == protocol and first <= made[-1][2] + 1:
            made[-1] = (protocol, made[-1][1], max(last, made[-1][2]))
        else:
            made.append((protocol, first, last))
    return made


def text(spans: frozenset[Span]) -> str:
    """As the table in docs/security.md has it: `2379`, `53, 53/UDP`, `10000-19999`, `any`."""
    if spans == EVERYTHING:
        return "any"
    ordered = sorted(spans, key=lambda span: (span[1], span[0]))
    shown = [(f"{low}" if low == high else f"{low}-{high}") + ("" if protocol == "TCP" else f"/{protocol}")
             for protocol, low, high in ordered]  # fmt: skip
    return ", ".join(shown)

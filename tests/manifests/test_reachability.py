"""Who may reach whom is what docs/security.md says, and a way that is not in its table is found."""

from __future__ import annotations

from typing import Any

import pytest

from tests.manifests.parties import computed, documented, parties
from tests.manifests.planted import policy
from tests.manifests.reachability import Network, Party, elsewhere, matches, text
from tests.manifests.rendered import Manifest, named, render

pytestmark = pytest.mark.timeout(900)  # where there is no kubectl, the first run builds kustomize

APPLIED = ("overlays/demo", "overlays/production")


def told(overlay: str, objects: list[Manifest]) -> dict[tuple[str, str], str]:
    return documented(overlay, parties(objects), named(objects, "Namespace")["metadata"]["name"])


@pytest.mark.parametrize("overlay", APPLIED)
def test_the_page_has_every_way_and_no_other(overlay: str) -> None:
    objects = render(overlay)
    assert computed(objects) == told(overlay, objects)


@pytest.mark.parametrize("overlay", APPLIED)
def test_only_the_key_manager_reaches_etcd(overlay: str) -> None:
    callers = {caller for caller, called in computed(render(overlay)) if called == "etcd"}
    assert callers - {"etcd"} == {"key-manager"}


# ── faults that these tests must find ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("to-etcd", {"podSelector": {}}),
        ("to-redis", {"podSelector": {"matchLabels": {"ray.io/cluster": "oncesign"}}}),
        ("to-api-server", {"egress": [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}]}),
        ("names", {"policyTypes": ["Ingress"]}),
        ("dashboard", {"ingress": [{"from": [{"namespaceSelector": {}}]}]}),
        ("submitter", {"egress": [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}]}),
        ("key-manager-clients", {"ingress": [{}]}),
        ("ray", {"egress": [{}]}),
    ],
)
def test_a_policy_that_is_wider_or_narrower_is_found(name: str, change: dict[str, Any]) -> None:
    objects = render("overlays/production")
    named(objects, "NetworkPolicy", name)["spec"] |= change
    assert computed(objects) != told("overlays/production", objects)


def test_one_rule_too_many_at_both_ends_is_found() -> None:
    objects = render("overlays/demo")
    named(objects, "NetworkPolicy", "to-etcd")["spec"]["podSelector"] = {}
    callers = [{"podSelector": {"matchLabels": {"oncesign.io/group": "io"}}}]
    named(objects, "NetworkPolicy", "etcd")["spec"]["ingress"].append({"from": callers})
    extra = set(computed(objects).items()) - set(told("overlays/demo", objects).items())
    assert extra == {(("io", "etcd"), "2379")}


def test_without_the_default_deny_others_are_open() -> None:
    objects = [item for item in render("overlays/demo") if item["metadata"]["name"] != "deny-all"]
    # A pod that a policy selects for egress only takes calls from anybody.
    assert computed(objects)["the internet", "another pod of the namespace"] == "any"


# ── the rules of NetworkPolicy ───────────────────────────────────────────────────────────────────────────────────────

A = Party("a", "demo", (("app", "a"),), (("kubernetes.io/metadata.name", "demo"),))
B = Party("b", "demo", (("app", "b"),), (("kubernetes.io/metadata.name", "demo"),), (("http", 8080),))


def reached(*policies: Manifest, caller: Party = A) -> str:
    return text(Network(list(policies)).ports(caller, B))


def test_nothing_selected_is_open_and_a_selected_pod_is_closed() -> None:
    assert reached() == "any"
    assert reached(policy("deny", {})) == ""
    assert reached(policy("deny", {"app": "b"})) == ""
    assert reached(policy("deny", {"app": "c"})) == "any"


def test_both_ends_must_allow_and_policies_add_up() -> None:
    to_b = policy("out", {"app": "a"}, egress=[{"to": [{"podSelector": {"matchLabels": {"app": "b"}}}]}])
    some = policy("in", {"app": "b"}, ingress=[{"from": [{"podSelector": {}}], "ports": [{"port": 80}]}])
    more = policy("in", {"app": "b"}, ingress=[{"ports": [{"port": "http"}, {"port": 90, "endPort": 95}]}])
    udp = policy("in", {"app": "b"}, ingress=[{"ports": [{"port": 53, "protocol": "UDP"}]}])
    assert reached(to_b, some) == "80"
    assert reached(to_b, some, more) == "80, 90-95, 8080"
    assert reached(to_b, udp) == "53/UDP"
    assert reached(policy("deny", {}), some) == ""


def test_peers_are_of_the_policys_namespace_unless_it_says_otherwise() -> None:
    stranger = elsewhere("c", "shop", {"app": "a"})
    mine = policy("in", {"app": "b"}, ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "a"}}}]}])
    everywhere = policy("in", {"app": "b"}, ingress=[{"from": [{"namespaceSelector": {}}]}])
    both = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}, "podSelector": {}}
    assert reached(mine, caller=stranger) == ""
    assert reached(everywhere, caller=stranger) == "any"
    assert reached(policy("in", {"app": "b"}, ingress=[{"from": [both]}]), caller=stranger) == "any"
    assert reached(policy("in", {"app": "b"}, ingress=[{"from": [both]}])) == ""


def test_a_block_of_addresses_has_holes_and_no_pods() -> None:
    block = {"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"]}}
    rule = policy("in", {"app": "b"}, ingress=[{"from": [block]}])
    assert reached(rule, caller=Party("x", address="192.0.2.1")) == "any"
    assert reached(rule, caller=Party("x", address="192.0.2.200")) == ""
    assert reached(rule) == ""


def test_expressions_of_selectors() -> None:
    labels = {"app": "a"}
    for operator, values, expected in [
        ("In", ["a"], True), ("In", ["b"], False), ("NotIn", ["a"], False), ("NotIn", ["b"], True),
        ("Exists", [], True), ("DoesNotExist", [], False),
    ]:  # fmt: skip
        one = {"key": "app", "operator": operator, "values": values}
        assert matches({"matchExpressions": [one]}, labels) is expected
    with pytest.raises(KeyError):
        matches({"matchExpressions": [{"key": "app", "operator": "Gt", "values": ["1"]}]}, labels)

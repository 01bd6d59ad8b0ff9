"""Secrets are where docs/security.md says, pods keep the restricted standard, and production states what it takes."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Final

import pytest

from actors.scaling import SHRINK_AFTER_S
from pipeline.adapters.postgres import connection_string
from pipeline.settings import PostgresSettings
from tests.kube import scaling
from tests.manifests.hardening import account_tokens, restricted, told, unbounded, writable
from tests.manifests.parties import RAY, parties
from tests.manifests.planted import ray_cluster
from tests.manifests.pods import Pod, pods
from tests.manifests.reachability import Network, of_pod
from tests.manifests.rendered import JOBS, OVERLAYS, SCALED, Manifest, job, named, of_kind, render

pytestmark = pytest.mark.timeout(900)  # where there is no kubectl, the first run builds kustomize

APPLIED: Final = ("overlays/demo", "overlays/production", SCALED)
SERVERS: Final = ("etcd", "pgsql", "kafka", "redis")
"""Of the demo; docs/security.md says why they keep the baseline only."""

HOLDERS: Final = {
    "oncesign-kek": {"signers", "key-manager"},
    "oncesign-service": {"key-manager"},
    "oncesign-etcd": {"key-manager"},
    "oncesign-postgres": {"head", "key-manager", "signers", "io", "pgsql"},
    "oncesign-kafka": {"head", "io"},
    "oncesign-redis": {"head", "redis"},
}
"""Who may hold which Secret."""


def product(objects: list[Manifest]) -> list[Pod]:
    return [pod for pod in pods(objects) if pod.name not in SERVERS]


@pytest.mark.parametrize("overlay", APPLIED)
def test_each_secret_is_held_by_those_who_need_it(overlay: str) -> None:
    objects = render(overlay)
    held: dict[str, set[str]] = {}
    for pod in pods(objects):
        for secret in pod.secrets():
            held.setdefault(secret, set()).add(pod.name)
    # KubeRay gives the head Redis' password itself.
    assert {pod.name for pod in pods(objects)} >= set(RAY)
    assert held["oncesign-kek"] == HOLDERS["oncesign-kek"]
    for secret, holders in held.items():
        assert holders <= HOLDERS[secret], secret


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_secret_is_where_many_can_read(overlay: str) -> None:
    assert [problem for item in render(overlay) for problem in told(item)] == []


@pytest.mark.parametrize("overlay", APPLIED)
def test_the_dsn_is_one_without_password(overlay: str) -> None:
    settings = named(render(overlay), "ConfigMap", "oncesign-settings")["data"]
    connection_string(PostgresSettings(dsn=settings["ONCESIGN_POSTGRES__DSN"]))


def test_production_brings_no_secret_and_uses_tls_everywhere() -> None:
    objects = render("overlays/production")
    settings = named(objects, "ConfigMap", "oncesign-settings")["data"]
    assert of_kind(objects, "Secret") == []
    assert all(one.startswith("https://") for one in settings["ONCESIGN_ETCD__ENDPOINTS"].split(","))
    assert "sslmode=verify-full" in settings["ONCESIGN_POSTGRES__DSN"]
    assert settings["ONCESIGN_KAFKA__SECURITY_PROTOCOL"] == "SASL_SSL"
    cluster = named(objects, "RayCluster")["spec"]
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"].startswith("rediss://")


@pytest.mark.parametrize("overlay", APPLIED)
def test_files_that_settings_name_are_mounted_where_they_are_read(overlay: str) -> None:
    objects = render(overlay)
    settings = named(objects, "ConfigMap", "oncesign-settings")["data"]
    files = {value for name, value in settings.items() if name.endswith("_FILE")}
    mounts = {mount["mountPath"] for pod in product(objects) for c in pod.containers for mount in c["volumeMounts"]}
    for file in files:
        assert any(file.startswith(f"{mount}/") for mount in mounts if mount.startswith("/run/secrets")), file


@pytest.mark.parametrize("overlay", APPLIED)
def test_pods_of_the_product_keep_the_restricted_standard(overlay: str) -> None:
    objects = render(overlay)
    problems = [problem for pod in product(objects) for problem in (*restricted(pod), *writable(pod))]
    assert problems == []


@pytest.mark.parametrize("overlay", APPLIED)
def test_no_pod_talks_to_the_api_server_but_the_autoscaler(overlay: str) -> None:
    objects = render(overlay)
    assert [problem for pod in pods(objects) for problem in account_tokens(pod)] == []
    holders = {
        (pod.name, container["name"])
        for pod in pods(objects)
        for container in pod.containers
        for mount in container.get("volumeMounts", [])
        if mount["mountPath"].startswith("/var/run/secrets/kubernetes.io")
    }
    assert holders == (set() if overlay == "overlays/demo" else {("head", "autoscaler")})


@pytest.mark.parametrize("name", JOBS)
def test_a_submitter_holds_nothing_and_is_known_to_the_policies(name: str) -> None:
    item = job(name)
    (pod,) = pods([item])
    assert restricted(pod) + writable(pod) + account_tokens(pod) + unbounded(pod, guaranteed=False) + told(item) == []
    assert pod.secrets() == set()
    assert pod.labels == {"oncesign.io/role": "submitter"}


def test_a_recovery_holds_no_key_and_reaches_what_it_needs() -> None:
    added = render("recovery")
    (pod,) = pods(added)
    assert restricted(pod) + writable(pod) + account_tokens(pod) + unbounded(pod, guaranteed=False) == []
    assert set(pod.secrets()) == {"oncesign-postgres", "oncesign-kafka", "oncesign-etcd"}
    objects = render("overlays/demo")
    everybody, labels = parties(objects), named(objects, "Namespace")["metadata"]["labels"]
    recovery = of_pod(pod, labels)
    for name, port in {"etcd": 2379, "pgsql": 5432, "kafka": 31092}.items():
        called = next(party for party in everybody if party.name == name)
        assert Network(objects).ports(recovery, called) == frozenset(), "before it is applied"
        spans = Network([*objects, *added]).ports(recovery, called)
        assert ("TCP", port, port) in spans
    others = [party for party in everybody if party.namespace == pod.namespace]
    for caller in others:
        for called in others:
            assert Network(objects).ports(caller, called) == Network([*objects, *added]).ports(caller, called)


def test_what_runs_is_bounded_and_in_production_guaranteed() -> None:
    for overlay in APPLIED:
        guaranteed = overlay == "overlays/production"
        found = [p for pod in product(render(overlay)) for p in unbounded(pod, guaranteed=guaranteed)]
        assert found == [], overlay


@pytest.mark.parametrize("overlay", APPLIED)
def test_pods_have_a_minute_to_drain(overlay: str) -> None:
    for pod in product(render(overlay)):
        assert pod.spec["terminationGracePeriodSeconds"] >= 60, pod.name


def test_production_is_spread_scaled_and_pinned() -> None:
    objects = render("overlays/production")
    groups = {group["groupName"]: group for group in named(objects, "RayCluster")["spec"]["workerGroupSpecs"]}
    settings = named(objects, "ConfigMap", "oncesign-settings")["data"]
    for name in ("signers", "io"):
        spread = groups[name]["template"]["spec"]["topologySpreadConstraints"]
        assert {one["topologyKey"] for one in spread} == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
        labels = groups[name]["template"]["metadata"]["labels"]
        assert all(one["labelSelector"]["matchLabels"].items() <= labels.items() for one in spread)
    signers = groups["signers"]
    cores = int(signers["rayStartParams"]["num-cpus"])
    assert signers["minReplicas"] * cores == int(settings["ONCESIGN_POOL__SIGNERS"])
    assert signers["maxReplicas"] * cores == int(settings["ONCESIGN_POOL__SIGNERS_MAX"])
    assert all("@sha256:" in container["image"] for pod in pods(objects) for container in pod.containers)


def test_the_autoscaler_that_is_tried_on_a_cluster_is_that_of_production() -> None:
    tried, ours = (named(render(overlay), "RayCluster")["spec"] for overlay in (SCALED, "overlays/production"))
    own = ("idleTimeoutSeconds", "resources")
    assert tried["enableInTreeAutoscaling"] == ours["enableInTreeAutoscaling"] is True
    options = [{k: v for k, v in one["autoscalerOptions"].items() if k not in own} for one in (tried, ours)]
    assert options[0] == options[1]
    heads = [one["headGroupSpec"]["template"]["spec"] for one in (tried, ours)]
    accounts = [head["serviceAccountName"] for head in heads]
    assert accounts[0] == accounts[1]
    tokens = [next(volume for volume in head["volumes"] if volume["name"] == "api-token") for head in heads]
    assert tokens[0] == tokens[1]


def test_what_is_tried_scales_as_its_run_expects() -> None:
    objects = render(SCALED)
    settings = named(objects, "ConfigMap", "oncesign-settings")["data"]
    cluster = named(objects, "RayCluster")["spec"]
    signers = next(group for group in cluster["workerGroupSpecs"] if group["groupName"] == "signers")
    assert (signers["minReplicas"], signers["maxReplicas"]) == (scaling.LEAST_PODS, scaling.MOST_PODS)
    assert int(signers["rayStartParams"]["num-cpus"]) == scaling.SIGNERS_PER_POD
    assert int(settings["ONCESIGN_POOL__SIGNERS"]) == scaling.LEAST_PODS * scaling.SIGNERS_PER_POD
    assert int(settings["ONCESIGN_POOL__SIGNERS_MAX"]) == scaling.MOST_PODS * scaling.SIGNERS_PER_POD
    assert SHRINK_AFTER_S + cluster["autoscalerOptions"]["idleTimeoutSeconds"] < scaling.DOWN_BOUND_S


@pytest.mark.parametrize("overlay", ["overlays/demo", "overlays/production"])
def test_each_disruption_budget_selects_pods_and_blocks_no_drain(overlay: str) -> None:
    objects = render(overlay)
    for budget in of_kind(objects, "PodDisruptionBudget"):
        wanted = budget["spec"]["selector"]["matchLabels"]
        replicas = sum(pod.replicas for pod in pods(objects) if wanted.items() <= pod.labels.items())
        # maxUnavailable is not for pods of a kind without the scale subresource: none of them would ever be evicted.
        assert "maxUnavailable" not in budget["spec"]
        assert budget["spec"]["minAvailable"] < replicas, budget["metadata"]["name"]


# ── faults that these tests must find ────────────────────────────────────────────────────────────────────────────────


def io_pod(**changes: Any) -> Pod:
    pod = next(pod for pod in pods([ray_cluster("io")]) if pod.name == "io")
    spec = deepcopy(pod.spec)
    spec |= {name: value for name, value in changes.items() if name in ("volumes", "hostNetwork", "securityContext")}
    if "automountServiceAccountToken" in changes:
        spec["automountServiceAccountToken"] = changes["automountServiceAccountToken"]
    spec["containers"][0] |= changes.get("container", {})
    spec["containers"][0]["securityContext"] |= changes.get("context", {})
    return Pod(pod.name, pod.namespace, pod.labels, pod.annotations, spec)


def test_a_right_pod_passes() -> None:
    pod = io_pod()
    assert restricted(pod) + writable(pod) + account_tokens(pod) + unbounded(pod, guaranteed=True) == []
    assert pod.secrets() == set()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hostNetwork": True}, "hostNetwork"),
        ({"volumes": [{"name": "host", "hostPath": {"path": "/"}}]}, "hostPath"),
        ({"securityContext": {"runAsNonRoot": True}}, "seccomp"),
        ({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}, "root"),
        ({"context": {"runAsUser": 0}}, "root"),
        ({"context": {"allowPrivilegeEscalation": True}}, "privileges"),
        ({"context": {"privileged": True}}, "privileges"),
        ({"context": {"capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}}}, "capabilities"),
        ({"context": {"capabilities": {}}}, "capabilities"),
        ({"container": {"ports": [{"containerPort": 1, "hostPort": 1}]}}, "host port"),
    ],
)
def test_a_pod_that_asks_for_more_is_found(changes: dict[str, Any], said: str) -> None:
    assert any(said in problem for problem in restricted(io_pod(**changes)))


def test_other_faults_of_a_pod_are_found() -> None:
    assert writable(io_pod(context={"readOnlyRootFilesystem": False})) != []
    assert account_tokens(io_pod(automountServiceAccountToken=True)) != []
    loose = {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "1Gi"}}
    assert unbounded(io_pod(container={"resources": loose}), guaranteed=True) != []
    assert unbounded(io_pod(container={"resources": loose}), guaranteed=False) == []
    assert unbounded(io_pod(container={"resources": {}}), guaranteed=False) != []


@pytest.mark.parametrize(
    "changes",
    [
        {"volumes": [{"name": "k", "secret": {"secretName": "kek"}}]},
        {"volumes": [{"name": "k", "projected": {"sources": [{"secret": {"name": "kek"}}]}}]},
        {"container": {"envFrom": [{"secretRef": {"name": "kek"}}]}},
        {"container": {"env": [{"name": "K", "valueFrom": {"secretKeyRef": {"name": "kek", "key": "kek"}}}]}},
    ],
)
def test_a_secret_is_seen_however_a_pod_is_given_it(changes: dict[str, Any]) -> None:
    assert io_pod(**changes).secrets() == {"kek"}


@pytest.mark.parametrize(
    "told_by",
    [
        {"kind": "ConfigMap", "data": {"ONCESIGN_POSTGRES__DSN": "postgresql://u:hunter2@host/db"}},
        {"kind": "ConfigMap", "data": {"DSN": "host=a user=b password=hunter2"}},
        {"kind": "ConfigMap", "data": {"KAFKA_PASSWORD": "hunter2"}},
        {"kind": "RayCluster", "spec": {"env": [{"name": "RAY_AUTH_TOKEN", "value": "hunter2"}]}},
        {"kind": "RayJob", "spec": {"runtimeEnvYAML": f"env_vars: {{K: {'ab' * 32}}}"}},
        {"kind": "Service", "metadata": {"annotations": {"note": "0x" + "cd" * 32}}},
        {"kind": "Service", "metadata": {"labels": {"api_key": "x" * 9}}},
    ],
)
def test_a_secret_that_many_can_read_is_found(told_by: Manifest) -> None:
    assert told(told_by) != []

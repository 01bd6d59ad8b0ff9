"""The API server takes every object as it is, and KubeRay's operator does, in each version that we support."""

from __future__ import annotations

import subprocess
from functools import cache
from typing import Any

import pytest
import yaml

from tests.manifests import modules, schemas
from tests.manifests.kuberay_rules import refusals
from tests.manifests.planted import changed, policy, ray_cluster, ray_job
from tests.manifests.rendered import (
    JOBS,
    KUBERAY,
    OVERLAYS,
    SCALED,
    Manifest,
    built_kustomize,
    job,
    named,
    render,
    title,
)
from tests.manifests.structural import Structure

pytestmark = pytest.mark.timeout(900)  # the first run downloads schemas
APPLIED = (*OVERLAYS, SCALED)
KUBERAY_VERSIONS = modules.versions(modules.KUBERAY)


def held(structure: Structure | None, item: Manifest) -> list[str]:
    if structure is None:
        return [f"{title(item)}: no schema has {item['apiVersion']} {item['kind']}"]
    return [f"{title(item)} {problem}" for problem in structure.problems(item)]


@cache
def served() -> list[str]:
    """The versions of KubeRay that can be had."""
    return [version for version in KUBERAY_VERSIONS if refusal(version) is None]


@cache
def refusal(version: str) -> str | None:
    try:
        modules.folder(modules.KUBERAY, version)
    except modules.ModuleRefused as refused:
        return refused.message
    return None


@pytest.mark.parametrize("version", KUBERAY_VERSIONS)
def test_each_version_of_kuberay_is_looked_at(version: str) -> None:
    assert len(served()) >= 2, refusal(version)
    if reason := refusal(version):
        pytest.skip(f"the module proxy within reach does not serve it: {reason}")


def found_by_each(item: Manifest) -> list[str]:
    """What each version has against an object of KubeRay's."""
    return [f"{kuberay}: {problem}" for kuberay in served() for problem in held(schemas.of_ray(item, kuberay), item)]


@pytest.mark.parametrize("overlay", APPLIED)
def test_ray_kinds_fit_each_version_of_kuberay(overlay: str) -> None:
    for item in render(overlay):
        if item["apiVersion"].startswith("ray.io/"):
            assert found_by_each(item) == []


@pytest.mark.parametrize("overlay", APPLIED)
def test_kuberay_refuses_nothing(overlay: str) -> None:
    assert [problem for item in render(overlay) for problem in refusals(item)] == []


@pytest.mark.parametrize("overlay", APPLIED)
def test_core_kinds_fit_kubernetes(overlay: str) -> None:
    for item in render(overlay):
        if item["apiVersion"].startswith("monitoring.coreos.com/"):
            assert held(schemas.of_monitoring(item), item) == []
        elif not item["apiVersion"].startswith("ray.io/"):
            assert held(schemas.of_core(item), item) == []


@pytest.mark.parametrize("name", JOBS)
def test_a_job_fits_each_version_of_kuberay_and_its_cluster(name: str) -> None:
    item = job(name)
    assert found_by_each(item) + refusals(item) == []
    cluster = named(render("overlays/demo"), "RayCluster")["metadata"]
    assert item["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["name"]}
    assert item["metadata"]["namespace"] == cluster["namespace"]


def test_the_kustomize_that_we_build_renders_the_same() -> None:
    argv = [built_kustomize(), KUBERAY / "overlays" / "production"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert sorted(yaml.safe_load_all(done.stdout), key=title) == sorted(render("overlays/production"), key=title)


# ── faults that these tests must find ────────────────────────────────────────────────────────────────────────────────


def test_a_right_object_passes() -> None:
    for item in (ray_cluster("io", "signers"), ray_job()):
        assert found_by_each(item) == []
        assert refusals(item) == []
    assert held(schemas.of_core(policy("a", {})), policy("a", {})) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("spec/headGroupSpec/template/spec/terminationGracePeriod", 60, "terminationGracePeriod"),
        ("spec/workerGroupSpecs/0/maxReplica", 3, "maxReplica"),
        ("spec/workerGroupSpecs/0/replicas", "1", "not of type 'integer'"),
        ("spec/authOptions/mode", "basic", "not one of"),
        ("spec/headGroupSpec/template/spec/containers/0/env", [{"name": "A"}, {"name": "A"}], "A is there twice"),
        ("spec/workerGroupSpecs/0/template/spec/containers", None, "required"),
        ("metadata/label", {}, "label"),
    ],
)
def test_a_field_that_would_be_pruned_or_refused_is_found_by_each(path: str, value: Any, said: str) -> None:
    found = found_by_each(changed(ray_cluster("io"), path, value))
    assert all(any(said in problem for problem in found if problem.startswith(version)) for version in served())


def test_two_ports_that_differ_only_by_a_default_are_found() -> None:
    ports = [{"containerPort": 8080}, {"containerPort": 8080, "protocol": "TCP"}]
    broken = changed(ray_cluster("io"), "spec/headGroupSpec/template/spec/containers/0/ports", ports)
    assert any("8080, TCP is there twice" in problem for problem in found_by_each(broken))


@pytest.mark.parametrize(("path", "value"), [("spec/policyType", ["Ingress"]), ("spec/ingress", [{"form": []}])])
def test_a_misspelt_field_of_a_core_kind_is_found(path: str, value: Any) -> None:
    broken = changed(policy("a", {}), path, value)
    assert held(schemas.of_core(broken), broken) != []


AUTOSCALED = changed(
    changed(ray_cluster("io"), "spec/enableInTreeAutoscaling", value=True), "spec/autoscalerOptions", {"version": "v2"}
)
HEAD_ENV = "spec/headGroupSpec/template/spec/containers/0/env"
TOLERANT = changed(ray_cluster("io"), "spec/gcsFaultToleranceOptions", {"redisAddress": "redis:6379"})


@pytest.mark.parametrize(
    ("item", "path", "value", "said"),
    [
        (ray_cluster("io"), "metadata/name", "o" * 54, "longer than 53"),
        (ray_cluster("io"), "metadata/name", "1oncesign", "DNS-1035"),
        (ray_cluster("g" * 45), "spec/rayVersion", "2.60.0", "cut"),
        (ray_cluster("io", "io"), "spec/rayVersion", "2.60.0", "one name"),
        (ray_cluster("Signers"), "spec/rayVersion", "2.60.0", "DNS-1123"),
        (ray_cluster("io"), "spec/rayVersion", None, "needs rayVersion"),
        (ray_cluster("io"), "spec/rayVersion", "2.51.0", "2.52.0"),
        (ray_cluster("io"), "spec/workerGroupSpecs/0/minReplicas", 2, "not between"),
        (ray_cluster("io"), "spec/workerGroupSpecs/0/replicas", 9, "not between"),
        (ray_cluster("io"), "spec/workerGroupSpecs/0/maxReplicas", None, "minReplicas and maxReplicas"),
        (ray_cluster("io"), "spec/workerGroupSpecs/0/rayStartParams/resources", '{"io": 1}', "inside quotes"),
        (ray_cluster("io"), "spec/workerGroupSpecs/0/rayStartParams/labels", "a=b", "labels"),
        (ray_cluster("io"), "spec/workerGroupSpecs/0/resources", {"CPU": "1"}, "both"),
        (ray_cluster("io"), "spec/autoscalerOptions", {"version": "v2"}, "not on"),
        (ray_cluster("io"), "spec/networkPolicy", {}, "feature gate"),
        (ray_cluster("io"), HEAD_ENV, [{"name": "RAY_REDIS_ADDRESS"}], "without gcsFaultToleranceOptions"),
        (TOLERANT, "metadata/annotations", {"ray.io/ft-enabled": "true"}, "exclude"),
        (TOLERANT, HEAD_ENV, [{"name": "REDIS_PASSWORD"}], "exclude"),
        (TOLERANT, "spec/headGroupSpec/rayStartParams/redis-password", "x", "exclude"),
        (AUTOSCALED, HEAD_ENV, [{"name": "RAY_enable_autoscaler_v2"}], "exclude"),
        (AUTOSCALED, "spec/workerGroupSpecs/0/template/spec/restartPolicy", "Always", "restarted in place"),
        (AUTOSCALED, "spec/autoscalerOptions/version", "v1", None),
        (ray_job(), "metadata/name", "s" * 48, "longer than 47"),
        (ray_job(), "spec/clusterSelector", None, "neither"),
        (ray_job(), "spec/clusterSelector", {"app": "x"}, "does not name a cluster"),
        (ray_job(), "spec/backoffLimit", 2, "repeated"),
        (ray_job(), "spec/ttlSecondsAfterFinished", 60, "shutdownAfterJobFinishes"),
        (ray_job(), "spec/activeDeadlineSeconds", 0, "not positive"),
    ],
)
def test_what_kuberay_refuses_is_found(item: Manifest, path: str, value: Any, said: str | None) -> None:
    found = refusals(changed(item, path, value))
    assert any(said in problem for problem in found) if said else found == []

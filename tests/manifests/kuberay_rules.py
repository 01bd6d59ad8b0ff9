"""What KubeRay refuses, or does not carry out, though its CustomResourceDefinition allows it.

The source of each rule is ray-operator/controllers/ray/utils/validation.go of KubeRay 1.5 to 1.7 where nothing else is
said. A rule that one of these versions has is kept for all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from tests.manifests.rendered import Manifest, title

CLUSTER_NAME_MAX: Final = 53
"""The longest that KubeRay appends to it must still fit the 63 characters of a label."""

JOB_NAME_MAX: Final = CLUSTER_NAME_MAX - 6
POD_NAME_MAX: Final = 50
"""utils.PodName cuts `{cluster}-{group}` here: two groups could then have pods of one name."""

LABEL: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
GROUP: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
TOKEN_RAY_OLDEST: Final = (2, 52, 0)
DEADLINES: Final = ("activeDeadlineSeconds", "preRunningDeadlineSeconds")
MANAGED: Final = ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME")
FAULT_TOLERANCE: Final = "ray.io/ft-enabled"
STORAGE_NAMESPACE: Final = "ray.io/external-storage-namespace"
AUTOSCALER_V2: Final = "RAY_enable_autoscaler_v2"
RESOURCE_PARAMETERS: Final = ("num-cpus", "num-gpus", "memory", "resources")
FEATURE_GATED: Final = ("networkPolicy", "tlsOptions", "historyServerOptions")
"""Fields of 1.7 that its operator takes only with a feature gate, and earlier ones do not know."""


def refusals(item: Manifest) -> list[str]:
    """What KubeRay would say against a RayCluster or RayJob; nothing for other kinds."""
    rules = {"RayCluster": _cluster, "RayJob": _job}.get(item["kind"])
    return [] if rules is None else [f"{title(item)}: {problem}" for problem in rules(item)]


def _cluster(item: Manifest) -> Iterator[str]:
    name, spec = item["metadata"]["name"], item["spec"]
    yield from _name(name, CLUSTER_NAME_MAX)
    for group in spec.get("workerGroupSpecs", []):
        if len(f"{name}-{group['groupName']}") > POD_NAME_MAX:
            yield f"the pods of group {group['groupName']} would have names that are cut"
    yield from _spec(spec, item["metadata"].get("annotations", {}))


def _job(item: Manifest) -> Iterator[str]:
    yield from _name(item["metadata"]["name"], JOB_NAME_MAX)
    spec = item["spec"]
    selector = spec.get("clusterSelector", {})
    if not selector and "rayClusterSpec" not in spec:
        yield "neither clusterSelector nor rayClusterSpec is set"
    if selector and not selector.get("ray.io/cluster"):
        yield "clusterSelector does not name a cluster (ray.io/cluster)"
    alone = spec.get("suspend") or spec.get("backoffLimit") or spec.get("submissionMode") == "SidecarMode"
    if selector and alone:
        yield "a job with clusterSelector cannot be suspended, repeated (backoffLimit) or a sidecar"
    if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    yield from (f"{bound} is not positive" for bound in DEADLINES if spec.get(bound, 1) <= 0)
    if "rayClusterSpec" in spec:
        yield from _spec(spec["rayClusterSpec"], item["metadata"].get("annotations", {}))


def _name(name: str, most: int) -> Iterator[str]:
    if len(name) > most:
        yield f"its name is longer than {most} characters"
    if not LABEL.fullmatch(name):
        yield "its name is not a DNS-1035 label"


def _spec(spec: dict[str, Any], annotations: dict[str, str]) -> Iterator[str]:
    groups = spec.get("workerGroupSpecs", [])
    names = [group["groupName"] for group in groups]
    if len(set(names)) < len(names):
        yield "two worker groups have one name"
    yield from _parameters("head", spec["headGroupSpec"])
    for group in groups:
        yield from _group(group, scaled=bool(spec.get("enableInTreeAutoscaling")))
        yield from _parameters(group["groupName"], group)
    yield from _authentication(spec)
    yield from _fault_tolerance(spec, annotations)
    yield from _autoscaler(spec)
    yield from (f"{name} needs a feature gate of the operator" for name in FEATURE_GATED if name in spec)


def _group(group: dict[str, Any], *, scaled: bool) -> Iterator[str]:
    name = group["groupName"]
    if not GROUP.fullmatch(name):
        yield f"group {name} is not a DNS-1123 label; KubeRay makes its pods' names lower-case, and its labels not"
    least, most = group.get("minReplicas"), group.get("maxReplicas")
    if not scaled and (least is None or most is None):
        yield f"group {name} sets not both minReplicas and maxReplicas"
    replicas = group.get("replicas", least or 0)
    if not 0 <= (least or 0) <= replicas <= (replicas if most is None else most):
        # Not refused: KubeRay quietly takes the nearer bound (utils.GetWorkerGroupDesiredReplicas).
        yield f"group {name}: replicas {replicas} is not between minReplicas {least} and maxReplicas {most}"
    if group.get("suspend"):
        yield f"group {name} is suspended"


def _parameters(name: str, group: dict[str, Any]) -> Iterator[str]:
    parameters = group.get("rayStartParams", {})
    if "labels" in parameters:
        yield f"{name}: labels are not a rayStartParam"
    if group.get("resources") and any(parameters.get(key) for key in RESOURCE_PARAMETERS):
        yield f"{name}: resources are set both in the group and in rayStartParams"
    if not all(isinstance(value, str) for value in parameters.values()):
        yield f"{name}: a rayStartParam is not text"
    if resources := parameters.get("resources"):
        # `ray start` reads JSON, and the operator passes the text through a shell: hence quotes within quotes.
        try:
            json.loads(json.loads(resources))
        except (TypeError, json.JSONDecodeError):
            yield f"{name}: rayStartParams.resources is not JSON inside quotes: {resources}"


def _authentication(spec: dict[str, Any]) -> Iterator[str]:
    if spec.get("authOptions", {}).get("mode") != "token":
        return
    version = spec.get("rayVersion", "")
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        yield f"a token needs rayVersion, and it is {version!r}"
    elif tuple(int(part) for part in version.split(".")) < TOKEN_RAY_OLDEST:
        yield f"a token needs Ray 2.52.0, and rayVersion is {version}"


def _fault_tolerance(spec: dict[str, Any], annotations: dict[str, str]) -> Iterator[str]:
    options = spec.get("gcsFaultToleranceOptions")
    head = spec["headGroupSpec"]
    names = _environment(head)
    if options is None:
        if "RAY_REDIS_ADDRESS" in names and FAULT_TOLERANCE not in annotations:
            yield "RAY_REDIS_ADDRESS is set without gcsFaultToleranceOptions"
        return
    doubled = [f"annotation {name}" for name in (FAULT_TOLERANCE, STORAGE_NAMESPACE) if name in annotations]
    doubled += [f"{name} in the head's environment" for name in MANAGED if name in names]
    parameters = head.get("rayStartParams", {})
    doubled += [f"{name} in rayStartParams" for name in ("redis-password", "redis-username") if name in parameters]
    yield from (f"{what} and gcsFaultToleranceOptions exclude each other" for what in doubled)


def _autoscaler(spec: dict[str, Any]) -> Iterator[str]:
    options, names = spec.get("autoscalerOptions", {}), _environment(spec["headGroupSpec"])
    if not spec.get("enableInTreeAutoscaling"):
        if AUTOSCALER_V2 in names or options:
            yield "the autoscaler is set up but not on (enableInTreeAutoscaling)"
        return
    if options.get("version") and AUTOSCALER_V2 in names:
        yield f"autoscalerOptions.version and {AUTOSCALER_V2} exclude each other"
    groups = {"head": spec["headGroupSpec"]} | {group["groupName"]: group for group in spec.get("workerGroupSpecs", [])}
    for name, group in groups.items():
        policy = group["template"]["spec"].get("restartPolicy", "Never")
        if options.get("version") == "v2" and policy != "Never":
            yield f"{name}: with autoscaler v2 a pod is not restarted in place (restartPolicy {policy})"
        if "idleTimeoutSeconds" in group and options.get("version") != "v2":
            yield f"{name}: idleTimeoutSeconds needs autoscaler v2"


def _environment(group: dict[str, Any]) -> set[str]:
    return {variable["name"] for variable in group["template"]["spec"]["containers"][0].get("env", [])}

"""The pods that rendered objects ask for, as the controllers would make them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from tests.manifests.rendered import Manifest

TEMPLATED: Final = ("Deployment", "StatefulSet", "DaemonSet", "Job")


@dataclass(frozen=True, slots=True)
class Pod:
    """One kind of pod."""

    name: str  #: of the group of a RayCluster, else of the object
    namespace: str
    labels: dict[str, str]
    annotations: dict[str, str]
    spec: dict[str, Any]
    replicas: int = 1

    @property
    def containers(self) -> list[dict[str, Any]]:
        """With those that run first."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    def secrets(self) -> set[str]:
        """Names of the Secrets that the pod can read, however it is given them."""
        found = {name for volume in self.spec.get("volumes", []) for name in _of_volume(volume)}
        return found | {name for container in self.containers for name in _of_environment(container)}


def _of_volume(volume: dict[str, Any]) -> Iterator[str]:
    if "secret" in volume:
        yield volume["secret"]["secretName"]
    for source in volume.get("projected", {}).get("sources", []):
        if "secret" in source:
            yield source["secret"]["name"]


def _of_environment(container: dict[str, Any]) -> Iterator[str]:
    yield from (one["secretRef"]["name"] for one in container.get("envFrom", []) if "secretRef" in one)
    for variable in container.get("env", []):
        if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
            yield reference["name"]


def pods(objects: list[Manifest]) -> list[Pod]:
    """One of each kind that there is."""
    found = []
    for item in objects:
        if item["kind"] in TEMPLATED:
            found.append(
                _pod(item, item["metadata"]["name"], item["spec"]["template"], item["spec"].get("replicas", 1))
            )
        elif item["kind"] == "Pod":
            found.append(_pod(item, item["metadata"]["name"], item, 1))
        elif item["kind"] == "RayCluster":
            found += _ray(item)
        elif item["kind"] == "RayJob" and "submitterPodTemplate" in item["spec"]:
            found.append(_pod(item, item["metadata"]["name"], item["spec"]["submitterPodTemplate"], 1))
    return found


def _ray(item: Manifest) -> list[Pod]:
    """The head and each group, with the labels that KubeRay adds (controllers/ray/common/pod.go: labelPod)."""
    spec, cluster = item["spec"], item["metadata"]["name"]
    groups = [("head", "head", "headgroup", spec["headGroupSpec"])]
    groups += [(group["groupName"], "worker", group["groupName"], group) for group in spec.get("workerGroupSpecs", [])]
    found = []
    for name, node_type, group_name, group in groups:
        template = _with_autoscaler(group["template"], spec) if name == "head" else group["template"]
        own = {
            "ray.io/is-ray-node": "yes",
            "ray.io/cluster": cluster,
            "ray.io/node-type": node_type,
            "ray.io/group": group_name,
            "ray.io/identifier": f"{cluster}-{node_type}",
            "app.kubernetes.io/name": "kuberay",
            "app.kubernetes.io/created-by": "kuberay-operator",
        }
        fixed = {key: own[key] for key in ("ray.io/cluster", "ray.io/node-type", "ray.io/group")}
        pod = _pod(item, name, template, group.get("replicas", 1))
        found.append(Pod(name, pod.namespace, own | pod.labels | fixed, pod.annotations, pod.spec, pod.replicas))
    return found


def _with_autoscaler(template: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """The head's template with the container that KubeRay puts into it (BuildAutoscalerContainer, same file)."""
    if not spec.get("enableInTreeAutoscaling"):
        return template
    given = ("env", "envFrom", "volumeMounts", "securityContext", "resources")
    options = spec.get("autoscalerOptions", {})
    head = template["spec"]["containers"][0]
    autoscaler = {"name": "autoscaler", "image": options.get("image", head["image"])}
    autoscaler |= {key: options[key] for key in given if key in options}
    return template | {"spec": template["spec"] | {"containers": [*template["spec"]["containers"], autoscaler]}}


def _pod(item: Manifest, name: str, template: dict[str, Any], replicas: int) -> Pod:
    metadata = template.get("metadata", {})
    namespace = item["metadata"].get("namespace", "default")
    return Pod(name, namespace, metadata.get("labels", {}), metadata.get("annotations", {}), template["spec"], replicas)

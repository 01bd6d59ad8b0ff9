"""Which schema an object is held to: Kubernetes' own published OpenAPI, or the CustomResourceDefinition of its kind."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from tests.manifests import modules
from tests.manifests.rendered import Manifest
from tests.manifests.structural import OPEN, Schema, Structure

KIND: Final = "x-kubernetes-group-version-kind"
QUANTITY: Final = "io.k8s.apimachinery.pkg.api.resource.Quantity"
METADATA: Final = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
RAY_KINDS: Final = ("rayclusters", "rayjobs")
MONITORING_KINDS: Final = ("podmonitors", "prometheusrules")


def of_core(item: Manifest) -> Structure | None:
    """The schema of a kind that Kubernetes itself has."""
    definitions = _core()
    group, _, version = item["apiVersion"].rpartition("/")
    wanted = {"group": group, "kind": item["kind"], "version": version}
    for schema in definitions.values():
        if wanted in schema.get(KIND, []):
            return Structure(schema, definitions)
    return None


def of_ray(item: Manifest, kuberay: str) -> Structure | None:
    """The schema of a kind of KubeRay, in that version. Raises modules.ModuleRefused."""
    bases = modules.folder(modules.KUBERAY, kuberay) / "config" / "crd" / "bases"
    return _crds(tuple(bases / f"ray.io_{kind}.yaml" for kind in RAY_KINDS)).get((item["apiVersion"], item["kind"]))


def of_monitoring(item: Manifest) -> Structure | None:
    """The schema of a kind of the Prometheus operator."""
    version = modules.versions(modules.PROMETHEUS_OPERATOR)[0]
    folder = modules.folder(modules.PROMETHEUS_OPERATOR, version) / "example" / "prometheus-operator-crd"
    files = tuple(folder / f"monitoring.coreos.com_{kind}.yaml" for kind in MONITORING_KINDS)
    return _crds(files).get((item["apiVersion"], item["kind"]))


@cache
def _crds(files: tuple[Path, ...]) -> dict[tuple[str, str], Structure]:
    found = {}
    for file in files:
        spec = yaml.load(file.read_bytes(), yaml.CSafeLoader)["spec"]
        for version in spec["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            # The API server itself knows an object's metadata; the definition only says that there is some.
            schema["properties"]["metadata"] = {"$ref": f"#/definitions/{METADATA}"}
            found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = Structure(schema, _core())
    return found


@cache
def _core() -> dict[str, Schema]:
    folder = modules.folder(modules.KUBERNETES, modules.versions(modules.KUBERNETES)[0])
    document: dict[str, Any] = json.loads((folder / "api" / "openapi-spec" / "swagger.json").read_bytes())
    definitions: dict[str, Schema] = document["definitions"]
    definitions[QUANTITY]["format"] = "quantity"
    for schema in definitions.values():
        if "properties" not in schema:
            schema[OPEN] = True  # such as FieldsV1: any object
        for inner in schema.get("properties", {}).values():
            if inner.get("type") == "object" and "properties" not in inner:
                inner[OPEN] = True
    return definitions

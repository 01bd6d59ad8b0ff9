"""What kustomize makes of a folder of manifests."""

from __future__ import annotations

import shutil
import subprocess
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from pipeline.errors import RuntimeFault
from pipeline.local import toolchain

Manifest = dict[str, Any]

ROOT: Final = Path(__file__).resolve().parents[2]
KUBERAY: Final = ROOT / "kuberay"
OVERLAYS: Final = tuple(sorted(str(path.parent.relative_to(KUBERAY)) for path in KUBERAY.rglob("kustomization.yaml")))
"""Every folder that somebody may apply by itself, the base included: an error there is an error in all."""

SCALED: Final = "../tests/kube/scaled"
"""The overlay of `python -m tests.kube --scaled`: the demo with the autoscaler of production."""

JOBS: Final = tuple(sorted(path.name for path in (KUBERAY / "jobs").glob("*.yaml")))
"""Files that are applied one by one."""

SOURCES: Final = ("main.go", "go.mod", "go.sum")
RENDER_TIMEOUT_S: Final = 60


def render(overlay: str) -> list[Manifest]:
    """The objects of an overlay, a copy that the caller may change. Raises RuntimeFault."""
    return deepcopy(_render(overlay))


def job(name: str) -> Manifest:
    """The one object of a file of JOBS."""
    (item,) = yaml.safe_load_all((KUBERAY / "jobs" / name).read_bytes())
    made: Manifest = item
    return made


def named(objects: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    """The one object of a kind, or the one with that name. Raises StopIteration when there is none."""
    return next(item for item in objects if item["kind"] == kind and (name is None or item["metadata"]["name"] == name))


def of_kind(objects: list[Manifest], kind: str) -> list[Manifest]:
    """All objects of a kind."""
    return [item for item in objects if item["kind"] == kind]


def title(item: Manifest) -> str:
    """How an object is called in a message."""
    return f"{item.get('kind', '?')}/{item.get('metadata', {}).get('name', '?')}"


@cache
def _render(overlay: str) -> list[Manifest]:
    done = subprocess.run(
        [*_kustomize(), str(KUBERAY / overlay)], capture_output=True, text=True, timeout=RENDER_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise RuntimeFault(f"{KUBERAY / overlay} cannot be rendered: {done.stderr.strip()}")
    return [item for item in yaml.safe_load_all(done.stdout) if item]


def _kustomize() -> list[str]:
    """A kubectl or kustomize on PATH, else one built once from its Go module."""
    if kubectl := shutil.which("kubectl"):
        return [kubectl, "kustomize"]
    if kustomize := shutil.which("kustomize"):
        return [kustomize, "build"]
    return [str(built_kustomize())]


def built_kustomize() -> Path:
    """Raises RuntimeFault."""
    return built("kustomize")


def built(name: str) -> Path:
    """The program that a folder beside this file makes, built once. Raises RuntimeFault."""
    contents = {file: (Path(__file__).with_name(name) / file).read_bytes() for file in SOURCES}
    return toolchain.program(name, contents, f"building {name} from its Go modules, once (about a minute)")

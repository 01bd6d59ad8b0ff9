"""Go modules that hold schemas: downloaded once into the cache, with the checksums of modules.sum."""

from __future__ import annotations

import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

from pipeline.errors import RuntimeFault
from pipeline.local import toolchain
from pipeline.local.cache import cache_dir, progress

PINS: Final = Path(__file__).with_name("modules.sum")
DOWNLOAD_TIMEOUT_S: Final = 300
REFUSED: Final = re.compile(r"\b(403|404|410)\b")
KUBERAY: Final = "github.com/ray-project/kuberay/ray-operator"
KUBERNETES: Final = "k8s.io/kubernetes"
PROMETHEUS_OPERATOR: Final = "github.com/prometheus-operator/prometheus-operator"


class ModuleRefused(RuntimeFault):
    """The module proxy does not serve this version."""


def versions(module: str) -> list[str]:
    """The versions of a module that are pinned, as in the file."""
    return [version for name, version, _ in _pins() if name == module]


@cache
def folder(module: str, version: str) -> Path:
    """Where the files of a pinned version are. Raises ModuleRefused, RuntimeFault."""
    pinned = next(checksum for name, number, checksum in _pins() if (name, number) == (module, version))
    argv = [toolchain.go(), "mod", "download", "-json", f"{module}@{version}"]
    # The checksum is compared below, so that no checksum database has to be within reach.
    env = toolchain.environment() | {"GOSUMDB": "off", "GOFLAGS": "-modcacherw"}
    with progress(f"{module} {version}"):
        done = subprocess.run(
            argv, cwd=cache_dir(), env=env, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False
        )
    answer = json.loads(done.stdout or "{}")
    if problem := answer.get("Error") or (done.returncode and done.stderr):
        raise (ModuleRefused if REFUSED.search(problem) else RuntimeFault)(problem.strip())
    if answer["Sum"] != pinned:
        raise RuntimeFault(f"{module} {version} has the checksum {answer['Sum']}, not {pinned}.")
    return Path(answer["Dir"])


@cache
def _pins() -> list[tuple[str, str, str]]:
    lines = PINS.read_text(encoding="ascii").splitlines()
    return [(name, version, checksum) for name, version, checksum in (line.split() for line in lines)]

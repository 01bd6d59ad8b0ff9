"""What a pod of ours must and must not have: Pod Security "restricted", secrets as files, bounds on what it takes.

The standard: https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from tests.manifests.pods import Pod
from tests.manifests.rendered import Manifest, title

VOLUMES: Final = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
HOST: Final = ("hostNetwork", "hostPID", "hostIPC")
PROFILES: Final = ("RuntimeDefault", "Localhost")
SECRET_WORDS: Final = re.compile(r"(?i)passw|secret|token|kek|private|credential|api_?key|sasl_password")
POINTERS: Final = re.compile(r"(_FILE|_PATH|_ENABLED|_MODE)$")
"""An environment variable of such a name says where a secret is, or whether there is one."""

HEX_KEY: Final = re.compile(r"(?<!sha256:)(?<![0-9a-fA-F])(0x)?[0-9a-fA-F]{64}(?![0-9a-fA-F])")
PASSWORD_IN_URL: Final = re.compile(r"://[^/\s:@]+:[^/\s@]+@")
PASSWORD_IN_DSN: Final = re.compile(r"(?i)\bpassword\s*=\s*[^\s$\"'</]")


def restricted(pod: Pod) -> list[str]:
    """What the standard forbids of this pod."""
    return [f"{pod.name}: {problem}" for problem in (*_pod(pod.spec), *(_each(pod)))]


def _pod(spec: dict[str, Any]) -> Iterator[str]:
    yield from (name for name in HOST if spec.get(name))
    for volume in spec.get("volumes", []):
        kinds = set(volume) - {"name"}
        if not kinds <= VOLUMES:
            yield f"volume {volume['name']} is a {', '.join(kinds)}"


def _each(pod: Pod) -> Iterator[str]:
    of_pod = pod.spec.get("securityContext", {})
    for container in pod.containers:
        own = container.get("securityContext", {})
        both = of_pod | own
        name = container["name"]
        if own.get("privileged") or own.get("allowPrivilegeEscalation") is not False:
            yield f"{name} may gain privileges (allowPrivilegeEscalation)"
        capabilities = own.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
            yield f"{name} keeps capabilities"
        if both.get("runAsNonRoot") is not True or both.get("runAsUser", 1) == 0:
            yield f"{name} may run as root"
        if both.get("seccompProfile", {}).get("type") not in PROFILES:
            yield f"{name} has no seccomp profile"
        yield from (
            f"{name} has host port {port['hostPort']}" for port in container.get("ports", []) if "hostPort" in port
        )


def writable(pod: Pod) -> list[str]:
    """Containers that could change the image they run."""
    return [
        f"{pod.name}: {container['name']} has a root file system that it may write"
        for container in pod.containers
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True
    ]


def unbounded(pod: Pod, *, guaranteed: bool) -> list[str]:
    """Containers without requests and a limit of memory; `guaranteed` asks for requests equal to limits."""
    found = []
    for container in pod.containers:
        resources = container.get("resources", {})
        requests, limits = resources.get("requests", {}), resources.get("limits", {})
        if not {"cpu", "memory"} <= set(requests) or "memory" not in limits:
            found.append(f"{pod.name}: {container['name']} states not what it needs and may take")
        elif guaranteed and requests != limits:
            found.append(f"{pod.name}: {container['name']} requests {requests} and may take {limits}")
    return found


def account_tokens(pod: Pod) -> list[str]:
    """Whether every container of a pod could talk to the API server."""
    if pod.spec.get("automountServiceAccountToken") is False:
        return []
    return [f"{pod.name}: a token of the API server is mounted"]


def told(item: Manifest) -> list[str]:
    """Secrets where many can read them: in ConfigMaps, environment values, labels, annotations and arguments."""
    return [f"{title(item)}: {problem}" for problem in _told(item, "") if item["kind"] != "Secret"]


def _told(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        if {"name", "value"} <= set(value) and _names_a_secret(str(value["name"])):
            yield f"{path}: {value['name']} is given as a value"
        for name, inner in value.items():
            yield from _told(inner, f"{path}.{name}")
            if path.endswith(PLAIN) and isinstance(inner, str) and _names_a_secret(name):
                yield f"{path}: {name} is given as a value"
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _told(inner, f"{path}[{index}]")
    elif isinstance(value, str):
        yield from (f"{path}: {what}" for what, form in FORMS.items() if form.search(value))


PLAIN: Final = (".data", ".labels", ".annotations")
FORMS: Final = {
    "looks like a private key or KEK": HEX_KEY,
    "has a password in a URL": PASSWORD_IN_URL,
    "has a password in a DSN": PASSWORD_IN_DSN,
}


def _names_a_secret(name: str) -> bool:
    return bool(SECRET_WORDS.search(name)) and not POINTERS.search(name)

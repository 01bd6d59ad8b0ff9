"""What all Kafka clients of the pipeline share: configuration, topic names, errors, and the thread they block in.

librdkafka's calls block, so each client lives in one thread of its own and is awaited from the event loop. A thread
per client also keeps the order of calls: librdkafka forbids two transactional calls at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message

from pipeline.adapters.secret_file import secret_of
from pipeline.errors import BusUnavailable, ProducerFenced
from pipeline.settings import KafkaSettings
from pipeline.stream import Stream

T = TypeVar("T")

CALL_TIMEOUT_S: Final = 15.0
"""Given to one blocking call: a broker restart is ridden out, a dead broker is reported."""

CALL_LIMIT_S: Final = 45.0
"""After this long a call is given up, whatever time-out it was given."""

CONNECT_TIMEOUT_S: Final = 5.0
"""For a connection, its TLS and SASL included. On a cluster the first packet may go to a pod that has just ended; all
its repeats go there too, and librdkafka would wait for 30 s."""

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
        "socket.connection.setup.timeout.ms": int(CONNECT_TIMEOUT_S * 1000),
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
        "sasl.password": secret_of(settings.sasl_password_file, "the SASL password"),
        "ssl.ca.location": str(settings.ca_file or ""),
        "ssl.certificate.location": str(settings.cert_file or ""),
        "ssl.key.location": str(settings.key_file or ""),
    }
    return config | {name: value for name, value in optional.items() if value}


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
        hint="Two pipelines run on one deployment (stop one, or set ONCESIGN_DEPLOYMENT), or this process stood still "
        "for longer than ONCESIGN_KAFKA__TRANSACTION_TIMEOUT_S.",
    )


def take(consumer: Consumer, most: int, timeout_s: float) -> list[Message]:
    """Up to `most` messages, as soon as there is one; `Consumer.consume` alone would wait for all of them."""
    first = consumer.poll(timeout_s)
    return [] if first is None else [first, *consumer.consume(most - 1, 0)]


class BrokerWatch:
    """Whether a client has lost a broker since it was made.

    Such a client may go on asking the coordinator that it knew (https://github.com/confluentinc/librdkafka/issues/5511),
    where a new one finds the present one at once. `lost` is up to date after a poll of the client.
    """

    def __init__(self) -> None:
        self.lost = False

    def config(self) -> dict[str, Any]:
        """To be added to the client's configuration."""
        return {"error_cb": self._on_error}

    def _on_error(self, error: KafkaError) -> None:
        if error.code() in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN):  # noqa: SLF001 - public codes, odd names
            self.lost = True


class ClientThread:
    """The one thread in which a blocking client is used.

    librdkafka has calls that overrun their own time-out, some for ever (send_offsets_to_transaction when the
    coordinator died: https://github.com/confluentinc/librdkafka/issues/5456). Such a call is left behind with its
    thread and the next one gets a new thread; whatever the lost call still returns is dropped. So a function that is
    called here must not change what a later call relies on, once it has been given up.
    """

    def __init__(self, name: str, address: str) -> None:
        self._name = name
        self._address = address
        self._calls: SimpleQueue[_Call | None] | None = None

    async def call(self, function: Callable[..., T], *args: Any, within_s: float = CALL_LIMIT_S) -> T:
        """Run it there and wait. A cancelled wait does not stop the call; the next one queues behind it.

        Raises what the function raises, and BusUnavailable when there is no answer in `within_s`.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self._queue().put(_Call(loop, answer, partial(contextvars.copy_context().run, function, *args)))
        try:
            return await asyncio.wait_for(answer, within_s)
        except TimeoutError as error:
            self.end()
            problem = f"Kafka's client gave no answer to {function.__name__.strip('_')} in {within_s:.0f} s"
            raise BusUnavailable(problem, address=self._address) from error

    def end(self) -> None:
        """End the thread after the calls that it has; another call would start another."""
        calls, self._calls = self._calls, None
        if calls is not None:
            calls.put(None)

    def _queue(self) -> SimpleQueue[_Call | None]:
        if self._calls is None:
            self._calls = SimpleQueue()
            # A daemon: a lost call must not keep the process from ending.
            threading.Thread(target=_serve, args=(self._calls,), name=self._name, daemon=True).start()
        return self._calls


@dataclass(frozen=True, slots=True)
class _Call:
    """A function to run in the thread, and where its answer is awaited."""

    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Any]
    function: Callable[[], Any]

    def run(self) -> None:
        try:
            settle = partial(self.answer.set_result, self.function())
        except BaseException as error:  # noqa: BLE001 - it is raised where the answer is awaited
            settle = partial(self.answer.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self._settle, settle)

    def _settle(self, settle: Callable[[], None]) -> None:
        if not self.answer.done():
            settle()


def _serve(calls: SimpleQueue[_Call | None]) -> None:
    while (call := calls.get()) is not None:
        call.run()

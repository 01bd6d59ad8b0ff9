"""Where stages meet adapters: the only place that turns settings into clients.

Each function opens what a stage needs and closes it again, so that an actor is a name, a status and one of these.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from pydantic import SecretStr

from pipeline import journal, tracing
from pipeline.adapters.batch_log import KafkaBatchLog
from pipeline.adapters.batch_subscription import KafkaBatchSubscription
from pipeline.adapters.blobs import BlobDirectory
from pipeline.adapters.broadcasts import PostgresBroadcasts
from pipeline.adapters.etcd import EtcdStore
from pipeline.adapters.kafka import Topics
from pipeline.adapters.ledger import PostgresLedger
from pipeline.adapters.node import RpcNode
from pipeline.adapters.outcomes import PostgresOutcomes
from pipeline.adapters.policies import PostgresPolicies, policy_of, policy_text
from pipeline.adapters.postgres_source import PostgresSource, driver
from pipeline.adapters.round_writer import KafkaRoundWriter
from pipeline.adapters.secret_file import secret_of
from pipeline.adapters.stream_writer import KafkaStreamWriter
from pipeline.adapters.topics import TopicAdmin
from pipeline.assignment.budget import Budget
from pipeline.assignment.manager import KeyManager
from pipeline.clock import SystemClock
from pipeline.custody.kek_ring import KekRing
from pipeline.errors import SecretFileError, SettingError
from pipeline.ethereum.policy import Policy
from pipeline.ports import Assigner, Signers
from pipeline.service.desk import Leading
from pipeline.service.server import Server
from pipeline.settings import ENV_PREFIX, Settings, SourceSettings
from pipeline.stages import preparation
from pipeline.stages.admission import Admission
from pipeline.stages.broadcaster import Broadcaster, BroadcasterPorts
from pipeline.stages.consumer import BatchConsumer, ConsumerPorts, Worker
from pipeline.stages.publication import Outlets
from pipeline.stages.reader import BatchReader, Streams
from pipeline.stages.recovery import Recovery, RecoveryPorts
from pipeline.stages.remains import Remains, RemainsPorts
from pipeline.stages.signer import NativeKernel, Signer
from pipeline.stages.sweeper import Desk, Sweeper, SweeperPorts
from pipeline.stages.verifier import Verifier, VerifierPorts
from pipeline.stream import Stream
from pipeline.telemetry import SILENT, Telemetry

CLOCK: Final = SystemClock()


def start_logging() -> None:
    """Logs of an actor go to its stderr, which Ray keeps per process and shows in the dashboard; spans if configured.

    Raises UsageError.
    """
    journal.start()
    tracing.start()


def here(settings: Settings) -> Settings:
    """Settings that a job made elsewhere, with the name of this node."""
    node = os.environ.get(ENV_PREFIX + "NODE") or socket.gethostname()
    return settings.model_copy(update={"node": node})


def warm_source() -> None:
    """Load what the first rows would wait for."""
    driver()


def signer_count(settings: Settings) -> int:
    """How many signers the settings ask for."""
    return settings.pool.signers or len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class ReaderPlace:
    """Which streams one reader actor reads."""

    name: str
    source: SourceSettings
    shards: list[int]


def reader_places(settings: Settings) -> list[ReaderPlace]:
    """The shards of every source, dealt out over `pool.readers` actors for each."""
    places = []
    for source in settings.sources:
        actors = min(settings.pool.readers, source.shards)
        for index in range(actors):
            name = f"reader-{source.name}-{index}"
            places.append(ReaderPlace(name, source, list(range(index, source.shards, actors))))
    return places


@asynccontextmanager
async def topics(settings: Settings) -> AsyncIterator[TopicAdmin]:
    """The admin client of the deployment's topics."""
    admin = TopicAdmin(settings.kafka)
    try:
        yield admin
    finally:
        await admin.close()


async def prepare(settings: Settings, streams: preparation.StreamList, admin: TopicAdmin) -> None:
    """Topics, stream records and first offsets. Raises what stages.preparation.prepare raises."""
    async with AsyncExitStack() as stack:
        tables = {source.name: await _source(stack, settings, source) for source in settings.sources}
        await preparation.prepare(settings.deployment, settings.sources, tables, streams, admin)


@asynccontextmanager
async def readers(
    settings: Settings, source: SourceSettings, shards: list[int], streams: Streams, telemetry: Telemetry = SILENT
) -> AsyncIterator[list[BatchReader]]:
    """A reader per shard."""
    # A part-full batch costs as much as a full one: the streams of a process share its pace.
    paced = settings.reader.model_copy(update={"linger_s": settings.reader.linger_s * len(shards)})
    async with AsyncExitStack() as stack:
        table = await _source(stack, settings, source)
        policy = await current_policy(settings, source)
        made = []
        for shard in shards:
            stream = Stream(source.name, shard)
            writer = KafkaStreamWriter(settings.kafka, settings.deployment, stream, source.shards)
            stack.push_async_callback(writer.close)
            reader = partial(BatchReader, stream, source.chain_id, table, writer, streams, CLOCK, paced)
            made.append(reader(policy=policy, telemetry=telemetry))
        yield made


async def current_policy(settings: Settings, source: SourceSettings) -> Policy | None:
    """The version that this source's batches are judged by from here on. Raises InputFileError, DatabaseUnavailable."""
    if source.policy_file is None:
        return None
    text = policy_text(source.policy_file)
    policies = PostgresPolicies(settings.postgres)
    try:
        return await policies.version(source.name, text)
    finally:
        await policies.close()


def budgets(settings: Settings) -> dict[str, Budget]:
    """Of the sources whose policy has one. Raises InputFileError."""
    files = {source.name: source.policy_file for source in settings.sources if source.policy_file is not None}
    policies = {name: policy_of(file) for name, file in files.items()}
    bounds = {name: (policy.budget, policy.period_s) for name, policy in policies.items()}
    return {name: Budget(wei, seconds * 1000) for name, (wei, seconds) in bounds.items() if wei is not None and seconds}


@asynccontextmanager
async def consumer(
    settings: Settings,
    slot: int,
    worker: Worker,
    assigner: Assigner,
    signers: Signers,
    telemetry: Telemetry = SILENT,
) -> AsyncIterator[BatchConsumer]:
    """The consumer of a slot."""
    names = Topics(settings.kafka.topic_prefix)
    source_of_topic = {names.batches(source.name): source.name for source in settings.sources}
    chain_ids = {source.name: source.chain_id for source in settings.sources}
    async with AsyncExitStack() as stack:
        subscription = KafkaBatchSubscription(settings.kafka, settings.deployment, list(source_of_topic))
        stack.push_async_callback(subscription.close)
        writer = KafkaRoundWriter(settings.kafka, f"{settings.deployment}-consumer-{slot}")
        stack.push_async_callback(writer.close)
        log = _log(stack, settings)
        ports = ConsumerPorts(subscription, writer, assigner, signers, log, CLOCK, telemetry)
        yield BatchConsumer(worker, ports, Admission(chain_ids, source_of_topic), outlets(settings), settings.pool)


@asynccontextmanager
async def sweeper(settings: Settings, worker: Worker, desk: Desk, signers: Signers) -> AsyncIterator[Sweeper]:
    """The deployment's sweeper."""
    names = Topics(settings.kafka.topic_prefix)
    async with AsyncExitStack() as stack:
        writer = KafkaRoundWriter(settings.kafka, f"{settings.deployment}-sweeper")
        stack.push_async_callback(writer.close)
        tables = {source.name: await _source(stack, settings, source) for source in settings.sources}
        batch_topics = {source.name: names.batches(source.name) for source in settings.sources}
        policies = PostgresPolicies(settings.postgres)
        stack.push_async_callback(policies.close)
        ports = SweeperPorts(desk, signers, _log(stack, settings), writer, tables, policies, batch_topics, CLOCK)
        yield Sweeper(worker, ports, outlets(settings))


async def signer(settings: Settings, worker: str) -> Signer:
    """A signer, its kernel compiled and its key-encryption key read. Lives as long as its process."""
    keks = await asyncio.to_thread(KekRing, settings.kek_path)
    kernel = NativeKernel()
    await kernel.warm()
    ledger = PostgresLedger(settings.postgres)
    await ledger.enlist()
    return Signer(worker, ledger, keks, kernel, CLOCK, settings.signing)


async def key_manager(settings: Settings, fence_lost: Callable[[], None]) -> KeyManager:
    """A key manager that leads. Raises NotLeader, DeploymentHalted, DependencyDown."""
    store = EtcdStore(settings.etcd)
    ledger = PostgresLedger(settings.postgres)
    manager = KeyManager(store, ledger, CLOCK, settings, fence_lost, budgets(settings))
    await manager.start()
    return manager


async def service(settings: Settings, leading: Leading) -> Server | None:
    """The key manager's HTTP service, if there is a port for it. Raises SecretFileError, SettingError, RuntimeFault."""
    if not settings.service.port:
        return None
    server = Server(leading, settings)
    await server.start()
    return server


@asynccontextmanager
async def recovery(settings: Settings) -> AsyncIterator[Recovery]:
    """A recovery with a connection of its own to everything."""
    names, kafka = Topics(settings.kafka.topic_prefix), settings.kafka
    async with AsyncExitStack() as stack:
        store, ledger = EtcdStore(settings.etcd), PostgresLedger(settings.postgres)
        outcomes = PostgresOutcomes(settings.postgres)
        for client in (store, ledger, outcomes):
            stack.push_async_callback(client.close)
        ids = [*(f"consumer-{slot}" for slot in range(settings.pool.consumers)), "sweeper"]
        rounds = [KafkaRoundWriter(kafka, f"{settings.deployment}-{name}") for name in ids]
        streams = {
            Stream(source.name, shard): KafkaStreamWriter(
                kafka, settings.deployment, Stream(source.name, shard), source.shards
            )
            for source in settings.sources
            for shard in range(source.shards)
        }
        for closes in [*(writer.close for writer in rounds), *(writer.close for writer in streams.values())]:
            stack.push_async_callback(closes)
        tables = {source.name: await _source(stack, settings, source) for source in settings.sources}
        chain_ids = {source.name: source.chain_id for source in settings.sources}
        admission = Admission(chain_ids, {names.batches(source.name): source.name for source in settings.sources})
        found = RemainsPorts(ledger, _log(stack, settings), outcomes, tables, streams)
        remains = Remains(found, settings.sources, admission, outlets(settings), settings.node)
        ports = RecoveryPorts(store, found, rounds, CLOCK)
        yield Recovery(settings.deployment, settings.node, ports, remains, settings.etcd, names.signed)


@asynccontextmanager
async def verifier(settings: Settings, telemetry: Telemetry = SILENT) -> AsyncIterator[Verifier]:
    """The verifier with its log, tables, ledger and outcomes."""
    names = Topics(settings.kafka.topic_prefix)
    async with AsyncExitStack() as stack:
        tables = {source.name: await _source(stack, settings, source) for source in settings.sources}
        ledger = PostgresLedger(settings.postgres)
        stack.push_async_callback(ledger.close)
        outcomes = PostgresOutcomes(settings.postgres)
        stack.push_async_callback(outcomes.close)
        policies = PostgresPolicies(settings.postgres)
        stack.push_async_callback(policies.close)
        ports = VerifierPorts(_log(stack, settings), tables, ledger, outcomes, policies, CLOCK, telemetry)
        yield Verifier(ports, settings.sources, (names.signed, names.rejected))


def rpc_url(settings: Settings) -> SecretStr:
    """Of the node that ONCESIGN_BROADCAST__RPC_FILE names. Raises SecretFileError."""
    file = settings.broadcast.rpc_file
    if file is None:
        raise SecretFileError("there is no file with a node's URL.", hint="Name one in ONCESIGN_BROADCAST__RPC_FILE.")
    return SecretStr(secret_of(file, "the URL of an Ethereum node"))


def node(settings: Settings, url: SecretStr) -> RpcNode:
    """The node of a URL; of an empty one, that of the settings. Raises SettingError, SecretFileError."""
    return RpcNode(url if url.get_secret_value() else rpc_url(settings), settings.broadcast.timeout_s)


@asynccontextmanager
async def broadcaster(settings: Settings, url: SecretStr) -> AsyncIterator[Broadcaster]:
    """For the chain of that node. Raises SettingError for a chain of no source, NodeUnavailable."""
    async with AsyncExitStack() as stack:
        client = node(settings, url)
        stack.push_async_callback(client.close)
        chain_id = await client.chain_id()
        if chain_id not in {source.chain_id for source in settings.sources}:
            known = ", ".join(f"{source.name} has chain {source.chain_id}" for source in settings.sources)
            raise SettingError("--rpc", f"is a node of chain {chain_id}", hint=f"Source {known}.")
        broadcasts = PostgresBroadcasts(settings.postgres)
        stack.push_async_callback(broadcasts.close)
        blobs = BlobDirectory(settings.broadcast.blobs_dir)
        ports = BroadcasterPorts(client, blobs, _log(stack, settings), broadcasts, CLOCK)
        yield Broadcaster(ports, chain_id, settings.broadcast)


async def total(settings: Settings) -> int:
    """Committed rows of all sources. Raises DatabaseUnavailable."""
    async with AsyncExitStack() as stack:
        tables = [await _source(stack, settings, source) for source in settings.sources]
        return sum([await table.count() for table in tables])


def outlets(settings: Settings) -> Outlets:
    """Where signed and rejected go."""
    names = Topics(settings.kafka.topic_prefix)
    return Outlets(names.signed, names.rejected, settings.kafka.signed_partitions)


async def _source(stack: AsyncExitStack, settings: Settings, source: SourceSettings) -> PostgresSource:
    table = PostgresSource(settings.postgres, source)
    stack.push_async_callback(table.close)
    await table.check()
    return table


def _log(stack: AsyncExitStack, settings: Settings) -> KafkaBatchLog:
    log = KafkaBatchLog(settings.kafka, settings.deployment)
    stack.push_async_callback(log.close)
    return log

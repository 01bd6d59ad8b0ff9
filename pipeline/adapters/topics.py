"""The topics of a deployment: made once, checked at every start, never silently made again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from pipeline.adapters.kafka import CALL_TIMEOUT_S, ClientThread, Topics, client_config, consumer_group, unavailable
from pipeline.adapters.offsets import Committed, GroupOffsets, progress_of
from pipeline.effects import effect
from pipeline.errors import BusUnavailable, DeploymentHalted, SettingError
from pipeline.ports import Progress
from pipeline.settings import KafkaSettings, SourceSettings

CONSUMER_SESSION_S: Final = 6
"""How long a silent consumer keeps its partitions (Kafka group config consumer.session.timeout.ms, KIP-848)."""

CONSUMER_HEARTBEAT_S: Final = 2

LOOK_AGAIN_S: Final = 0.02
DURABLE_REPLICATION: Final = 3
"""From this replication factor on, a write needs two replicas (min.insync.replicas)."""


BATCHES_KEPT_BYTES: Final = 512 * 1024 * 1024
"""Per partition of a topic of batches, more than may wait there. Never by age: of a stream that was idle for a week
that takes the marker of the last transaction, and with it the offset that the consumers go on from."""


class TopicAdmin:
    """Makes and checks topics and the consumer group's session timeout."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._topics = Topics(settings.topic_prefix)
        self._admin = AdminClient(client_config(settings))
        self._offsets = GroupOffsets(settings)
        self._thread = ClientThread("kafka-topics", settings.bootstrap_servers)

    async def prepare(self, deployment: str, sources: Sequence[SourceSettings], used: frozenset[str]) -> None:
        """Make what is missing; refuse what does not fit.

        Args:
            deployment: names the consumer group.
            sources: each has one topic of batches with a partition per shard.
            used: sources that have assignments already; their topics must be there.

        Raises DeploymentHalted when a topic in use is gone, SettingError when a topic has another number of
        partitions, BusUnavailable.
        """
        await self._thread.call(self._prepare, deployment, sources, used)

    async def require(self, used: frozenset[str]) -> None:
        """Raises DeploymentHalted when a topic of these sources, or tx.signed, is gone; BusUnavailable."""
        self._require(await self._thread.call(self._present), used)

    async def remake(self, source: SourceSettings) -> None:
        """Make the topic of a source's batches again, if it is gone. Raises DeploymentHalted without a tx.signed."""
        present = await self._thread.call(self._present)
        self._require(present, frozenset(), signed=True)
        topic = self._topics.batches(source.name)
        if topic not in present:
            await self._thread.call(self._create, topic, source.shards)

    async def end(self, source: SourceSettings, shard: int) -> int:
        """Where the partition of a shard ends. Raises BusUnavailable."""
        return (await self._offsets.ends(self._topics.batches(source.name), committed=False))[shard]

    async def names(self) -> list[str]:
        """All topics that the broker shows us. Raises BusUnavailable."""
        return sorted(await self._thread.call(self._present))

    async def progress(self, deployment: str, source: SourceSettings) -> Mapping[int, Progress]:
        """Per shard how far the consumers have come. Raises BusUnavailable."""
        topic = self._topics.batches(source.name)
        found = await self._offsets.committed(consumer_group(deployment), topic, source.shards)
        return {shard: progress_of(at) for shard, at in found.items()}

    async def begin(self, deployment: str, source: SourceSettings, shards: Sequence[int]) -> None:
        """Set the first offset of these shards: the start of the log, before batch 1. Raises BusUnavailable."""
        topic = self._topics.batches(source.name)
        starts = await self._offsets.starts(topic)
        offsets = {shard: Committed(starts[shard], "0") for shard in shards}
        await self._offsets.commit(consumer_group(deployment), topic, offsets)

    async def close(self) -> None:
        """Let the clients go."""
        self._thread.end()
        await self._offsets.close()

    def _prepare(self, deployment: str, sources: Sequence[SourceSettings], used: frozenset[str]) -> None:
        wanted = {self._topics.batches(source.name): source.shards for source in sources}
        wanted |= {self._topics.signed: self._settings.signed_partitions, self._topics.rejected: 1}
        present = self._present()
        self._require(present, used)
        for topic, partitions in wanted.items():
            if topic not in present:
                self._create(topic, partitions)
            elif present[topic] != partitions:
                raise SettingError(
                    "ONCESIGN_SOURCES"
                    if topic in {self._topics.batches(s.name) for s in sources}
                    else "ONCESIGN_KAFKA__SIGNED_PARTITIONS",
                    f"topic {topic} has {present[topic]} partitions, the settings say {partitions}",
                    hint="The count is fixed when a topic is made; set it to what the topic has.",
                )
        self._set_session(consumer_group(deployment))

    def _require(self, present: Mapping[str, int], used: frozenset[str], *, signed: bool = False) -> None:
        in_use = {self._topics.batches(name) for name in used} | ({self._topics.signed} if used or signed else set())
        for topic in sorted(in_use - present.keys()):
            raise DeploymentHalted(
                f"topic {topic} is gone, but batches were assigned.",
                hint="Nothing was signed. See docs/operations.md, 'A deleted topic'.",
            )

    def _present(self) -> dict[str, int]:
        try:
            with effect("kafka", "Metadata"):
                metadata = self._admin.list_topics(timeout=CALL_TIMEOUT_S)
        except KafkaException as error:
            raise unavailable(self._settings, error) from error
        return {name: len(topic.partitions) for name, topic in metadata.topics.items()}

    def _create(self, topic: str, partitions: int) -> None:
        replication = self._settings.replication_factor
        config: dict[str, Any] = {
            "cleanup.policy": "delete",
            "max.message.bytes": str(self._settings.message_max_bytes),
            "min.insync.replicas": "2" if replication >= DURABLE_REPLICATION else "1",
            "message.timestamp.type": "CreateTime",
        }
        if topic.startswith(self._topics.batches("")):
            config |= {"retention.ms": "-1", "retention.bytes": str(BATCHES_KEPT_BYTES)}
        new = NewTopic(topic, num_partitions=partitions, replication_factor=replication, config=config)
        try:
            with effect("kafka", "CreateTopics"):
                self._admin.create_topics([new], operation_timeout=CALL_TIMEOUT_S)[topic].result(CALL_TIMEOUT_S)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise unavailable(self._settings, error) from error
        self._await_presence(topic)

    def _await_presence(self, topic: str) -> None:
        """A broker's own view follows the controller's after some milliseconds; until then it knows no such topic."""
        deadline_s = time.monotonic() + CALL_TIMEOUT_S
        while topic not in self._present():
            if time.monotonic() > deadline_s:
                raise BusUnavailable(f"{topic} was made and is not there", address=self._settings.bootstrap_servers)
            time.sleep(LOOK_AGAIN_S)

    def _set_session(self, group: str) -> None:
        entries = {
            "consumer.session.timeout.ms": CONSUMER_SESSION_S * 1000,
            "consumer.heartbeat.interval.ms": CONSUMER_HEARTBEAT_S * 1000,
        }
        resource = ConfigResource(
            ResourceType.GROUP,
            group,
            incremental_configs=[
                ConfigEntry(name, str(value), incremental_operation=AlterConfigOpType.SET)
                for name, value in entries.items()
            ],
        )
        # A broker may bound or forbid group configs; then its own session timeout holds, and a dead consumer's
        # partitions move later. That is slower, not wrong.
        with contextlib.suppress(KafkaException), effect("kafka", "IncrementalAlterConfigs"):
            self._admin.incremental_alter_configs([resource])[resource].result(CALL_TIMEOUT_S)

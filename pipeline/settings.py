"""Everything an operator can set: prefix ONCESIGN_, `__` between levels, secrets by file only.

Constants that nobody should turn live beside the code that uses them.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipeline.errors import SettingError
from pipeline.ethereum.rules import CHAIN_ID_MAX
from pipeline.stream import SOURCE_NAME

ENV_PREFIX: Final = "ONCESIGN_"
RECORD_MARGIN_BYTES: Final = 64 * 1024
"""What a Kafka record takes beside the rows of its batch: schema, metadata, padding."""


class Section(BaseModel):
    """A group of settings; a misspelt name is refused instead of ignored."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class EtcdSettings(Section):
    """etcd, by its JSON gateway (grpc-gateway, on the client port)."""

    endpoints: str = Field("", description="comma-separated http(s)://host:port; empty = the embedded etcd")
    username: str = ""
    password_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    timeout_s: float = Field(2.0, gt=0, description="for one try against one endpoint")
    lease_ttl_s: int = Field(6, ge=2, description="how long a dead leader is waited for")
    keep_alive_s: float = Field(1.0, gt=0)

    @field_validator("endpoints")
    @classmethod
    def _endpoints_are_urls(cls, endpoints: str) -> str:
        if not all(_is_url(endpoint.strip()) for endpoint in (endpoints.split(",") if endpoints else [])):
            raise ValueError("each should be http://host:port or https://host:port")
        return endpoints

    @model_validator(mode="after")
    def _lease_outlives_retries(self) -> Self:
        if self.keep_alive_s + 2 * self.timeout_s > self.lease_ttl_s:
            raise ValueError(
                "keep_alive_s + 2 * timeout_s must not exceed lease_ttl_s, or a slow etcd loses the leader"
            )
        return self


def _is_url(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none
        return False


class PostgresSettings(Section):
    """Postgres. What is not in the DSN is taken from libpq's own variables (PGUSER, PGSSLMODE …)."""

    dsn: SecretStr = Field(SecretStr(""), description="libpq DSN or URL without password; empty = the embedded one")
    password_file: Path | None = None
    connect_timeout_s: int = Field(5, ge=1)


class KafkaSettings(Section):
    """Kafka."""

    bootstrap_servers: str = Field("", description="host:port,…; empty = the embedded broker")
    topic_prefix: str = Field("tx", pattern=r"^[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,99}$")
    replication_factor: int = Field(1, ge=1, description="of topics that oncesign creates")
    signed_partitions: int = Field(8, ge=1, description="of tx.signed and tx.rejected, when they are created")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: str = ""
    sasl_username: str = ""
    sasl_password_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    message_max_bytes: int = Field(4 * 1024 * 1024, ge=320 * 1024, description="as set on the topics")
    socket_timeout_s: float = Field(4.0, ge=3.0, le=5.0)
    transaction_timeout_s: float = Field(12.0, ge=10.0, le=15.0)


class SourceSettings(Section):
    """A table or view of unsigned transactions for one chain id."""

    name: str = "payouts"
    table: str = "transactions"
    chain_id: int = Field(1, ge=1, le=CHAIN_ID_MAX, description="v must fit 64 bits (EIP-2294)")
    shards: int = Field(8, ge=1, le=64, description="fixed when the source is made: shard = id % shards")
    policy_file: Path | None = Field(None, description="TOML: which rows may be signed; see docs/custody.md")

    @model_validator(mode="after")
    def _name_fits_everywhere(self) -> Self:
        if not SOURCE_NAME.fullmatch(self.name):
            raise ValueError("name: lower-case letters, digits, - and _, at most 48, starting with a letter")
        return self


class ReaderSettings(Section):
    """Batch reader."""

    batch_rows_max: int = Field(1_000, ge=1, le=10_000)
    batch_bytes_max: int = Field(1024 * 1024, ge=256 * 1024, description="of the rows' data and access lists")
    linger_s: float = Field(
        0.03, ge=0, description="least time between two part-full batches of a reader, over all its streams"
    )
    poll_max_s: float = Field(
        0.25, gt=0, description="longest wait between two looks at an idle stream; 2 s after 10 s without a row"
    )
    lag_records_max: int = Field(64, ge=1, description="batches of a stream that may wait in Kafka")


class PoolSettings(Section):
    """How many actors, and how much each may hold."""

    readers: int = Field(1, ge=1)
    consumers: int = Field(1, ge=1)
    signers: int = Field(0, ge=0, description="0 = one per core")
    signers_max: int = Field(0, ge=0, description="with `placed`: as many while batches wait; 0 = always `signers`")
    placed: bool = Field(
        default=False,
        description="on a cluster with node groups that offer the Ray resources key_manager, signers and io: put each "
        "actor into its group, detached from the job",
    )
    batches_per_signer: int = Field(2, ge=1, description="given to one signer at once, so that it never waits")
    buffered_batches_max: int = Field(16, ge=1, description="per partition in a consumer")
    round_bytes_max: int = Field(16 * 1024 * 1024, ge=1024 * 1024, description="published in one Kafka transaction")

    @model_validator(mode="after")
    def _placed_signers_are_counted(self) -> Self:
        if self.placed and not self.signers:
            raise ValueError("placed needs a number of signers: the cores of one node say nothing of a cluster's")
        return self


class SigningSettings(Section):
    """What a signer checks of its own work."""

    check_rows: int = Field(4, ge=0, description="rows of each batch recovered beside the first and the last; 0 = none")
    check_all: bool = False


class ServiceSettings(Section):
    """The key manager over HTTP; see docs/key-manager.md."""

    host: str = Field("0.0.0.0", description="address to listen on")  # noqa: S104 - every request needs the token
    port: int = Field(0, ge=0, le=65535, description="0 = no service")
    token_file: Path | None = Field(None, description="the bearer token, at least 16 characters")
    body_max_bytes: int = Field(1024 * 1024, ge=4 * 1024, le=16 * 1024 * 1024, description="of one request")

    @model_validator(mode="after")
    def _port_has_a_token(self) -> Self:
        if self.port and self.token_file is None:
            raise ValueError("a port needs a token_file")
        return self


class BroadcastSettings(Section):
    """Sending what was signed to an Ethereum node; see docs/broadcast.md."""

    rpc_file: Path | None = Field(
        None, description="the URL of a node's JSON-RPC, alone in a file: it often holds a key; none = nothing is sent"
    )
    blobs_dir: Path | None = Field(
        None, description="of transactions with blobs (type 3): a file VERSIONED_HASH.json each; see docs/broadcast.md"
    )
    in_flight_per_sender: int = Field(
        16, ge=1, le=64, description="sent and not mined; go-ethereum promises a sender 16 places in its pool"
    )
    in_flight_max: int = Field(4096, ge=1, description="of all senders; go-ethereum's pool has 5,120 places")
    confirmations: int = Field(
        12, ge=0, le=64, description="blocks on top of a transaction's before it counts as mined, and is forgotten"
    )
    resend_after_s: float = Field(15.0, gt=0, description="without being mined; what the node still has is not doubled")
    timeout_s: float = Field(10.0, gt=0, description="for one request to the node")

    @model_validator(mode="after")
    def _one_sender_fits(self) -> Self:
        if self.in_flight_per_sender > self.in_flight_max:
            raise ValueError("in_flight_per_sender must not exceed in_flight_max")
        return self


class Settings(BaseSettings):
    """All settings, from ONCESIGN_ variables and defaults."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,  # an empty variable is how a shell or a manifest leaves one out
        extra="forbid",
        hide_input_in_errors=True,
    )

    deployment: str = Field("local", pattern=r"^[a-z][a-z0-9-]{0,30}$")
    data_dir: Path = Path(".oncesign")
    kek_file: Path | None = Field(None, description="32 bytes, or 64 hex digits; default: DATA_DIR/kek, made once")
    node: str = Field(default_factory=socket.gethostname)
    etcd: EtcdSettings = EtcdSettings()
    postgres: PostgresSettings = PostgresSettings()
    kafka: KafkaSettings = KafkaSettings()
    sources: list[SourceSettings] = Field([SourceSettings()], min_length=1)
    reader: ReaderSettings = Field(ReaderSettings(), validate_default=True)
    pool: PoolSettings = PoolSettings()
    signing: SigningSettings = SigningSettings()
    service: ServiceSettings = ServiceSettings()
    broadcast: BroadcastSettings = BroadcastSettings()

    @field_validator("sources")
    @classmethod
    def _sources_differ(cls, sources: list[SourceSettings]) -> list[SourceSettings]:
        # Two sources that read one table would sign each of its rows twice.
        for what in ("name", "table"):
            named = [getattr(source, what) for source in sources]
            if len(set(named)) < len(named):
                raise ValueError(f"two of them have the same {what}")
        return sources

    @field_validator("reader")
    @classmethod
    def _batches_fit(cls, reader: ReaderSettings, info: ValidationInfo) -> ReaderSettings:
        kafka = info.data.get("kafka")
        if kafka is not None and reader.batch_bytes_max + RECORD_MARGIN_BYTES > kafka.message_max_bytes:
            raise ValueError(
                f"batch_bytes_max + {RECORD_MARGIN_BYTES} must not exceed {ENV_PREFIX}KAFKA__MESSAGE_MAX_BYTES"
            )
        return reader

    @property
    def kek_path(self) -> Path:
        """The file with the key-encryption key."""
        return self.kek_file or self.data_dir / "kek"

    def source(self, name: str) -> SourceSettings:
        """Raises SettingError for a source that is not configured."""
        for source in self.sources:
            if source.name == name:
                return source
        raise SettingError(
            f"{ENV_PREFIX}SOURCES",
            f"no source is called {name!r}",
            hint=f"Known: {', '.join(s.name for s in self.sources)}.",
        )

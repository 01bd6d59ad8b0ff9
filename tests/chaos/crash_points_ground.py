"""Real servers that are started once, and for each case a place of its own in them."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psycopg
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from psycopg import conninfo, sql
from pydantic import SecretStr

from pipeline.adapters.kafka import client_config
from pipeline.adapters.postgres import connection_string
from pipeline.custody.sealing import Kek
from pipeline.local.stack import Stack
from pipeline.settings import KafkaSettings, PostgresSettings
from tests.chaos.crash_points_life import POLICY, Place, make_source

TEMPLATE: Final = "crash_points"
DELETE_MAX_S: Final = 10.0


@dataclass(slots=True)
class Ground:
    """Addresses of servers; `postgres` names a database with which to connect to make others."""

    directory: Path
    etcd: str
    postgres: PostgresSettings
    kafka: KafkaSettings
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _template: bool = False

    def place(self, *, migrated: bool = True) -> Place:
        """Fresh names in all servers, and a directory; the database has its tables, unless told otherwise."""
        name = f"c{uuid.uuid4().hex[:12]}"
        with self._turn:
            if migrated and not self._template:
                self._make(TEMPLATE)
                make_source(self._database(TEMPLATE))
                self._template = True
            self._make(name, TEMPLATE if migrated else "template1")
        directory = self.directory / name
        directory.mkdir()
        Kek.create(directory / "kek")
        (directory / "policy.toml").write_text(POLICY, encoding="utf-8")
        database = self._database(name)
        assert database.password_file is not None
        dsn, servers = database.dsn.get_secret_value(), self.kafka.bootstrap_servers
        return Place(directory, name, self.etcd, dsn, database.password_file, servers)

    def clear(self, place: Place) -> None:
        """Give the room back to those that follow. Its directory with the logs stays."""
        topics = [topic for topic in self._topics() if topic.startswith(place.deployment)]
        admin = AdminClient(client_config(self.kafka))
        with suppress(KafkaException):
            for done in admin.delete_topics(topics).values() if topics else ():
                done.result(DELETE_MAX_S)
        self._execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(place.deployment)))

    def _topics(self) -> list[str]:
        return list(AdminClient(client_config(self.kafka)).list_topics(timeout=DELETE_MAX_S).topics)

    def _make(self, name: str, template: str = "template1") -> None:
        made = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        self._execute(made)

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(connection_string(self.postgres), autocommit=True) as connection:
            connection.execute(statement)

    def _database(self, name: str) -> PostgresSettings:
        parts = conninfo.conninfo_to_dict(self.postgres.dsn.get_secret_value())
        dsn = f"postgresql://{parts['user']}@{parts['host']}:{parts['port']}/{name}"
        return self.postgres.model_copy(update={"dsn": SecretStr(dsn)})


@contextmanager
def embedded(directory: Path) -> Iterator[Ground]:
    """Servers of its own, stopped at the end."""
    stack = Stack(directory / "servers")
    try:
        addresses = stack.up().addresses
        password_file = Path(addresses["postgres.password_file"])
        postgres = PostgresSettings(dsn=SecretStr(addresses["postgres.dsn"]), password_file=password_file)
        kafka = KafkaSettings(bootstrap_servers=addresses["kafka.bootstrap_servers"])
        yield Ground(directory, addresses["etcd.endpoints"], postgres, kafka)
    finally:
        stack.down()

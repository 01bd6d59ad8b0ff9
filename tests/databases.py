"""Fresh databases, copied from one that was migrated once."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import conninfo, sql
from pydantic import SecretStr

from pipeline.adapters.migrations import migrate
from pipeline.adapters.postgres import connection_string
from pipeline.settings import PostgresSettings

TEMPLATE = "migrated"


def make_template(server: PostgresSettings) -> None:
    with psycopg.connect(connection_string(server), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
    migrate(named(server, TEMPLATE))


@contextmanager
def fresh(server: PostgresSettings) -> Iterator[PostgresSettings]:
    """A migrated database of its own."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(connection_string(server), autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(TEMPLATE))
        )
        try:
            yield named(server, name)
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def named(server: PostgresSettings, name: str) -> PostgresSettings:
    parts = conninfo.conninfo_to_dict(server.dsn.get_secret_value())
    dsn = f"postgresql://{parts['user']}@{parts['host']}:{parts['port']}/{name}"
    return server.model_copy(update={"dsn": SecretStr(dsn)})

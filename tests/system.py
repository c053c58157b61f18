"""The whole system as real processes, to be broken on purpose, and the sums that must hold whatever was done to it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pika
import psycopg2
import requests
import sqlalchemy as sa
from sqlalchemy.orm import Session

from db.migrate import upgrade
from db.models import MessageStatus, Scope
from db.queries import api_keys, statistics
from sender.broker import BATCHES_QUEUE, IMPORTS_QUEUE
from simulator.client import Simulator
from tests.proxy import Proxy
from tools import usage
from tools.processes import Process, Running, family, free_port, wait_until
from tools.servers import PostgreSQL, RabbitMQ

ROOT = Path(__file__).resolve().parent.parent
API_KEY = "system-test-key"
GATEWAY_TOKEN = "system-test-token"
# Calls in flight per sending process, and so what a kill -9 of one may repeat: few, so that the bound means something.
CONCURRENCY = 200
SENDING_PROCESSES = 2
LATENCY = {"kind": "latency", "milliseconds": 150, "distribution": "lognormal", "max_milliseconds": 2000}
# The machine may be busy with other things: waits end with their event, these are only for giving up.
PATIENCE_SECONDS = 180.0
POLL_SECONDS = 0.2
# What a process writes when something happened that nothing we do to it explains.
NEVER_LOGGED = ("loop_failed", "orphans_found", "Failed to process message", "Traceback")


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one scenario came to, a line of the table in docs/reliability.md."""

    scenario: str
    messages: int
    seconds: float
    statuses: Mapping[str, int]
    attempts: int  # requests that arrived at the gateway
    repeats: int  # ids accepted again
    repeats_allowed: int | None
    longest_silence: float  # seconds without any arrival at the gateway
    note: str


FIGURES: list[Figures] = []


class Servers:
    """A PostgreSQL and a RabbitMQ for many systems, and the template of a migrated database."""

    TEMPLATE = "migrated"

    def __init__(self, directory: Path) -> None:
        self.postgresql = PostgreSQL(directory, without_disks=True)
        self.rabbitmq = RabbitMQ(directory)

    def __enter__(self) -> Self:
        self.postgresql.__enter__()
        self.rabbitmq.__enter__()
        self.postgresql.execute(f"CREATE DATABASE {self.TEMPLATE}")
        upgrade(self.postgresql.url(self.TEMPLATE))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.postgresql.remove()
        self.rabbitmq.remove()

    def revive(self) -> None:
        """Have both run, whatever a test that failed halfway left of them."""
        for server in (self.postgresql, self.rabbitmq):
            server.send(signal.SIGCONT)
            if server.pid is None:
                server.start()

    def empty_queues(self) -> None:
        """Forget the batches of an earlier system: their numbers mean others now."""
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(self.rabbitmq.url))) as connection:
            for queue in (BATCHES_QUEUE, IMPORTS_QUEUE):
                with contextlib.suppress(pika.exceptions.ChannelClosedByBroker):
                    connection.channel().queue_delete(queue)


class Mailing:
    """A mailing under way, watched: its counts are read over the API all the time and must add up at every poll."""

    def __init__(self, system: System, mailing_id: int, audience: int) -> None:
        self.id = mailing_id
        self.audience = audience
        self.began = time.monotonic()
        self.violations: list[str] = []
        self.polls = 0
        self.state = ""
        self.counts: dict[str, int] = {}
        self.finished_after: float | None = None  # seconds
        self._system = system
        self._highest = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"watch-{mailing_id}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watch."""
        self._stopped.set()
        self._thread.join(30)

    def _watch(self) -> None:
        with requests.Session() as http:
            while not self._stopped.wait(POLL_SECONDS):
                # The database may be away: that is no violation.
                with contextlib.suppress(requests.RequestException, psycopg2.Error):
                    answer = self._system.call(
                        "GET", f"/message/{self.id}/retrieveMessagesForMailing/?limit=1", http=http
                    )
                    if answer.status_code == 200:
                        self._look(answer.json())

    def _look(self, detail: Mapping[str, Any]) -> None:
        self.polls += 1
        self.counts, self.state = detail["by_status"], detail["mailing"]["state"]
        total = sum(self.counts.values())
        # While the messages are being written their number grows; it never shrinks, and ends at the audience.
        if total < self._highest or total > self.audience:
            self.violations.append(f"poll {self.polls}: {total} of {self.audience} in {self.counts}")
        self._highest = max(self._highest, total)
        if self.state in ("completed", "cancelled") and not self.open and self.finished_after is None:
            self.finished_after = time.monotonic() - self.began

    @property
    def open(self) -> int:
        """How many messages were not final at the last poll."""
        return self.counts.get("pending", 0) + self.counts.get("sending", 0)


class System:
    """All processes on a database of their own. Start what the scenario needs, break it, then `check`."""

    def __init__(
        self,
        directory: Path,
        servers: Servers,
        *,
        dispatchers: int = 1,
        senders: int = 1,
        faults: Sequence[Mapping[str, Any]] = (LATENCY,),
        through_proxy: bool = False,
        **settings: object,
    ) -> None:
        self.directory = directory
        self.servers = servers
        self.settings = settings
        self.mailings: list[Mailing] = []
        self._numbers = (dispatchers, senders)
        self._faults = [dict(fault) for fault in faults]
        self._through_proxy = through_proxy
        self._stack = contextlib.ExitStack()
        self._http = requests.Session()

    def __enter__(self) -> Self:
        self.servers.revive()
        self.servers.empty_queues()
        self.database = f"system_{uuid.uuid4().hex[:12]}"
        postgresql = self.servers.postgresql
        postgresql.execute(f"CREATE DATABASE {self.database} TEMPLATE {Servers.TEMPLATE}")
        self.engine = sa.create_engine(postgresql.url(self.database), poolclass=sa.NullPool)
        with self.session() as session:
            api_keys.create(session, "test", Scope.FULL, API_KEY)
        self.simulator = self._stack.enter_context(Simulator.start(*self._faults, token=GATEWAY_TOKEN, seed=1))
        self.proxy = self._stack.enter_context(Proxy(postgresql.port)) if self._through_proxy else None
        self._api_port = free_port()
        self.api = self._process("api", "api")
        self.dispatchers = [self._process(f"dispatcher-{n}", "sender", "dispatcher") for n in range(self._numbers[0])]
        self.senders = [self._process(f"sender-{n}", "sender", "worker") for n in range(self._numbers[1])]
        for process in self.processes:
            process.launch()
        self._wait_for_everything()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for mailing in self.mailings:
            mailing.stop()
        for process in self.processes:
            for member in family(process.pid) if process.pid else ():
                member.send(signal.SIGCONT)
            process.kill()
        self._stack.close()
        self._http.close()
        self.engine.dispose()
        self.servers.revive()
        self.servers.postgresql.execute(f"DROP DATABASE {self.database} WITH (FORCE)")

    # Processes ----------------------------------------------------------------------------------------------------

    @property
    def processes(self) -> list[Process]:
        """Every process of ours, the API first."""
        return [self.api, *self.dispatchers, *self.senders]

    def _process(self, name: str, *module: str) -> Process:
        postgresql = self.servers.postgresql
        url = postgresql.url(self.database)
        if self.proxy and module[0] != "api":
            url = url.replace(f":{postgresql.port}/", f":{self.proxy.port}/")
        environment: dict[str, object] = {
            "DATABASE_URL": url,
            "AMQP_URL": self.servers.rabbitmq.url,
            "SECRET_KEY": "system-test-secret",
            "GATEWAY_URL": self.simulator.url,
            "GATEWAY_TOKEN": GATEWAY_TOKEN,
            "GATEWAY_CONCURRENCY": CONCURRENCY,
            "SENDER_PROCESSES": SENDING_PROCESSES,
            "API_PORT": self._api_port,
        }
        environment |= {variable.upper(): value for variable, value in self.settings.items()}
        return Process(
            name=name,
            argv=[sys.executable, "-m", *module],
            env={"PATH": os.environ["PATH"], **{key: str(value) for key, value in environment.items()}},
            cwd=ROOT,
            log=self.directory / f"{name}.log",
            dies_with_parent=True,
        )

    def _wait_for_everything(self) -> None:
        wanted = {"dispatcher": self._numbers[0], "sender": self._numbers[1] * self._sending_processes}
        self.wait(lambda: self._alive() == wanted and self._api_answers(), 60)

    @property
    def _sending_processes(self) -> int:
        return int(str(self.settings.get("sender_processes", SENDING_PROCESSES)))

    def _alive(self) -> dict[str, int]:
        rows = self.rows("SELECT kind, count(*) FROM process WHERE heartbeat_at > now() - interval '3 s' GROUP BY kind")
        return {kind: count for kind, count in rows if kind in ("dispatcher", "sender")}

    def _api_answers(self) -> bool:
        with contextlib.suppress(requests.RequestException):
            return self.call("GET", "/mailing/").status_code == 200
        return False

    def sending_children(self, sender: int = 0) -> list[Running]:
        """The sending processes of one sender, oldest first."""
        pid = self.senders[sender].pid
        children = [member for member in family(pid) if member.last_argument == "batches"] if pid else []
        return sorted(children, key=lambda child: (child.started, child.pid))

    def leader(self) -> Process | None:
        """The dispatcher that leads; None between a dead one's lease and its successor's."""
        holder = self.scalar("SELECT holder FROM leader WHERE role = 'dispatcher' AND lease_until > now()")
        return next((process for process in self.dispatchers if f":{process.pid}:" in str(holder)), None)

    def logged(self, event: str) -> int:
        """How many lines of all our processes' logs have this word."""
        return sum(
            process.log.read_text(errors="replace").count(event) for process in self.processes if process.log.exists()
        )

    # Database, API, broker ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """A transaction beside the system, never through the proxy."""
        with Session(self.engine) as session, session.begin():
            yield session

    def rows(self, statement: str, **values: object) -> list[Any]:
        """The rows of a query."""
        with self.session() as session:
            return list(session.execute(sa.text(statement), values).all())

    def scalar(self, statement: str, **values: object) -> Any:
        """The one value of a query."""
        with self.session() as session:
            return session.scalar(sa.text(statement), values)

    def execute(self, statement: str, **values: object) -> None:
        """Run a statement and commit."""
        with self.session() as session:
            session.execute(sa.text(statement), values)

    def call(self, method: str, path: str, body: Any = None, http: requests.Session | None = None) -> requests.Response:
        """A request to the API, the path relative to /api/v1."""
        return (http or self._http).request(
            method,
            f"{self.api_url}{path}",
            json=body,
            headers={"Authorization": f"Bearer {API_KEY}"},
            timeout=30,
        )

    def upload(self, content: bytes) -> requests.Response:
        """Hand in a file of people to import."""
        return self._http.post(
            f"{self.api_url}/client/import/",
            data=content,
            headers={"Authorization": f"Bearer {API_KEY}", "Content-Type": "text/csv"},
            timeout=30,
        )

    @property
    def api_url(self) -> str:
        """Where the API's paths begin."""
        return f"http://127.0.0.1:{self._api_port}/api/v1"

    def get_plain(self, path: str) -> str:
        """A page of the API's port, such as /metrics."""
        return self._http.get(
            f"http://127.0.0.1:{self._api_port}{path}", headers={"Authorization": f"Bearer {API_KEY}"}, timeout=30
        ).text

    # People and mailings ------------------------------------------------------------------------------------------

    def add_clients(self, number: int, operator_code: str = "916") -> None:
        """Fill the directory."""
        self.execute(
            "INSERT INTO client (phone, operator_code, timezone)"
            " SELECT '+7' || :code || lpad(n::text, 7, '0'), :code, 'Europe/Moscow'"
            " FROM generate_series(1, :number) AS n",
            code=operator_code,
            number=number,
        )
        # As autovacuum would have done with clients that were not made a second ago.
        self.execute("ANALYZE client")

    def start_mailing(
        self,
        audience: int,
        operator_code: str = "916",
        ends_in: float = 3600.0,
        *,
        are_there: bool = False,
        **fields: object,
    ) -> Mailing:
        """Add that many clients of this operator, unless they are there, and a mailing to them that starts now."""
        if not are_there:
            self.add_clients(audience, operator_code)
        body = {
            "name": "Fault test",
            "text": "Hello",
            "ends_at": (datetime.now(UTC) + timedelta(seconds=ends_in)).isoformat(),
            "filter": {"operator_codes": [operator_code], "tags": []},
            **fields,
        }
        answer = self.call("POST", "/mailing/", body)
        assert answer.status_code == 201, answer.text
        mailing = Mailing(self, answer.json()["id"], audience)
        self.mailings.append(mailing)
        return mailing

    # Waiting ------------------------------------------------------------------------------------------------------

    def wait(self, condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> float:
        """Wait until the condition holds, and return how many seconds that took; fail when it takes too long."""
        began = time.monotonic()

        def holds() -> bool:
            # PostgreSQL may be away at the moment.
            with contextlib.suppress(sa.exc.OperationalError):
                return bool(condition())
            return False

        assert wait_until(holds, seconds), f"waited {seconds} s in vain; {[vars(m) for m in self.mailings]}"
        return time.monotonic() - began

    def wait_for_accepted(self, number: int) -> None:
        """Wait until the gateway has accepted so many messages."""
        self.simulator.wait_for(lambda seen: seen["accepted"] >= number, PATIENCE_SECONDS)

    def wait_for_end(self, mailing: Mailing, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until the mailing has ended and nothing of it is open."""
        self.wait(lambda: mailing.finished_after is not None, seconds)

    # Proof --------------------------------------------------------------------------------------------------------

    def check(
        self,
        mailing: Mailing,
        scenario: str,
        *,
        repeats: int | None = 0,
        statuses: Sequence[str] = ("sent",),
        note: str = "",
        patience: float = PATIENCE_SECONDS,
    ) -> Figures:
        """Wait for the mailing's end and prove every sum; `repeats` at most, None where the gateway itself lies."""
        self.wait_for_end(mailing, patience)
        self.wait(lambda: self.scalar("SELECT count(*) FROM batch WHERE mailing_id = :id", id=mailing.id) == 0, 60)
        mailing.stop()
        received = self.simulator.received()
        figures = Figures(
            scenario=scenario,
            messages=mailing.audience,
            seconds=round(mailing.finished_after or 0.0, 1),
            statuses={status: count for status, count in mailing.counts.items() if count},
            attempts=received["requests"],
            repeats=received["repeats"],
            repeats_allowed=repeats,
            longest_silence=self.longest_silence(),
            note=note,
        )
        FIGURES.append(figures)
        self.check_sums(mailing, statuses)
        assert repeats is None or received["repeats"] <= repeats, f"{received['repeats']} repeats, {repeats} allowed"
        assert received["conflicts"] == 0
        assert received["bad_requests"] == 0
        assert mailing.polls > 0
        assert not mailing.violations
        assert {event: self.logged(event) for event in NEVER_LOGGED} == dict.fromkeys(NEVER_LOGGED, 0)
        return figures

    def check_sums(self, mailing: Mailing, statuses: Sequence[str]) -> None:
        """Everybody has one message in a true final state, and the counters equal the rows."""
        with self.session() as session:
            assert statistics.recount(session) == []
            messages, people = session.execute(
                sa.text("SELECT count(*), count(DISTINCT client_id) FROM message WHERE mailing_id = :id"),
                {"id": mailing.id},
            ).one()
            assert (messages, people) == (mailing.audience, mailing.audience)
            found = {
                row.status: set(row.ids)
                for row in session.execute(
                    sa.text("SELECT status, array_agg(id) AS ids FROM message WHERE mailing_id = :id GROUP BY status"),
                    {"id": mailing.id},
                )
            }
        assert set(found) <= set(statuses), {status: len(ids) for status, ids in found.items()}
        accepted = self.simulator.accepted_ids()
        sent = found.get(MessageStatus.SENT, set())
        assert sent <= accepted, f"{len(sent - accepted)} are sent that the gateway never accepted"

    def longest_silence(self) -> float:
        """The longest time without an arrival at the gateway, between the first and the last."""
        arrivals = self.simulator.timeline()
        return round(
            max((later - earlier for (earlier, _), (later, _) in itertools.pairwise(arrivals)), default=0.0), 1
        )

    def rate_between(self, since: float, until: float) -> float:
        """Arrivals per second between two instants of `time.time()`."""
        return sum(count for at, count in self.simulator.timeline() if since <= at < until) / (until - since)


def at_this_load(seconds: float) -> float:
    """What so many seconds come to on this machine now: with three programs for each core, three times as long."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def cpu_seconds(process: Process) -> float:
    """The processor time that a process and its descendants have used."""
    return usage.cpu_seconds([process.pid or 0])

"""The whole system as real processes, and what it took to send a mailing."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping
from typing import Self

import pika

from bench.gateways import Gateway
from bench.machinery import ENVIRONMENT, PYTHON, ROOT, START_SECONDS, Bench, Database, MeasurementError
from db.models import MailingState
from sender.broker import BATCHES_QUEUE, IMPORTS_QUEUE
from tools import usage
from tools.processes import LAST, Process, Running, StartError, family, tail, wait_until

POLL_SECONDS = 0.05


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


class System:
    """Dispatchers and senders at work on one database as production runs them, while the `with` block lasts."""

    def __init__(
        self,
        bench: Bench,
        database: Database,
        gateway: Gateway,
        *,
        senders: int = 1,
        sending_processes: int = 2,
        dispatchers: int = 1,
        module: str = "sender",
        role: str = "worker",
    ) -> None:
        """With the role `batches` each sender is one bare sending process, otherwise it has so many of them."""
        self.database = database
        self.gateway = gateway
        self._rabbitmq = bench.rabbitmq
        self._logs = bench.directory / f"logs-{database.name}-{time.monotonic_ns()}"
        self._environment = {
            **ENVIRONMENT,
            "DATABASE_URL": database.url,
            "AMQP_URL": self._rabbitmq.url,
            "SECRET_KEY": "bench",
            "GATEWAY_URL": gateway.url,
            "GATEWAY_TOKEN": "bench",
            "SENDER_PROCESSES": str(sending_processes),
            "LOG_LEVEL": "INFO",
            "LOG_FORMAT": "json",
            **gateway.environment,
        }
        self.dispatchers = [self._process(f"dispatcher-{n}", module, "dispatcher") for n in range(dispatchers)]
        self.senders = [self._process(f"sender-{n}", module, role, nice=LAST) for n in range(senders)]
        each = sending_processes if role == "worker" else 1
        self._expected = {"dispatcher": dispatchers, "sender": senders * each}

    def __enter__(self) -> Self:
        _forget_queues(self._rabbitmq.url)
        for process in self.processes:
            process.launch()
        if not wait_until(lambda: self._alive() == self._expected, START_SECONDS):
            ends = "".join(f"\n{process.name}:{tail(process.log)}" for process in self.processes)
            self._end(0.0)
            raise StartError(f"only {self._alive()} of {self._expected} came up{ends}")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end(40.0 if kind is None else 0.0)

    def _end(self, grace_seconds: float) -> None:
        for process in self.processes:
            process.stop(grace_seconds)

    @property
    def processes(self) -> list[Process]:
        """All that were planned."""
        return [*self.dispatchers, *self.senders]

    @property
    def groups(self) -> dict[str, list[int]]:
        """The main processes whose processor time is told apart."""
        found = {
            "sender": _pids(self.senders),
            "dispatcher": _pids(self.dispatchers),
            "PostgreSQL": [self.database.server.pid or 0],
            "RabbitMQ": [self._rabbitmq.pid or 0],
            "gateway": self.gateway.pids,
        }
        return {name: pids for name, pids in found.items() if pids}

    def sending_processes(self) -> list[Running]:
        """The processes that talk to the gateway."""
        members = {member for pid in _pids(self.senders) for member in family(pid)}
        found = [member for member in members if member.last_argument == "batches"]
        return sorted(found, key=lambda member: member.pid)

    def cpu_seconds(self) -> dict[str, float]:
        """The processor time so far, by group."""
        return {name: usage.cpu_seconds(pids) for name, pids in self.groups.items()}

    def send_mailing(
        self, patience_seconds: float = 900.0, *, settled: bool = False, at_once: int = 1, **values: object
    ) -> Sending:
        """Send a mailing to its end, count at the gateway that everybody was reached, and tell what it took.

        Or several equal ones `at_once`; what they took is then that of all of them together.

        A checkpoint comes first, unless the database was `settled` for several: after each, every page is logged whole.
        """
        self.gateway.forget()
        if not settled:
            self.database.settle()
        cpu, wal = self.cpu_seconds(), self.database.wal_position()
        ids = [self.database.add_mailing(**values)]
        began = time.time()
        ids += [self.database.add_mailing(**values) for _ in range(at_once - 1)]
        for mailing_id in ids:
            self.wait_for_end(mailing_id, patience_seconds)
        seconds = time.time() - began
        used = {name: total - cpu[name] for name, total in self.cpu_seconds().items()}
        wal = self.database.wal_position() - wal
        messages = int(self.database.scalar("SELECT count(*) FROM message WHERE mailing_id = ANY(%s)", ids))
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

    def _process(self, name: str, *module: str, nice: int = 0) -> Process:
        return Process(
            name=name,
            argv=[PYTHON, "-m", *module],
            env=self._environment,
            cwd=ROOT,
            log=self._logs / f"{name}.log",
            dies_with_parent=True,
            nice=nice,
        )

    def _alive(self) -> dict[str, int]:
        rows = self.database.rows(
            "SELECT kind, count(*) FROM process"
            " WHERE kind IN ('dispatcher', 'sender') AND heartbeat_at > now() - interval '3 s' GROUP BY kind"
        )
        return dict(rows)


def _forget_queues(url: str) -> None:
    """Delete the queues of an earlier system: their batches mean others now, and their kind may be another."""
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
        for queue in (BATCHES_QUEUE, IMPORTS_QUEUE):
            for suffix in ("", ".DQ", ".XQ"):
                connection.channel().queue_delete(f"{queue}{suffix}")


def _pids(processes: list[Process]) -> list[int]:
    return [process.pid for process in processes if process.pid]

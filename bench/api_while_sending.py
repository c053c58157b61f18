"""How much slower the API answers while a sender runs at full speed on the same machine and the same database."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from bench.api import MAILING, Endpoint, Served, load, serve
from bench.figures import Figure
from bench.gateways import SimulatorGateway
from bench.load import Load
from bench.machinery import ENVIRONMENT, PYTHON, ROOT, Bench, Database, MeasurementError
from bench.system import System
from db.models import MessageStatus
from db.queries import mailings
from tools.processes import LAST, Process, wait_until

SECTION = "api_while_sending"
TITLE = "The API while a sender runs at full speed, beside the same API when nothing is sent"
SECONDS = 3
ENDPOINTS = (
    Endpoint("GET /client/{id}/", "/client/77/"),
    Endpoint("POST /mailing/", "/mailing/", "POST", json.dumps(MAILING)),
)


@dataclasses.dataclass(frozen=True)
class Asking:
    """A way to ask for the same thing again and again."""

    name: str
    connections: int
    pause_milliseconds: int


# The sender is to be the load. Without a pause the API takes its share of the cores, and the sender is slower.
STEADILY = Asking("one connection, a pause of 10 ms", 1, 10)
WITHOUT_A_PAUSE = Asking("2 connections without a pause", 2, 0)
WAYS = (STEADILY, WITHOUT_A_PAUSE)
_Loads = dict[tuple[str, str], list[Load]]  # by the names of the way and of the endpoint


@dataclasses.dataclass(frozen=True)
class Measured:
    """The rounds of all requests, and how many messages went out in each second of each way's."""

    loads: _Loads
    sent: dict[str, float]

    def median(self, asking: Asking, endpoint: Endpoint, value: str) -> float:
        """The median of all rounds."""
        return statistics.median(float(getattr(each, value)) for each in self.loads[asking.name, endpoint.name])


def run(bench: Bench) -> Iterator[Figure]:
    """Measure both endpoints at rest, beside programs that only spin, and while a mailing is sent that outlasts it."""
    messages = bench.size(1_000_000, 300_000)
    rounds = bench.size(3, 1)
    with (
        SimulatorGateway() as gateway,
        bench.database(messages) as database,
        System(bench, database, gateway),
        serve(bench, database, "api") as api,
    ):
        idle = _measure(api, database, rounds)
        with spinning(bench):
            spun = _measure(api, database, rounds)
        mailing_id = database.add_mailing()
        written = "SELECT materialised_at FROM mailing WHERE id = %s"
        if not wait_until(lambda: database.scalar(written, mailing_id) is not None, 60):
            raise MeasurementError("the messages were not written within 60 s")
        busy = _measure(api, database, rounds)
        if not database.count(mailing_id, MessageStatus.PENDING, MessageStatus.SENDING):
            raise MeasurementError("the mailing ended before the measurement: more messages are needed")
        with database.session() as session:
            mailings.control(session, mailing_id, "cancel", datetime.now(UTC))
    for asking in WAYS:
        for endpoint in ENDPOINTS:
            yield from _figures(asking, endpoint, idle, spun, busy)


@contextlib.contextmanager
def spinning(bench: Bench) -> Iterator[None]:
    """Keep every core busy with a program that does nothing else, at the sender's priority, while the block lasts."""
    programs = [
        Process(
            name=f"spin-{number}",
            argv=[PYTHON, "-c", "while True: pass"],
            env=ENVIRONMENT,
            cwd=ROOT,
            log=bench.directory / f"spin-{number}.log",
            dies_with_parent=True,
            nice=LAST,
        )
        for number in range(os.cpu_count() or 1)
    ]
    for program in programs:
        program.launch()
    try:
        yield
    finally:
        for program in programs:
            program.kill()


def _measure(api: Served, database: Database, rounds: int) -> Measured:
    """The rounds of each endpoint, taken in turns."""
    loads: _Loads = {(asking.name, endpoint.name): [] for asking in WAYS for endpoint in ENDPOINTS}
    sent = {}
    for asking in WAYS:
        began, before = time.monotonic(), _sent(database)
        for _ in range(rounds):
            for endpoint in ENDPOINTS:
                found = load(
                    endpoint, api.url, SECONDS, asking.connections, pause_milliseconds=asking.pause_milliseconds
                )
                loads[asking.name, endpoint.name].append(found)
        sent[asking.name] = (_sent(database) - before) / (time.monotonic() - began)
    return Measured(loads, sent)


def _sent(database: Database) -> int:
    return int(database.scalar("SELECT coalesce(sum(amount), 0) FROM status_count WHERE status = 'sent'"))


def _figures(asking: Asking, endpoint: Endpoint, idle: Measured, spun: Measured, busy: Measured) -> Iterator[Figure]:
    rates = [f"{measured.median(asking, endpoint, 'rate'):,.0f}/s" for measured in (busy, idle)]
    note = f"{rates[0]}, idle {rates[1]}; beside {busy.sent[asking.name]:,.0f} messages a second"
    for value in ("p50", "p99"):
        figure = busy.median(asking, endpoint, value)
        name = f"{endpoint.name}, {asking.name}: {value}"
        yield Figure(SECTION, name, figure, "ms", idle.median(asking, endpoint, value), "idle", note)
        if value == "p99":
            reference = spun.median(asking, endpoint, value)
            yield Figure(SECTION, name, figure, "ms", reference, "beside programs that only spin")

"""How much slower the API answers while a sender runs at full speed on the same machine and the same database."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from datetime import UTC, datetime

from bench.api import MAILING, Endpoint, Served, load, serve
from bench.figures import Figure
from bench.gateways import SimulatorGateway
from bench.load import Load
from bench.machinery import Bench, MeasurementError
from bench.system import System
from db.models import MessageStatus
from db.queries import mailings
from tools.processes import wait_until

SECTION = "api_while_sending"
TITLE = "The API while a sender runs at full speed, beside the same API when nothing is sent"
# A person and a program or two, not a load test: the sender is to be the load.
CONNECTIONS = 2
SECONDS = 3
ENDPOINTS = (
    Endpoint("GET /client/{id}/", "/client/77/"),
    Endpoint("POST /mailing/", "/mailing/", "POST", json.dumps(MAILING)),
)


def run(bench: Bench) -> Iterator[Figure]:
    """Measure both endpoints at rest, then again while a mailing is on its way that outlasts the measurement."""
    messages = bench.size(800_000, 300_000)
    with (
        SimulatorGateway() as gateway,
        bench.database(messages) as database,
        System(bench, database, gateway),
        serve(bench, database, "api") as api,
    ):
        rounds = bench.size(3, 1)
        idle = _load_all(api, rounds)
        mailing_id = database.add_mailing()
        written = "SELECT materialised_at FROM mailing WHERE id = %s"
        if not wait_until(lambda: database.scalar(written, mailing_id) is not None, 60):
            raise MeasurementError("the messages were not written within 60 s")
        busy = _load_all(api, rounds)
        if not database.count(mailing_id, MessageStatus.PENDING, MessageStatus.SENDING):
            raise MeasurementError("the mailing ended before the measurement: more messages are needed")
        with database.session() as session:
            mailings.control(session, mailing_id, "cancel", datetime.now(UTC))
    for endpoint, at_rest, under_load in zip(ENDPOINTS, idle, busy, strict=True):
        rates = [_median(loads, "rate") for loads in (under_load, at_rest)]
        for value in ("p50", "p99"):
            yield Figure(
                SECTION,
                f"{endpoint.name}: {value}",
                _median(under_load, value),
                "ms",
                _median(at_rest, value),
                "idle",
                f"{CONNECTIONS} connections, {rates[0]:,.0f}/s; idle {rates[1]:,.0f}/s",
            )


def _load_all(api: Served, rounds: int) -> list[list[Load]]:
    """The rounds of each endpoint, taken in turns."""
    taken = [[load(endpoint, api.url, SECONDS, CONNECTIONS) for endpoint in ENDPOINTS] for _ in range(rounds)]
    return [list(loads) for loads in zip(*taken, strict=True)]


def _median(loads: list[Load], value: str) -> float:
    return statistics.median(float(getattr(each, value)) for each in loads)

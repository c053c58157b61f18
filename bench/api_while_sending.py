"""How much slower the API answers while a sender runs at full speed on the same machine and the same database."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from bench.api import MAILING, Endpoint, load
from bench.figures import Figure
from bench.gateways import SimulatorGateway
from bench.load import Load
from bench.machinery import Bench, MeasurementError, System

SECTION = "api_while_sending"
TITLE = "The API while a sender runs at full speed, beside the same API when nothing is sent"
# A person and a program or two, not a load test: the sender is to be the load.
CONNECTIONS = 2
SECONDS = 4
ENDPOINTS = (
    Endpoint("GET /client/{id}/", "/client/77/"),
    Endpoint("POST /mailing/", "/mailing/", "POST", json.dumps(MAILING)),
)


def run(bench: Bench) -> Iterator[Figure]:
    """Measure both endpoints at rest, then again while a mailing is on its way that outlasts the measurement."""
    messages = bench.size(400_000, 100_000)
    with SimulatorGateway() as gateway, bench.system(gateway, clients=messages, api=True) as system:
        idle = [_load(system, endpoint) for endpoint in ENDPOINTS]
        mailing_id = system.database.add_mailing()
        _wait_for_first(system, mailing_id)
        busy = [_load(system, endpoint) for endpoint in ENDPOINTS]
        left = _unsent(system, mailing_id)
        if not left:
            raise MeasurementError("the mailing ended before the measurement: more messages are needed")
        system.wait_for_end(mailing_id, 900.0)
    for endpoint, at_rest, under_load in zip(ENDPOINTS, idle, busy, strict=True):
        for value in ("p50", "p99"):
            yield Figure(
                SECTION,
                f"{endpoint.name}: {value}",
                getattr(under_load, value),
                "ms",
                getattr(at_rest, value),
                "idle",
                f"{CONNECTIONS} connections, {under_load.rate:,.0f}/s; idle {at_rest.rate:,.0f}/s",
            )


def _load(system: System, endpoint: Endpoint) -> Load:
    return load(endpoint, system.api_url, SECONDS, CONNECTIONS)


def _unsent(system: System, mailing_id: int) -> int:
    return int(
        system.database.scalar(
            "SELECT coalesce(sum(amount), 0) FROM status_count"
            " WHERE mailing_id = %s AND status IN ('pending', 'sending')",
            mailing_id,
        )
    )


def _wait_for_first(system: System, mailing_id: int) -> None:
    give_up_at = time.monotonic() + 30
    while not system.database.scalar(
        "SELECT EXISTS (SELECT FROM status_count WHERE mailing_id = %s AND status = 'sent')", mailing_id
    ):
        if time.monotonic() > give_up_at:
            raise MeasurementError("nothing was sent within 30 s")
        time.sleep(0.05)

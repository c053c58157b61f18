"""More senders, more dispatchers and another kind of queue, all on this one machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.figures import Figure
from bench.gateways import Gateway, NginxGateway
from bench.machinery import Bench
from bench.system import Sending, System
from bench.throughput import RATE_UNIT

SECTION = "scaling"
TITLE = "More senders, two dispatchers, quorum queues"


def run(bench: Bench) -> Iterator[Figure]:
    """One to three senders of one sending process each, then what else can be tried with two of them."""
    with NginxGateway(bench.directory) as gateway:
        one = _send(bench, gateway, senders=1)
        yield _figure("one sender", one)
        two = _send(bench, gateway, senders=2)
        yield _figure("two senders", two, one, "one sender")
        yield _figure("three senders", _send(bench, gateway, senders=3), one, "one sender")
        yield _figure("two dispatchers", _send(bench, gateway, senders=2, dispatchers=2), two, "one dispatcher")
        quorum = _send(bench, gateway, senders=2, module="bench.quorum", role="batches")
        yield _figure("quorum queues", quorum, two, "classic queues")


def _send(bench: Bench, gateway: Gateway, **options: Any) -> Sending:
    messages = bench.size(200_000, 20_000)
    with (
        bench.database(messages) as database,
        System(bench, database, gateway, sending_processes=1, **options) as system,
    ):
        return system.send_mailing()


def _figure(name: str, sending: Sending, reference: Sending | None = None, reference_name: str = "") -> Figure:
    spent = ", ".join(f"{group} {microseconds:.0f}" for group, microseconds in sending.cpu_microseconds.items())
    repeats = f"{sending.repeats} repeated" if sending.repeats else "each once"
    return Figure(
        SECTION,
        name,
        sending.rate,
        RATE_UNIT,
        reference.rate if reference else None,
        reference_name,
        f"{sending.messages:,} messages, {repeats} at the gateway; µs each: {spent}",
    )

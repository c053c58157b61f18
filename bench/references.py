"""Beside two other ways to build such a service: a loop per mailing, and a queue message per recipient."""

from __future__ import annotations

import dataclasses
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

from bench.figures import Figure
from bench.gateways import Gateway, NginxGateway, SimulatorGateway
from bench.machinery import ENVIRONMENT, PYTHON, ROOT, Bench, Database, MeasurementError
from bench.system import System
from bench.throughput import RATE_UNIT
from tools import usage
from tools.processes import LAST, Process, tail, wait_until

SECTION = "references"
TITLE = "Beside other designs"
PATIENCE_SECONDS = 300.0


@dataclasses.dataclass(frozen=True)
class Reference:
    """One of the other designs, as a module that Dramatiq's command line runs in two processes."""

    name: str
    module: str
    threads: int
    mailings: int | None  # sent at once, each by one task; None where every recipient has a job of its own

    @property
    def in_flight(self) -> int:
        """How many calls it can have in flight."""
        return self.mailings or 2 * self.threads


SEQUENTIAL = Reference("a loop per mailing, two mailings", "bench.reference_sequential", threads=1, mailings=2)
PER_MESSAGE = Reference("a job per recipient, 2 × 8 threads", "bench.reference_per_message", threads=8, mailings=None)
# Messages by latency: ten seconds or so, or a fifth of that.
SIZES = {
    SEQUENTIAL: {0: (6000, 1200), 50: (360, 80)},
    PER_MESSAGE: {0: (8000, 2000), 50: (3000, 600)},
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a reference came to."""

    rate: float  # messages per second, from the first call to the last
    cpu_microseconds: float  # its own processes', for each message


def run(bench: Bench) -> Iterator[Figure]:
    """Ours and both references at each latency; at half a second the references are too slow to wait for."""
    for latency in (0, 50):
        outcomes = {}
        with _gateway(bench, latency) as gateway:
            for reference, sizes in SIZES.items():
                outcomes[reference] = outcome = _measure(bench, reference, gateway, bench.size(*sizes[latency]))
                yield _own_figure(reference, latency, outcome)
        yield from _beside(bench, latency, {reference: outcome.rate for reference, outcome in outcomes.items()})
    ideal = {reference: reference.in_flight / 0.5 for reference in SIZES}
    yield from _beside(bench, 500, ideal, " by arithmetic: calls in flight / latency")


def _gateway(bench: Bench, latency: int) -> AbstractContextManager[Gateway]:
    return SimulatorGateway(latency) if latency else NginxGateway(bench.directory)


def _own_figure(reference: Reference, latency: int, outcome: Outcome) -> Figure:
    return Figure(
        SECTION,
        f"{latency} ms, {reference.name}",
        outcome.rate,
        RATE_UNIT,
        note=f"{outcome.cpu_microseconds:,.0f} µs of its processes for each",
    )


def _beside(bench: Bench, latency: int, rates: dict[Reference, float], how: str = "") -> Iterator[Figure]:
    """Our rate at this latency, beside each of the others'."""
    messages = bench.size(100_000, 20_000)
    with (
        _gateway(bench, latency) as gateway,
        bench.database(messages) as database,
        System(bench, database, gateway) as system,
    ):
        sending = system.send_mailing()
    for reference, rate in rates.items():
        yield Figure(SECTION, f"{latency} ms, ours", sending.rate, RATE_UNIT, rate, f"{reference.name}{how}")


def _measure(bench: Bench, reference: Reference, gateway: Gateway, messages: int) -> Outcome:
    gateway.forget()
    with bench.database() as database:
        environment = {
            **ENVIRONMENT,
            "DATABASE_URL": database.url,
            "AMQP_URL": bench.rabbitmq.url,
            "GATEWAY_URL": gateway.url,
            # Otherwise the first process to come takes both mailings.
            "dramatiq_queue_prefetch": str(reference.threads),
        }
        size = [reference.mailings, messages // reference.mailings] if reference.mailings else [messages]
        command = [PYTHON, "-m", reference.module, *map(str, size)]
        subprocess.run(command, env=environment, cwd=ROOT, check=True)
        process = Process(
            name=reference.module,
            argv=[
                *(PYTHON, "-m", "dramatiq", reference.module),
                *("--processes", "2", "--threads", str(reference.threads)),
            ],
            env=environment,
            cwd=ROOT,
            log=bench.directory / f"{reference.module}-{time.monotonic_ns()}.log",
            dies_with_parent=True,
            nice=LAST,
        )
        process.launch()
        try:
            spent = _wait(process, database, messages)
        finally:
            process.kill()
    received = gateway.received()
    if received.messages != messages or not (received.first_at and received.last_at):
        raise MeasurementError(f"{reference.module} sent {received.messages} of {messages}:{tail(process.log)}")
    rate = messages / (received.last_at - received.first_at)
    return Outcome(rate, spent / messages * 1e6)


def _wait(process: Process, database: Database, messages: int) -> float:
    """Wait until all are sent; the processor seconds it took from the first one on."""

    def sent(wanted: int) -> bool:
        count = database.scalar("SELECT count(*) FROM reference_message WHERE status = 'sent'")
        return int(count) >= wanted

    def wait_for(wanted: int) -> float:
        if not wait_until(lambda: sent(wanted), PATIENCE_SECONDS, 0.2):
            raise MeasurementError(f"{process.name} did not end:{tail(process.log)}")
        return usage.cpu_seconds([process.pid or 0])

    started = wait_for(1)
    return wait_for(messages) - started

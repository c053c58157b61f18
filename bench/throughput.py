"""The whole system's throughput: one mailing from its start to `completed`, beside a bare load generator."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from bench.figures import Figure
from bench.gateways import Gateway, NginxGateway, SimulatorGateway
from bench.load import Load, send_like_us
from bench.machinery import Bench
from bench.system import Sending, System
from common.settings import CONCURRENCY

SECTION = "throughput"
TITLE = "Throughput of the whole system, two sending processes"
RATE_UNIT = "messages/s"
# Enough for wrk to keep one nginx worker or one simulator busy; more connections made it no faster.
CONNECTIONS = 64
SENDING_PROCESSES = 2
VARYING_MS = 300  # in the middle; the mean of these is half a second
SIMULATOR_PER_MILLISECOND = 40  # what it answers at most, with some latency


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One gateway, and how it is called."""

    name: str
    gateway: Callable[[], AbstractContextManager[Gateway]]
    connections: int = CONNECTIONS  # of wrk


def run(bench: Bench) -> Iterator[Figure]:
    """Measure every gateway, the fastest first."""
    for scenario in scenarios(bench):
        yield from _measure(bench, scenario)


def scenarios(bench: Bench) -> list[Scenario]:
    """No latency at nginx and at our simulator, then the simulator's latencies; plain and over TLS."""
    directory, authority = bench.directory, bench.authority
    found = [
        Scenario("0 ms", lambda: NginxGateway(directory)),
        Scenario("0 ms, TLS", lambda: NginxGateway(directory, authority)),
        Scenario("0 ms, simulator", SimulatorGateway),
        Scenario("0 ms, simulator, TLS", lambda: SimulatorGateway(0, authority)),
    ]
    for latency in (50, 500):
        for suffix, used in (("", None), (", TLS", authority)):
            gateway = functools.partial(SimulatorGateway, latency, used)
            found.append(Scenario(f"{latency} ms{suffix}", gateway, _connections(latency)))
    varying = functools.partial(SimulatorGateway, VARYING_MS, varying=True)
    return [*found, Scenario(f"{VARYING_MS} ms, varying", varying, _connections(VARYING_MS))]


def _connections(latency_ms: int) -> int:
    """As many as we may have in flight, but no more than the simulator has work for: too many make wrk slower."""
    return min(SENDING_PROCESSES * CONCURRENCY, latency_ms * SIMULATOR_PER_MILLISECOND)


def figures(name: str, sending: Sending, reference: float | None, reference_name: str) -> Iterator[Figure]:
    """Everything that is known of one mailing."""
    repeats = f"{sending.repeats} repeated" if sending.repeats else "each id once"
    yield Figure(
        SECTION,
        name,
        sending.rate,
        RATE_UNIT,
        reference,
        reference_name,
        f"{sending.messages:,} in {sending.seconds:.1f} s, {repeats} at the gateway, "
        f"{sending.tail_seconds:.1f} s of it after the last answer",
    )
    groups = ", ".join(f"{group} {spent:.1f}" for group, spent in sending.cpu_microseconds.items())
    yield Figure(SECTION, f"{name}: processor time", sum(sending.cpu_microseconds.values()), "µs/message", note=groups)
    yield Figure(SECTION, f"{name}: first message after", sending.first_seconds, "s")
    yield Figure(SECTION, f"{name}: memory of a sending process", max(sending.memory_mb), "MB", note="the peak")
    yield Figure(SECTION, f"{name}: WAL", sending.wal_bytes, "bytes/message")


def _measure(bench: Bench, scenario: Scenario) -> Iterator[Figure]:
    messages = bench.size(200_000, 20_000)
    with scenario.gateway() as gateway:
        load = best_load(bench, gateway, scenario.connections)
        bench.say(f"{scenario.name}: wrk reached {load.rate:,.0f}/s, p99 {load.p99:.1f} ms")
        with (
            bench.database(messages) as database,
            System(bench, database, gateway, sending_processes=SENDING_PROCESSES) as system,
        ):
            sending = system.send_mailing()
    yield from figures(scenario.name, sending, load.rate, f"wrk, {scenario.connections} connections")


def best_load(bench: Bench, gateway: Gateway, connections: int) -> Load:
    """What wrk reaches, the better of two runs: something else may have disturbed the other.

    Thousands of connections take seconds to open, most of all with TLS; such runs last longer.
    """
    seconds = bench.size(4, 2) if connections == CONNECTIONS else bench.size(12, 6)
    runs = [send_like_us(gateway.url, connections=connections, seconds=seconds) for _ in range(2)]
    return max(runs, key=lambda load: load.rate)

"""HTTP clients alone, without database and queue: what a call costs with each of them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Iterator

from bench.figures import Figure, format_number
from bench.gateways import Gateway, NginxGateway
from bench.load import send_like_us
from bench.machinery import ENVIRONMENT, PYTHON, ROOT, Bench, MeasurementError
from common.settings import CONCURRENCY

SECTION = "clients"
TITLE = "HTTP clients alone, one process each"
IN_FLIGHT = 64
NAMES = {
    "ours": "sender/gateway.py",
    "pycurl": "pycurl, perform and select",
    "aiohttp": "aiohttp on uvloop",
    "urllib3": "urllib3, 64 threads",
    "httpx": "httpx on uvloop",
}
# Calls for a few seconds with each, by what they reach; with a new connection for each call a fifth of it.
CALLS = {"ours": 60_000, "pycurl": 60_000, "aiohttp": 30_000, "urllib3": 15_000, "httpx": 3000}


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to speak to the gateway."""

    name: str
    tls: bool = False
    http2: bool = False
    keep_alive: bool = True
    resumption: bool = True

    def gateway(self, bench: Bench) -> NginxGateway:
        """An nginx that speaks so."""
        return NginxGateway(
            bench.directory,
            bench.authority if self.tls else None,
            http2=self.http2,
            keep_alive=self.keep_alive,
            resumption=self.resumption,
        )


WAYS = (
    Way("plain"),
    Way("TLS", tls=True),
    Way("TLS, HTTP/2 offered", tls=True, http2=True),
    Way("new connections", keep_alive=False),
    Way("new TLS connections, resumption offered", tls=True, keep_alive=False),
    Way("new TLS connections, no resumption", tls=True, keep_alive=False, resumption=False),
)
HTTP2_CLIENTS = ("ours", "pycurl", "httpx")  # Ours, for it takes HTTP/1.1 there; the others would do as before.


def run(bench: Bench) -> Iterator[Figure]:
    """Every client in every way; ours beside wrk, the others beside ours."""
    for way in WAYS:
        with way.gateway(bench) as gateway:
            yield from _measure(bench, way, gateway)


def _measure(bench: Bench, way: Way, gateway: Gateway) -> Iterator[Figure]:
    load = send_like_us(gateway.url, connections=IN_FLIGHT, seconds=2)
    reference, reference_name = load.rate, f"wrk, {IN_FLIGHT} connections"
    for client in HTTP2_CLIENTS if way.http2 else NAMES:
        calls = CALLS[client] // bench.size(1, 5) // (1 if way.keep_alive else 5)
        rate, remarks = _call(gateway, client, calls)
        yield Figure(
            SECTION,
            f"{way.name}: {NAMES[client]}",
            rate,
            "calls/s",
            reference,
            reference_name,
            remarks,
        )
        if client == "ours":
            reference, reference_name = rate, "ours"


def _call(gateway: Gateway, client: str, calls: int) -> tuple[float, str]:
    """Calls per second, and what else is to be said of them."""
    # Ours handles what happens within a few milliseconds together, so it needs more calls in flight than a client that
    # turns to each answer at once; it gets what it has by default, of which it does not use all with such a gateway.
    in_flight = CONCURRENCY if client == "ours" else IN_FLIGHT
    gateway.forget()
    finished = subprocess.run(
        [PYTHON, "-m", "bench.client_calls", client, gateway.url, str(calls), str(in_flight)],
        cwd=ROOT,
        env={**ENVIRONMENT, **gateway.environment},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    received = gateway.received()
    if finished.returncode or (received.messages, received.repeats) != (calls, 0):
        raise MeasurementError(f"{client} made {received} of {calls} calls: {finished.stderr[-500:]}")
    took = json.loads(finished.stdout)
    remarks = f"{format_number(took['cpu_seconds'] / calls * 1e6)} µs of its process for each"
    if received.resumed:
        remarks += f", {received.resumed / calls:.0%} over resumed sessions"
    return calls / took["seconds"], remarks

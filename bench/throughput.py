"""The whole system's throughput: one mailing from its start to `completed`, beside a bare load generator."""

from __future__ import annotations

from collections.abc import Iterator

from bench.figures import Figure
from bench.gateways import SimulatorGateway
from bench.machinery import Bench

SECTION = "throughput"
TITLE = "Throughput of the whole system"


def run(bench: Bench) -> Iterator[Figure]:
    """Send through the simulator."""
    with SimulatorGateway() as gateway, bench.system(gateway, clients=bench.size(200_000, 20_000)) as system:
        sending = system.send_mailing()
    yield Figure(SECTION, "simulator, 0 ms", sending.rate, "messages/s", note=str(sending))

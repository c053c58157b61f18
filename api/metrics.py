"""Request counts and times of this service, and the state of the mailings as the database tells it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import REGISTRY, Collector

from api.database import session
from db.models import GatewayState
from db.queries import overview, report_deliveries

REQUESTS = Counter("mailing_api_requests", "Requests answered.", ["method", "route", "status"])
SECONDS = Histogram(
    "mailing_api_request_seconds",
    "Time from reading a request to its answer.",
    ["route"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class _DatabaseCollector(Collector):
    """Gauges read at the moment of the scrape, all from counters and short tables."""

    def collect(self) -> Iterator[Metric]:
        now = overview.read(session())
        messages = GaugeMetricFamily("mailing_messages", "Messages by status.", labels=["status"])
        for status, count in now.messages.items():
            messages.add_metric([status], count)
        yield messages
        by_state = GaugeMetricFamily("mailing_mailings", "Mailings by state.", labels=["state"])
        for state, count in now.mailings.items():
            by_state.add_metric([state.value], count)
        yield by_state
        yield GaugeMetricFamily(
            "mailing_batches_waiting", "Released batches that no worker has taken.", value=now.batches_waiting
        )
        gateway = GaugeMetricFamily("mailing_gateway_state", "1 for the state the gateway is in.", labels=["state"])
        for kind in GatewayState:
            gateway.add_metric([kind.value], float(kind is now.gateway))
        yield gateway
        trouble = GaugeMetricFamily(
            "mailing_gateway_trouble", "1 for the reason why the gateway is open or blocked.", labels=["reason"]
        )
        if now.gateway_reason:
            trouble.add_metric([now.gateway_reason], 1.0)
        yield trouble
        yield _reports_failing()


def _reports_failing() -> Metric:
    kinds = [trouble.kind.partition(":")[0] for trouble in report_deliveries.troubles(session())]
    metric = GaugeMetricFamily(
        "mailing_reports_failing", "Mails of the reporter that could not be sent so far.", labels=["kind"]
    )
    for kind in ("daily", "weekly", "alert"):
        metric.add_metric([kind], kinds.count(kind))
    return metric


def exposition() -> tuple[bytes, str]:
    """The numbers of all worker processes together, and their content type."""
    registry = CollectorRegistry(auto_describe=False)
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        MultiProcessCollector(registry)
        own = generate_latest(registry)
    else:
        own = generate_latest(REGISTRY)
    from_database = CollectorRegistry(auto_describe=False)
    from_database.register(_DatabaseCollector())
    return own + generate_latest(from_database), CONTENT_TYPE_LATEST


def count(method: str, route: str | None, status: int, seconds: float) -> None:
    """Count and time a request, by its route and never by its path: ids are no labels."""
    route = route or "none"
    REQUESTS.labels(method if method in METHODS else "other", route, status).inc()
    SECONDS.labels(route).observe(seconds)

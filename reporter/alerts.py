"""What needs a person at once: read from the shared state, every half minute."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from db.models import GatewayState
from db.queries import audience, gateway, report_deliveries, reports
from db.queries.reports import Stuck

THROTTLE_SECONDS = 3600.0
# An outage that ends by itself is nobody's business; refused credentials never end by themselves.
OPEN_SECONDS = 600.0
FAILING_SECONDS = 600.0
FAILING_AT_LEAST = 10
# Long enough for an ending that the throttle kept back, too short for old news after a long stop.
EXPIRED_SINCE = timedelta(hours=3)
NAMED_MAILINGS = 30


def current_alerts(session: Session, now: datetime) -> list[tuple[str, dict[str, Any]]]:
    """The kinds of trouble that there are now, each with what to tell of it."""
    return [
        *_gateway(session),
        *_mailings("mailing_failing", _failing(session)),
        *_mailings("mailing_expired", _newly_expired(session, now)),
    ]


def _gateway(session: Session) -> Iterable[tuple[str, dict[str, Any]]]:
    row = gateway.read(session)
    if row.state is GatewayState.CLOSED:
        return
    lasted = (row.now - row.changed_at).total_seconds()
    if row.state is GatewayState.OPEN and lasted < OPEN_SECONDS:
        return
    # With nothing to send nobody probes: then nothing is known of the gateway, and nothing is lost.
    if audience.due(session):
        yield f"gateway_{row.state.value}", {"since": row.changed_at.isoformat(), "reason": row.reason or ""}


def _failing(session: Session) -> list[Stuck]:
    row = gateway.read(session)
    if row.state is not GatewayState.CLOSED:
        return []  # Not the mailing's fault, and told already.
    return reports.failing(session, row.now - timedelta(seconds=FAILING_SECONDS), FAILING_AT_LEAST)


def _newly_expired(session: Session, now: datetime) -> list[Stuck]:
    told = report_deliveries.told_mailings(session, "mailing_expired", now - 2 * EXPIRED_SINCE)
    return [mailing for mailing in reports.expired(session, now - EXPIRED_SINCE) if mailing.id not in told]


def _mailings(name: str, found: list[Stuck]) -> Iterable[tuple[str, dict[str, Any]]]:
    if found:
        yield name, {"mailings": [mailing._asdict() for mailing in found[:NAMED_MAILINGS]]}

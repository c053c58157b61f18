"""The whole system at a glance, from counters and short tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from db.models import Batch, Gateway, GatewayState, MailingState
from db.queries import statistics


class Overview(NamedTuple):
    """Numbers for a dashboard or a monitor."""

    messages: Mapping[str, int]
    mailings: Mapping[MailingState, int]
    batches_waiting: int
    gateway: GatewayState
    gateway_reason: str | None  # None while it is closed


def read(session: Session) -> Overview:
    """The state of now."""
    state, reason = session.execute(sa.select(Gateway.state, Gateway.reason)).one()
    waiting = sa.select(sa.func.count()).select_from(Batch).where(Batch.worker_id.is_(None))
    return Overview(
        messages=statistics.totals(session),
        mailings=statistics.mailings_by_state(session),
        batches_waiting=session.scalar(waiting) or 0,
        gateway=state,
        gateway_reason=reason,
    )

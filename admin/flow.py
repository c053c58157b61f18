"""The flow of messages over the last month, kept in memory: the past does not change, and reading it takes a while."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.orm import Session

from db.models import Mailing, MessageStatus
from db.queries import dashboard
from db.queries.dashboard import Flow

DAYS = 30
# What is older than this does not change any more, but for mailings that are deleted.
_SETTLED = timedelta(hours=2)
_RELOAD_AFTER = timedelta(minutes=30)

Amounts = Mapping[MessageStatus, int]


class FlowHistory:
    """Arrivals by quarter of an hour: the settled part is read once in a while, the rest every time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._settled: Sequence[Flow] = ()
        self._read_at: datetime | None = None
        self._until: datetime | None = None
        self._deleted_at: datetime | None = None

    def read(self, session: Session, now: datetime) -> list[Flow]:
        """Every arrival of the last month, and a day more for the sake of time zones."""
        deleted_at = session.scalar(sa.select(sa.func.max(Mailing.deleted_at)))
        with self._lock:
            if self._read_at is None or now - self._read_at > _RELOAD_AFTER or deleted_at != self._deleted_at:
                self._until = _quarter(now - _SETTLED)
                flows = dashboard.flow(session, now - timedelta(days=DAYS + 1), dashboard.QUARTER)
                self._settled = [flow for flow in flows if flow.begin < self._until]
                self._read_at, self._deleted_at = now, deleted_at
            until, settled = self._until, self._settled
        assert until is not None
        return [*settled, *dashboard.flow(session, until, dashboard.QUARTER)]


def by_day(flows: Sequence[Flow], zone: ZoneInfo, now: datetime) -> dict[date, dict[MessageStatus, int]]:
    """The last month's days on this zone's calendar, today last, each with its arrivals."""
    today = now.astimezone(zone).date()
    days: dict[date, dict[MessageStatus, int]] = {
        today - timedelta(days=back): defaultdict(int) for back in reversed(range(DAYS))
    }
    for flow in flows:
        day = flow.begin.astimezone(zone).date()
        if day in days:
            days[day][flow.status] += flow.amount
    return days


def _quarter(instant: datetime) -> datetime:
    return instant.replace(minute=instant.minute // 15 * 15, second=0, microsecond=0)

"""What the database knows of itself and of the reports that went out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from db.models import ReportDelivery


class Size(NamedTuple):
    """A table, about how many rows it has, and its bytes with all indexes."""

    table: str
    rows: int
    bytes: int


# A new table was never analyzed, which reltuples tells by -1; of it the rows added since the start of the statistics.
_SIZES = sa.text("""
    SELECT relname, CASE WHEN reltuples < 0 THEN pg_stat_get_live_tuples(oid) ELSE reltuples::bigint END,
           pg_total_relation_size(oid)
    FROM pg_class
    WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace
    ORDER BY 3 DESC LIMIT :shown
""")


def sizes(session: Session, shown: int = 8) -> list[Size]:
    """The largest tables; the rows are PostgreSQL's own estimate."""
    return [Size(*row) for row in session.execute(_SIZES, {"shown": shown})]


def latest_reports(session: Session, limit: int) -> Sequence[ReportDelivery]:
    """The latest reports and alerts by e-mail, newest first."""
    return session.scalars(sa.select(ReportDelivery).order_by(ReportDelivery.id.desc()).limit(limit)).all()

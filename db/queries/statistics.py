"""Numbers from the counters; no message is ever counted for an answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from db.engine import Database
from db.models import Base, Mailing, MailingState, Message, MessageStatus, StatusCount
from db.queries import messages

Counts = dict[str, int]

# Built once: SQLAlchemy takes longer to build a statement than PostgreSQL to run it.
_COUNT = Base.metadata.tables[StatusCount.__tablename__]
_OF_MAILINGS = (
    sa.select(_COUNT.c.mailing_id, _COUNT.c.status, sa.func.sum(_COUNT.c.amount))
    .where(_COUNT.c.mailing_id == sa.any_(sa.bindparam("mailing_ids", type_=ARRAY(sa.BigInteger))))
    .group_by(_COUNT.c.mailing_id, _COUNT.c.status)
)
_TOTALS = (
    sa.select(_COUNT.c.status, sa.func.sum(_COUNT.c.amount))
    .select_from(_COUNT)
    .join(Mailing, Mailing.id == _COUNT.c.mailing_id)
    .where(Mailing.deleted_at.is_(None))
    .group_by(_COUNT.c.status)
)


class Difference(NamedTuple):
    """A counter that does not equal the rows it stands for."""

    mailing_id: int
    status: MessageStatus
    counted: int
    actual: int


def no_counts() -> Counts:
    """Every status with nothing in it."""
    return {status.value: 0 for status in MessageStatus}


def by_mailing(database: Database, mailing_ids: Iterable[int]) -> Mapping[int, Counts]:
    """The counts by status of each of these mailings."""
    counts = {mailing_id: no_counts() for mailing_id in mailing_ids}
    rows = database.execute(_OF_MAILINGS, {"mailing_ids": list(counts)})
    for mailing_id, status, amount in rows:
        counts[mailing_id][status.value] = int(amount)
    return counts


def of_mailing(database: Database, mailing_id: int) -> Counts:
    """The counts by status of one mailing."""
    return by_mailing(database, [mailing_id])[mailing_id]


def totals(database: Database) -> Counts:
    """The counts by status over all mailings that are not deleted."""
    counts = no_counts()
    rows = database.execute(_TOTALS)
    for status, amount in rows:
        counts[status.value] = int(amount)
    return counts


def mailings_by_state(session: Session) -> Mapping[MailingState, int]:
    """How many mailings that are not deleted are in each state."""
    rows = session.execute(
        sa.select(Mailing.state, sa.func.count()).where(Mailing.deleted_at.is_(None)).group_by(Mailing.state)
    )
    found = {row[0]: row[1] for row in rows}
    return {state: found.get(state, 0) for state in MailingState}


def recount(session: Session) -> Sequence[Difference]:
    """Count every message, and return where the counters say otherwise: nowhere, if all is well."""
    told: sa.Label[str] = sa.literal_column(messages.STATUS).label("status")
    actual = sa.select(Message.mailing_id, told, sa.func.count().label("amount")).group_by(sa.text("1, 2")).subquery()
    counted = (
        sa.select(StatusCount.mailing_id, StatusCount.status, sa.func.sum(StatusCount.amount).label("amount"))
        .group_by(StatusCount.mailing_id, StatusCount.status)
        .subquery()
    )
    counted_amount = sa.func.coalesce(counted.c.amount, 0)
    actual_amount = sa.func.coalesce(actual.c.amount, 0)
    mailing_id = sa.func.coalesce(actual.c.mailing_id, counted.c.mailing_id)
    status = sa.func.coalesce(actual.c.status, counted.c.status)
    both = sa.and_(actual.c.mailing_id == counted.c.mailing_id, actual.c.status == counted.c.status)
    rows = session.execute(
        sa.select(mailing_id, status, counted_amount, actual_amount)
        .select_from(actual.join(counted, both, full=True))
        .where(counted_amount != actual_amount)
        .order_by(mailing_id, status)
    )
    return [Difference(mailing, MessageStatus(kind), int(was), int(now)) for mailing, kind, was, now in rows]

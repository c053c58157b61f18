"""What a dashboard shows: flows by time, what runs, what comes, how the gateway answers, who is alive."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from db.models import GatewayTally, Leader, Mailing, MailingState, MessageStatus, Process, StatusFlow
from db.queries.audience import NEXT_DUE

# Every zone's midnight falls on one of these.
QUARTER = timedelta(minutes=15)
# What is due sooner is as good as under way.
RESTING_FROM = timedelta(seconds=30)


class Flow(NamedTuple):
    """So many messages came to a status in the interval that begins here."""

    begin: datetime
    status: MessageStatus
    amount: int


class Answers(NamedTuple):
    """How the gateway answered lately, and the counts for each of `gateway.TIMING_BOUNDS`."""

    answered: int
    troubled: int
    slowed: int
    blocked: int
    timings: Sequence[int]


class Heartbeat(NamedTuple):
    """A process and how long ago it was last heard of."""

    name: str
    kind: str
    capacity: int
    started_at: datetime
    silent_seconds: float
    is_leader: bool


def flow(session: Session, since: datetime, step: timedelta, mailing_id: int | None = None) -> list[Flow]:
    """All arrivals at a status since then, summed up by intervals of this length, over one mailing or all."""
    seconds = int(step.total_seconds())
    interval = (sa.func.floor(sa.extract("epoch", StatusFlow.minute) / seconds) * seconds).label("interval")
    statement = (
        sa.select(sa.func.to_timestamp(interval), StatusFlow.status, sa.func.sum(StatusFlow.amount))
        .where(StatusFlow.minute >= since)
        .group_by(interval, StatusFlow.status)
    )
    if mailing_id is None:
        deleted = sa.select(Mailing.id).where(Mailing.deleted_at.is_not(None))
        statement = statement.where(StatusFlow.mailing_id.not_in(deleted))
    else:
        statement = statement.where(StatusFlow.mailing_id == mailing_id)
    return [Flow(begin, MessageStatus(status), int(amount)) for begin, status, amount in session.execute(statement)]


def flow_span(session: Session, mailing_id: int) -> tuple[datetime, datetime] | None:
    """The first and the last minute in which anything happened to a mailing's messages."""
    statement = sa.select(sa.func.min(StatusFlow.minute), sa.func.max(StatusFlow.minute))
    span: Any = session.execute(statement.where(StatusFlow.mailing_id == mailing_id)).one()
    return (span[0], span[1]) if span[0] else None


def rates(session: Session, mailing_ids: Iterable[int], now: datetime) -> Mapping[int, float]:
    """Messages accepted per second by each of these mailings, over the last one to two minutes."""
    begin = now.replace(second=0, microsecond=0) - timedelta(minutes=1)
    seconds = (now - begin).total_seconds()
    rows = session.execute(
        sa.select(StatusFlow.mailing_id, sa.func.sum(StatusFlow.amount))
        .where(
            StatusFlow.mailing_id.in_(list(mailing_ids)),
            StatusFlow.minute >= begin,
            StatusFlow.status == MessageStatus.SENT,
        )
        .group_by(StatusFlow.mailing_id)
    )
    return {mailing_id: float(amount) / seconds for mailing_id, amount in rows}


_RESTING = sa.text(f"""
    SELECT id, due_at FROM mailing, LATERAL {NEXT_DUE} AS next (due_at)
    WHERE id = ANY(:ids) AND state = 'running' AND due_at > :from AND due_at < ends_at
      AND NOT EXISTS (SELECT FROM batch WHERE mailing_id = mailing.id)
""")


def resting(session: Session, mailing_ids: Iterable[int], now: datetime) -> Mapping[int, datetime]:
    """Which of these mailings run with nothing under way or due for a while yet, and when that ends.

    They wait for sending hours, or for new attempts.
    """
    rows = session.execute(_RESTING, {"ids": list(mailing_ids), "from": now + RESTING_FROM})
    return {row.id: row.due_at for row in rows}


def in_progress(session: Session, limit: int) -> Sequence[Mailing]:
    """The mailings that run or are held, those that began last first."""
    states = [MailingState.RUNNING, MailingState.PAUSED]
    return session.scalars(
        sa.select(Mailing)
        .where(Mailing.state.in_(states), Mailing.deleted_at.is_(None), Mailing.is_test.is_(False))
        .order_by(Mailing.starts_at.desc())
        .limit(limit)
    ).all()


def upcoming(session: Session, limit: int) -> Sequence[Mailing]:
    """The mailings that start next."""
    return session.scalars(
        sa.select(Mailing)
        .where(Mailing.state == MailingState.SCHEDULED, Mailing.deleted_at.is_(None))
        .order_by(Mailing.starts_at)
        .limit(limit)
    ).all()


def answers(session: Session, since: datetime) -> Answers:
    """The gateway's answers since then."""
    row = session.execute(
        sa.select(
            sa.func.coalesce(sa.func.sum(GatewayTally.answered), 0),
            sa.func.coalesce(sa.func.sum(GatewayTally.troubled), 0),
            sa.func.coalesce(sa.func.sum(GatewayTally.slowed), 0),
            sa.func.coalesce(sa.func.sum(GatewayTally.blocked), 0),
        ).where(GatewayTally.at > since)
    ).one()
    timings = session.execute(
        sa.text(
            "SELECT sum(amount) FROM gateway_tally, unnest(timings) WITH ORDINALITY AS bound (amount, place)"
            " WHERE at > :since GROUP BY place ORDER BY place"
        ),
        {"since": since},
    )
    answered, troubled, slowed, blocked = (int(amount) for amount in row)
    return Answers(answered, troubled, slowed, blocked, [int(amount) for (amount,) in timings])


def heartbeats(session: Session) -> list[Heartbeat]:
    """Every dispatcher, sender and reporter that was heard of within the last hour."""
    silent = sa.extract("epoch", sa.func.now() - Process.heartbeat_at)
    leader = sa.exists().where(Leader.holder == Process.id, Leader.lease_until > sa.func.now())
    rows = session.execute(
        sa.select(Process.id, Process.kind, Process.capacity, Process.started_at, silent, leader)
        .where(Process.heartbeat_at > sa.func.now() - timedelta(hours=1))
        .order_by(Process.kind, Process.id)
    )
    return [Heartbeat(*row[:4], float(row[4]), bool(row[5])) for row in rows]

"""Who is owed which mail of the reporter, and what became of it. Leases and throttles go by the database's clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from db.models import DeliveryState, ReportDelivery
from db.queries.statements import rowcount

ALERT_PREFIX = "alert:"
# Any constant: of two reporters that raise the same alert, or look for the next mail, the second sees the first's row.
LOCK = 727010


class Claimed(NamedTuple):
    """A mail in a reporter's hands."""

    id: int
    kind: str
    period: str
    recipient: str
    attempt: int  # 1 for the first; also the token that tells this claim from a later one
    detail: dict[str, Any] | None
    age_seconds: float


class Trouble(NamedTuple):
    """A mail that could not be sent so far."""

    kind: str
    period: str
    state: DeliveryState
    attempts: int
    next_attempt_at: datetime | None
    error: str


def register(session: Session, recipients: Sequence[str], now: datetime) -> None:
    """Note since when these recipients get reports: from now on, the very first ones since anything is known at all."""
    session.execute(
        sa.text(
            "INSERT INTO report_recipient (recipient, since)"
            " SELECT name, CASE WHEN EXISTS (SELECT FROM report_recipient) THEN :now"
            " ELSE least(:now, (SELECT min(minute) FROM status_flow)) END"
            " FROM unnest(CAST(:recipients AS text[])) AS name ON CONFLICT DO NOTHING"
        ),
        {"recipients": list(recipients), "now": now},
    )


def owe(session: Session, kind: str, period: str, recipients: Sequence[str], due_at: datetime) -> int:
    """Make sure that each of these recipients who was there when it became due gets this; how many are new."""
    return rowcount(
        session.execute(
            sa.text(
                "INSERT INTO report_delivery (kind, period, recipient, state, next_attempt_at)"
                " SELECT :kind, :period, recipient, 'pending', now() FROM report_recipient"
                " WHERE recipient = ANY(:recipients) AND since < :due_at ORDER BY recipient ON CONFLICT DO NOTHING"
            ),
            {"kind": kind, "period": period, "recipients": list(recipients), "due_at": due_at},
        )
    )


_RAISE = sa.text("""
    INSERT INTO report_delivery (kind, period, recipient, state, next_attempt_at, detail)
    SELECT :kind, to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24'), name, 'pending', now(), :detail
    FROM unnest(CAST(:recipients AS text[])) AS name
    WHERE NOT EXISTS (
        SELECT FROM report_delivery AS last WHERE last.kind = :kind AND last.recipient = name
          AND last.created_at > now() - make_interval(secs => :throttle)
    ) ORDER BY name ON CONFLICT DO NOTHING
""").bindparams(sa.bindparam("detail", type_=JSONB))


def raise_alert(
    session: Session, name: str, detail: Mapping[str, Any], recipients: Sequence[str], throttle_seconds: float
) -> int:
    """Tell these recipients, unless they were told of this kind of thing lately; how many will be."""
    session.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
    return rowcount(
        session.execute(
            _RAISE,
            {
                "kind": ALERT_PREFIX + name,
                "detail": dict(detail),
                "recipients": list(recipients),
                "throttle": throttle_seconds,
            },
        )
    )


# The oldest first. While one is on its way to somebody, the next must wait, or it could overtake. Those that wait for
# another attempt hold up nothing.
_CLAIM = sa.text("""
    WITH due AS (
        SELECT id FROM report_delivery AS mail
        WHERE recipient = ANY(:recipients)
          AND (next_attempt_at <= clock_timestamp() OR lease_until <= clock_timestamp())
          AND NOT EXISTS (
            SELECT FROM report_delivery AS other
            WHERE other.recipient = mail.recipient AND other.id < mail.id AND other.lease_until > clock_timestamp()
          )
        ORDER BY id LIMIT 1
    )
    UPDATE report_delivery AS mail SET state = 'sending', attempts = attempts + 1, next_attempt_at = NULL,
           lease_until = clock_timestamp() + make_interval(secs => :lease)
    FROM due WHERE mail.id = due.id
      -- Once more: the one whose lease ran out may be noting at this moment that it did send.
      AND (next_attempt_at <= clock_timestamp() OR lease_until <= clock_timestamp())
    RETURNING mail.id, kind, period, recipient, attempts, detail,
              extract(epoch FROM clock_timestamp() - created_at)::float
""")


def claim(session: Session, recipients: Sequence[str], lease_seconds: float) -> Claimed | None:
    """Take the oldest mail that is due, also one whose reporter died; None when there is none."""
    session.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
    row = session.execute(_CLAIM, {"recipients": list(recipients), "lease": lease_seconds}).one_or_none()
    return Claimed(*row) if row else None


def mark_sent(session: Session, claimed: Claimed) -> bool:
    """Note that the server took it; False if the lease had run out and another has claimed it since."""
    return _settle(session, claimed, state=DeliveryState.SENT, sent_at=sa.func.now())


def mark_troubled(session: Session, claimed: Claimed, error: str, retry_after_seconds: float | None) -> bool:
    """Note why it could not be sent, and when to try again; None gives it up."""
    if retry_after_seconds is None:
        return _settle(session, claimed, state=DeliveryState.FAILED, last_error=error)
    due = sa.func.now() + sa.func.make_interval(0, 0, 0, 0, 0, 0, retry_after_seconds)
    return _settle(session, claimed, state=DeliveryState.PENDING, next_attempt_at=due, last_error=error)


def _settle(session: Session, claimed: Claimed, **values: Any) -> bool:
    statement = (
        sa.update(ReportDelivery)
        .where(
            ReportDelivery.id == claimed.id,
            ReportDelivery.state == DeliveryState.SENDING,
            ReportDelivery.attempts == claimed.attempt,
        )
        .values(lease_until=None, **values)
        .execution_options(synchronize_session=False)
    )
    return rowcount(session.execute(statement)) == 1


_TROUBLES = sa.text("""
    SELECT kind, period, state, attempts, next_attempt_at, last_error FROM report_delivery AS mail
    WHERE state <> 'sent' AND last_error IS NOT NULL AND created_at > now() - interval '7 days'
      AND NOT EXISTS (
        SELECT FROM report_delivery AS later
        WHERE later.recipient = mail.recipient AND later.state = 'sent' AND later.id > mail.id
      )
    ORDER BY id
""")


def troubles(session: Session) -> list[Trouble]:
    """The mails of the last week that failed or are being tried again, and that none sent later has made good."""
    return [Trouble(row[0], row[1], DeliveryState(row[2]), *row[3:]) for row in session.execute(_TROUBLES)]


def told_mailings(session: Session, name: str, since: datetime) -> set[int]:
    """The ids of mailings that alerts of this kind have told of since then."""
    rows = session.execute(
        sa.text(
            "SELECT DISTINCT (entry ->> 'id')::bigint FROM report_delivery,"
            " jsonb_array_elements(detail -> 'mailings') AS entry"
            " WHERE kind = :kind AND created_at > :since"
        ),
        {"kind": ALERT_PREFIX + name, "since": since},
    )
    return {row[0] for row in rows}


def forget_old(session: Session, days: int = 400) -> None:
    """Remove what is history."""
    session.execute(
        sa.text("DELETE FROM report_delivery WHERE created_at < now() - make_interval(days => :days)"), {"days": days}
    )

"""The numbers of a report: arrivals at each status in a time, read from the flow by minute and never from all messages.

What only messages can tell (how promptly they were sent, why they failed) is read for the mailings of that time alone,
and for the large ones from an even sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from db.models import ACTIVE_STATES, OPEN_STATUSES, Mailing, MailingState, StatusFlow
from db.queries import statistics
from db.queries.statistics import Counts, no_counts
from db.windows import Window, next_opening

# How many messages of all mailings together are looked at for promptness, and of how many mailings at the most.
SAMPLE, SAMPLED_MAILINGS = 10_000, 100
PROMPT_SECONDS = 10.0
REASONS = 20


class MailingInPeriod(NamedTuple):
    """A mailing that had something happen in a time."""

    id: int
    name: str
    state: MailingState
    starts_at: datetime
    ends_at: datetime
    window: Window | None
    arrivals: Counts  # in that time; `pending` are the messages written
    counts: Counts  # all its messages as they stand now
    first_sent: datetime | None  # the minutes
    last_sent: datetime | None

    @property
    def audience(self) -> int:
        """All its messages."""
        return sum(self.counts.values())


class Waiting(NamedTuple):
    """A mailing with messages still to be sent."""

    id: int
    name: str
    state: MailingState
    ends_at: datetime
    messages: int


class Upcoming(NamedTuple):
    """A mailing that waits for its start."""

    id: int
    name: str
    starts_at: datetime


class Promptness(NamedTuple):
    """Which share of the messages sent went out within seconds of being due, and whether it is from a sample."""

    share: float
    is_estimate: bool


def first_activity(session: Session) -> datetime | None:
    """The first minute of which anything is known."""
    return session.scalar(sa.select(sa.func.min(StatusFlow.minute)))


_ARRIVALS = sa.text("""
    SELECT width_bucket(minute, CAST(:bounds AS timestamptz[])), status, sum(amount)
    FROM status_flow
    WHERE minute >= :start AND minute < :end
      AND mailing_id NOT IN (SELECT id FROM mailing WHERE deleted_at IS NOT NULL)
    GROUP BY 1, 2
""")


def arrivals(session: Session, bounds: Sequence[datetime]) -> list[Counts]:
    """Arrivals at each status between each two neighbouring bounds; a deleted mailing's are left out, as everywhere."""
    found = [no_counts() for _ in bounds[1:]]
    values = {"bounds": list(bounds), "start": bounds[0], "end": bounds[-1]}
    for number, status, amount in session.execute(_ARRIVALS, values):
        found[number - 1][status] = int(amount)
    return found


_MAILINGS = sa.text("""
    SELECT mailing.id, name, state, starts_at, ends_at, window_from, window_to, moved.*
    FROM (
        SELECT mailing_id, status, sum(amount) AS amount, min(minute) AS first, max(minute) AS last
        FROM status_flow WHERE minute >= :start AND minute < :end GROUP BY 1, 2
    ) AS moved JOIN mailing ON mailing.id = moved.mailing_id
    WHERE deleted_at IS NULL ORDER BY mailing.id
""")


def mailings(session: Session, start: datetime, end: datetime) -> list[MailingInPeriod]:
    """The mailings that any message of came to a status in this time, the one that sent most first."""
    rows = session.execute(_MAILINGS, {"start": start, "end": end}).all()
    counts = statistics.by_mailing(session, {row.id for row in rows})
    found: dict[int, MailingInPeriod] = {}
    for row in rows:
        window = Window(row.window_from, row.window_to) if row.window_from is not None else None
        entry = found.get(row.id) or MailingInPeriod(
            row.id, row.name, MailingState(row.state), row.starts_at, row.ends_at, window, no_counts(), counts[row.id],
            None, None,
        )  # fmt: skip
        entry.arrivals[row.status] = int(row.amount)
        found[row.id] = entry._replace(first_sent=row.first, last_sent=row.last) if row.status == "sent" else entry
    return sorted(found.values(), key=lambda mailing: (-mailing.arrivals["sent"], mailing.id))


def waiting(session: Session) -> list[Waiting]:
    """The started mailings with messages that are not final yet, as of now; the largest first."""
    started = sa.select(Mailing).where(
        Mailing.state.in_(ACTIVE_STATES), Mailing.started_at.is_not(None), Mailing.deleted_at.is_(None)
    )
    found = session.scalars(started).all()
    counts = statistics.by_mailing(session, [mailing.id for mailing in found])
    rows = [
        Waiting(mailing.id, mailing.name, mailing.state, mailing.ends_at, _open(counts[mailing.id]))
        for mailing in found
    ]
    return sorted((row for row in rows if row.messages), key=lambda row: (-row.messages, row.id))


def _open(counts: Counts) -> int:
    return sum(counts[status] for status in OPEN_STATUSES)


def upcoming(session: Session, until: datetime) -> list[Upcoming]:
    """The mailings that will start before this time, in that order."""
    statement = (
        sa.select(Mailing.id, Mailing.name, Mailing.starts_at)
        .where(Mailing.state == MailingState.SCHEDULED, Mailing.starts_at < until, Mailing.deleted_at.is_(None))
        .order_by(Mailing.starts_at, Mailing.id)
    )
    return [Upcoming(*row) for row in session.execute(statement)]


_REASONS = sa.text("""
    SELECT last_error, count(*) FROM message
    WHERE mailing_id = ANY(:ids) AND status = 'failed' AND last_error IS NOT NULL
    GROUP BY 1 ORDER BY 2 DESC, 1
""")


def failure_reasons(session: Session, mailing_ids: Sequence[int]) -> list[tuple[str, int]]:
    """Why messages of these mailings are failed now, the most frequent reason first. Read from an index made for it."""
    return [(reason, int(count)) for reason, count in session.execute(_REASONS, {"ids": list(mailing_ids)})][:REASONS]


# All messages of small mailings; of large ones those at evenly spaced ids. Mailings written at the same time share a
# range of ids: the fewer of them are the mailing's own, the closer the points, up to twenty times as many.
_SENT = sa.text("""
    SELECT message.mailing_id, message.created_at, message.sent_at, client.timezone
    FROM (
        SELECT mailing_id, client_id, created_at, sent_at FROM message
        WHERE mailing_id = ANY(:small) AND status IN ('sent', 'delivered')
        UNION ALL
        SELECT large.mailing_id, hit.client_id, hit.created_at, hit.sent_at
        FROM unnest(CAST(:large AS bigint[]), CAST(:audiences AS bigint[])) AS large (mailing_id, audience)
        CROSS JOIN LATERAL (
            SELECT (SELECT id FROM message WHERE mailing_id = large.mailing_id ORDER BY client_id LIMIT 1) AS low,
                   (SELECT id FROM message WHERE mailing_id = large.mailing_id ORDER BY client_id DESC LIMIT 1) AS high
        ) AS ids
        CROSS JOIN LATERAL (
            SELECT least(:size * (high - low + 1) / audience, 20 * :size) AS steps
        ) AS spacing
        CROSS JOIN LATERAL (
            SELECT DISTINCT low + (high - low) * step / steps AS id FROM generate_series(0, steps) AS step OFFSET 0
        ) AS point
        CROSS JOIN LATERAL (
            SELECT mailing_id, client_id, status, created_at, sent_at FROM message WHERE id = point.id OFFSET 0
        ) AS hit
        WHERE hit.mailing_id = large.mailing_id AND hit.status IN ('sent', 'delivered')
    ) AS message
    LEFT JOIN client ON message.mailing_id = ANY(:windowed) AND client.id = message.client_id
    WHERE message.sent_at >= :start AND message.sent_at < :end
""")


def promptness(
    session: Session, found: Sequence[MailingInPeriod], start: datetime, end: datetime
) -> Mapping[int, Promptness]:
    """How promptly the first of these mailings were sent in this time; those of which that is not known are left out.

    A message is due when it is written, or when its client's window next opens. Whatever holds it back after that
    (a pause, retries, the rate limit, an outage) makes it late.
    """
    sending = {mailing.id: mailing for mailing in [m for m in found if m.arrivals["sent"]][:SAMPLED_MAILINGS]}
    few = sum(mailing.audience for mailing in sending.values()) <= 2 * SAMPLE
    size = SAMPLE if few else SAMPLE // len(sending)
    large = [mailing.id for mailing in sending.values() if mailing.audience > size]
    rows = session.execute(
        _SENT,
        {
            "small": [mailing_id for mailing_id in sending if mailing_id not in large],
            "large": large,
            "audiences": [sending[mailing_id].audience for mailing_id in large],
            "windowed": [mailing.id for mailing in sending.values() if mailing.window is not None],
            "size": size,
            "start": start,
            "end": end,
        },
    )
    looked_at = dict.fromkeys(sending, 0)
    prompt = dict.fromkeys(sending, 0)
    due_at: dict[tuple[Window, str, datetime], datetime] = {}
    for mailing_id, created_at, sent_at, zone in rows:
        due, window = created_at, sending[mailing_id].window
        if window is not None and zone is not None:
            key = (window, zone, created_at)
            due = due_at.get(key) or due_at.setdefault(key, next_opening(*key))
        looked_at[mailing_id] += 1
        prompt[mailing_id] += sent_at - due <= timedelta(seconds=PROMPT_SECONDS)
    return {
        mailing_id: Promptness(prompt[mailing_id] / number, mailing_id in large)
        for mailing_id, number in looked_at.items()
        if number
    }


class Stuck(NamedTuple):
    """A mailing that needs a person, with the number of messages that says so."""

    id: int
    name: str
    messages: int


def expired(session: Session, since: datetime) -> list[Stuck]:
    """The mailings that ended since then with messages that could not be sent in time."""
    rows = session.execute(
        sa.text(
            "SELECT mailing.id, name, sum(amount) FROM mailing JOIN status_count ON mailing_id = mailing.id"
            " WHERE state = 'completed' AND finished_at > :since AND deleted_at IS NULL AND status = 'expired'"
            " GROUP BY mailing.id HAVING sum(amount) > 0 ORDER BY mailing.id"
        ),
        {"since": since},
    )
    return [Stuck(row[0], row[1], int(row[2])) for row in rows]


_FAILING = sa.text("""
    SELECT mailing.id, name, troubled + failed FROM mailing
    JOIN LATERAL (
        SELECT coalesce(sum(amount) FILTER (WHERE status = 'failed'), 0) AS failed,
               coalesce(sum(amount) FILTER (WHERE status = 'sent'), 0) AS sent
        FROM status_flow WHERE mailing_id = mailing.id AND minute >= date_trunc('minute', CAST(:since AS timestamptz))
    ) AS flow ON true
    JOIN LATERAL (
        SELECT coalesce(sum(gateway_tally.troubled), 0) AS troubled FROM gateway_tally
        WHERE mailing_id = mailing.id AND at > :since
    ) AS tally ON true
    WHERE state IN ('running', 'paused') AND started_at IS NOT NULL AND deleted_at IS NULL
      AND sent = 0 AND troubled + failed >= :enough
    ORDER BY mailing.id
""")


def failing(session: Session, since: datetime, enough: int) -> list[Stuck]:
    """The started mailings of which nothing was accepted since then, but at least so many calls or messages failed."""
    return [Stuck(row[0], row[1], int(row[2])) for row in session.execute(_FAILING, {"since": since, "enough": enough})]

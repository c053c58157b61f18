"""Everything that a report tells, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from db.models import GatewayState
from db.queries import gateway, reports
from db.queries.gateway import GatewayRow
from db.queries.reports import MailingInPeriod, Promptness, Upcoming, Waiting
from db.queries.statistics import Counts, no_counts
from reporter.periods import Kind, Period, local_day, midnight

# How many periods before a report's own make its average.
AVERAGED = {Kind.DAILY: 7, Kind.WEEKLY: 4}


@dataclasses.dataclass(frozen=True)
class Facts:
    """What happened in a period, and what stands as of now."""

    period: Period
    now: datetime
    totals: Counts  # arrivals at each status; `pending` are the messages written
    previous: Counts | None  # of the period before; None when nothing is known of it
    average: Mapping[str, float] | None  # of the periods before, as far as anything is known of them
    averaged: int  # over how many
    columns: Sequence[tuple[datetime, Counts]]
    mailings: Sequence[MailingInPeriod]
    promptness: Mapping[int, Promptness]
    reasons: Sequence[tuple[str, int]]
    waiting: Sequence[Waiting]
    upcoming: Sequence[Upcoming]  # until the end of the present day
    gateway: GatewayRow

    @property
    def is_empty(self) -> bool:
        """Whether nothing happened to any message."""
        return not any(self.totals.values())

    @property
    def is_unfinished(self) -> bool:
        """Whether the period is not over."""
        return self.now < self.period.end

    @property
    def gateway_is_well(self) -> bool:
        """Whether messages flow, as far as the gateway goes."""
        return self.gateway.state is GatewayState.CLOSED


def collect(session: Session, period: Period, now: datetime) -> Facts:
    """Read everything about a period; a fraction of a second, however many messages there ever were."""
    starts = period.columns()
    columns = reports.arrivals(session, [*starts, period.end])
    previous, average, averaged = _comparison(session, period, now)
    mailings = reports.mailings(session, period.start, period.end)
    failed = [mailing.id for mailing in mailings if mailing.arrivals["failed"]]
    tomorrow = midnight(local_day(now, period.zone) + timedelta(days=1), period.zone)
    return Facts(
        period=period,
        now=now,
        totals=_sum(columns),
        previous=previous,
        average=average,
        averaged=averaged,
        columns=list(zip(starts, columns, strict=True)),
        mailings=mailings,
        promptness=reports.promptness(session, mailings, period.start, period.end),
        reasons=reports.failure_reasons(session, failed),
        waiting=reports.waiting(session),
        upcoming=reports.upcoming(session, tomorrow),
        gateway=gateway.read(session),
    )


def _comparison(
    session: Session, period: Period, now: datetime
) -> tuple[Counts | None, Mapping[str, float] | None, int]:
    """The period before, the average of some, and of how many; nothing for a period that is not over."""
    first = reports.first_activity(session)
    if first is None or now < period.end:
        return None, None, 0
    begun = local_day(first, period.zone)
    known = [back for back in range(1, AVERAGED[period.kind] + 1) if period.before(back).last >= begun]
    if not known:
        return None, None, 0
    bounds = [period.before(back).start for back in reversed(known)] + [period.start]
    earlier = reports.arrivals(session, bounds)
    total = _sum(earlier)
    return earlier[-1], {status: count / len(known) for status, count in total.items()}, len(known)


def _sum(counts: Sequence[Counts]) -> Counts:
    total = no_counts()
    for each in counts:
        for status, count in each.items():
            total[status] += count
    return total

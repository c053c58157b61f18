"""The days and weeks that reports are about, by the clock of one time zone: pure rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from typing import Self
from zoneinfo import ZoneInfo

CATCH_UP_DAYS = 7
HOUR = timedelta(hours=1)


class Kind(StrEnum):
    """What a report is about."""

    DAILY = "daily"
    WEEKLY = "weekly"


@dataclasses.dataclass(frozen=True)
class Period:
    """Some local days in a row: one, or a week from Monday on."""

    kind: Kind
    first: date
    zone: str

    @classmethod
    def from_key(cls, kind: Kind, key: str, zone: str) -> Self:
        """The period that has this key; ValueError if none has."""
        return cls(kind, date.fromisoformat(f"{key}-1" if kind is Kind.WEEKLY else key), zone)

    @classmethod
    def week_of(cls, day: date, zone: str) -> Self:
        """The week that holds this day."""
        return cls(Kind.WEEKLY, day - timedelta(days=day.weekday()), zone)

    @property
    def days(self) -> int:
        """How many."""
        return 7 if self.kind is Kind.WEEKLY else 1

    @property
    def key(self) -> str:
        """A name that sorts: `2026-11-22`, `2026-W47`."""
        if self.kind is Kind.DAILY:
            return self.first.isoformat()
        year, week, _ = self.first.isocalendar()
        return f"{year}-W{week:02}"

    @property
    def last(self) -> date:
        """Its last day."""
        return self.first + timedelta(days=self.days - 1)

    @property
    def start(self) -> datetime:
        """Its first instant."""
        return midnight(self.first, self.zone)

    @property
    def end(self) -> datetime:
        """The first instant after it."""
        return midnight(self.last + timedelta(days=1), self.zone)

    def due_at(self, clock: time) -> datetime:
        """When its report goes out: on the day after, as soon as the wall clock shows this time."""
        return instant(self.last + timedelta(days=1), clock, self.zone)

    def before(self, count: int) -> Self:
        """The period of the same kind so many periods earlier."""
        return dataclasses.replace(self, first=self.first - timedelta(days=count * self.days))

    def columns(self) -> list[datetime]:
        """The starts of the columns of its chart: hours of a day, days of a week.

        A day of 23 or 25 hours has as many columns; in between, time runs on evenly.
        """
        if self.kind is Kind.WEEKLY:
            return [midnight(self.first + timedelta(days=number), self.zone) for number in range(self.days)]
        columns = [self.start]
        while columns[-1] + HOUR < self.end:
            columns.append(columns[-1] + HOUR)
        return columns


def midnight(day: date, zone: str) -> datetime:
    """The instant at which a local day begins; where the clock skips midnight, that of the jump."""
    return instant(day, time(), zone)


def instant(day: date, clock: time, zone: str) -> datetime:
    """The instant of a local time: the earlier where there are two, the skipped time later where there is none."""
    return datetime.combine(day, clock.replace(fold=0), ZoneInfo(zone)).astimezone(UTC)


def local_day(at: datetime, zone: str) -> date:
    """The day that a calendar in this zone shows."""
    return at.astimezone(ZoneInfo(zone)).date()


def due(now: datetime, clock: time, zone: str, *, weekly: bool) -> Sequence[Period]:
    """The periods whose report has become due in the last seven days, oldest first."""
    today = local_day(now, zone)
    days = [Period(Kind.DAILY, today - timedelta(days=back), zone) for back in range(CATCH_UP_DAYS + 1, 0, -1)]
    weeks = [Period.week_of(today, zone).before(back) for back in (2, 1)] if weekly else []
    earliest = now - timedelta(days=CATCH_UP_DAYS)
    found = [period for period in [*days, *weeks] if earliest < period.due_at(clock) <= now]
    return sorted(found, key=lambda period: (period.due_at(clock), period.kind))

"""Days and weeks by the clock of a zone, daylight saving included."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta

import pytest

from reporter.periods import Kind, Period, due

BERLIN = "Europe/Berlin"


def day(text: str, zone: str = BERLIN) -> Period:
    return Period(Kind.DAILY, date.fromisoformat(text), zone)


@pytest.mark.parametrize(
    ("first", "zone", "start", "hours"),
    [
        ("2026-11-22", "Europe/Moscow", "2026-11-21T21:00", 24),
        ("2026-03-29", BERLIN, "2026-03-28T23:00", 23),  # 02:00 becomes 03:00
        ("2026-10-25", BERLIN, "2026-10-24T22:00", 25),  # 03:00 becomes 02:00
        ("2026-11-22", "Asia/Kolkata", "2026-11-21T18:30", 24),
        ("2026-04-24", "Africa/Cairo", "2026-04-23T22:00", 23),  # there is no midnight: the day begins at 01:00
        ("2026-10-04", "Australia/Lord_Howe", "2026-10-03T13:30", 23.5),
    ],
)
def test_a_day_is_as_long_as_the_zone_makes_it(first: str, zone: str, start: str, hours: float) -> None:
    period = day(first, zone)

    assert period.start == datetime.fromisoformat(start).replace(tzinfo=UTC)
    assert period.end - period.start == timedelta(hours=hours)


@pytest.mark.parametrize(("first", "columns"), [("2026-11-22", 24), ("2026-03-29", 23), ("2026-10-25", 25)])
def test_the_chart_of_a_day_has_a_column_for_every_hour_there_was(first: str, columns: int) -> None:
    found = day(first).columns()

    assert len(found) == columns
    assert found[0] == day(first).start
    assert found[-1] < day(first).end


def test_a_week_has_a_column_for_every_day_even_when_one_is_short() -> None:
    week = Period.week_of(date(2026, 3, 29), BERLIN)

    assert week.first == date(2026, 3, 23)
    assert [column.hour for column in week.columns()] == [23] * 7  # UTC; the next midnight would be at 22
    assert week.end - week.start == timedelta(hours=7 * 24 - 1)


@pytest.mark.parametrize(
    ("period", "key"),
    [
        (day("2026-11-22"), "2026-11-22"),
        (Period.week_of(date(2026, 11, 22), BERLIN), "2026-W47"),
        (Period.week_of(date(2027, 1, 1), BERLIN), "2026-W53"),
    ],
)
def test_a_period_is_found_again_by_its_key(period: Period, key: str) -> None:
    assert period.key == key
    assert Period.from_key(period.kind, key, BERLIN) == period


@pytest.mark.parametrize(
    ("first", "clock", "expected"),
    [
        ("2026-11-22", time(7, 30), "2026-11-23T06:30"),  # winter: UTC+1
        ("2026-07-01", time(7, 30), "2026-07-02T05:30"),  # summer: UTC+2
        ("2026-03-28", time(2, 30), "2026-03-29T01:30"),  # skipped: 03:30 on the clock
        ("2026-10-24", time(2, 30), "2026-10-25T00:30"),  # twice: the first time
    ],
)
def test_a_report_is_due_by_the_wall_clock(first: str, clock: time, expected: str) -> None:
    assert day(first).due_at(clock) == datetime.fromisoformat(expected).replace(tzinfo=UTC)


def test_nothing_is_due_before_its_time() -> None:
    just_before = datetime(2026, 11, 23, 6, 29, 59, tzinfo=UTC)

    found = due(just_before, time(7, 30), BERLIN, weekly=False)

    assert found[-1] == day("2026-11-21")


def test_seven_days_are_caught_up_oldest_first_and_the_week_after_its_last_day() -> None:
    monday = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)

    found = due(monday, time(7, 30), BERLIN, weekly=True)

    assert [period.key for period in found] == [
        *(f"2026-11-{number}" for number in range(16, 23)),
        "2026-W47",
    ]


def test_a_week_is_caught_up_in_the_days_after_it() -> None:
    saturday = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)

    assert "2026-W47" in [period.key for period in due(saturday, time(7, 30), BERLIN, weekly=True)]

"""Local sending windows, over midnight and over daylight saving."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta

import pytest

from db import rules
from db.windows import Window, is_open, next_opening

DAY = Window(time(9), time(21))
NIGHT = Window(time(22), time(2))


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("window", "zone", "at", "opens"),
    [
        # Moscow is UTC+3 all year.
        (DAY, "Europe/Moscow", "2026-11-23T06:00", "2026-11-23T06:00"),  # 09:00 sharp is inside
        (DAY, "Europe/Moscow", "2026-11-23T05:59:59", "2026-11-23T06:00"),
        (DAY, "Europe/Moscow", "2026-11-23T17:59:59", "2026-11-23T17:59:59"),
        (DAY, "Europe/Moscow", "2026-11-23T18:00", "2026-11-24T06:00"),  # 21:00 sharp is outside
        # Kathmandu is UTC+5:45.
        (DAY, "Asia/Kathmandu", "2026-11-23T00:00", "2026-11-23T03:15"),
        # Over midnight.
        (NIGHT, "Europe/Moscow", "2026-11-23T18:59", "2026-11-23T19:00"),
        (NIGHT, "Europe/Moscow", "2026-11-23T22:30", "2026-11-23T22:30"),  # 01:30
        (NIGHT, "Europe/Moscow", "2026-11-23T23:00", "2026-11-24T19:00"),  # 02:00 sharp is outside
        # Berlin goes to summer time on 2026-03-29 at 01:00 UTC: 02:00 to 03:00 do not exist.
        (Window(time(2, 30), time(4)), "Europe/Berlin", "2026-03-29T00:00", "2026-03-29T01:00"),
        (Window(time(2, 10), time(2, 50)), "Europe/Berlin", "2026-03-29T00:00", "2026-03-30T00:10"),  # skipped that day
        (DAY, "Europe/Berlin", "2026-03-28T20:00", "2026-03-29T07:00"),  # 09:00 is an hour earlier in UTC
        (Window(time(3), time(5)), "Europe/Berlin", "2026-03-29T00:30", "2026-03-29T01:00"),
        # Berlin goes back on 2026-10-25 at 01:00 UTC: 02:00 to 03:00 come twice.
        (Window(time(2, 30), time(4)), "Europe/Berlin", "2026-10-25T00:00", "2026-10-25T00:30"),
        (Window(time(2), time(2, 30)), "Europe/Berlin", "2026-10-25T00:40", "2026-10-25T01:00"),  # the second 02:00
        (DAY, "Europe/Berlin", "2026-10-24T19:00", "2026-10-25T08:00"),
        # Lord Howe moves by half an hour: on 2026-10-04 at 15:30 UTC the day before, 02:00 becomes 02:30.
        (Window(time(2, 10), time(3)), "Australia/Lord_Howe", "2026-10-03T15:00", "2026-10-03T15:30"),
        # Apia skipped all of 2011-12-30.
        (Window(time(10), time(11)), "Pacific/Apia", "2011-12-29T22:00", "2011-12-30T20:00"),
    ],
)
def test_the_next_opening_is_the_first_instant_inside(window: Window, zone: str, at: str, opens: str) -> None:
    assert next_opening(window, zone, utc(at)) == utc(opens)


def test_a_zone_that_is_not_known_any_more_is_taken_for_utc() -> None:
    assert next_opening(DAY, "US/Pacific-New", utc("2026-11-23T05:00")) == utc("2026-11-23T09:00")


def test_the_zone_of_a_machine_is_none_of_the_worlds() -> None:
    assert "Europe/Moscow" in rules.timezones()
    assert "localtime" not in rules.timezones()


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "UTC"])
@pytest.mark.parametrize("window", [DAY, NIGHT, Window(time(2, 15), time(2, 45)), Window(time(0), time(23, 59))])
def test_nothing_before_the_next_opening_is_inside(zone: str, window: Window) -> None:
    """Minute by minute, over the days of both changes, against the plain rule."""
    for start in ("2026-03-28T00:00", "2026-10-24T12:00", "2026-10-03T00:00"):
        at = utc(start)
        for _ in range(40):
            opens = next_opening(window, zone, at)
            assert is_open(window, zone, opens)
            minute = at
            while minute < opens:
                assert not is_open(window, zone, minute)
                minute += timedelta(minutes=1)
            at = max(opens, at) + timedelta(minutes=97)

"""When the breaker opens, and how the pace moves."""

from __future__ import annotations

import pytest

from db.queries.gateway import Tally
from sender import breaker


@pytest.mark.parametrize(
    ("tallies", "failing"),
    [
        ({}, None),
        ({1: Tally(troubled=9)}, None),  # too few to say
        ({1: Tally(troubled=10)}, True),
        ({1: Tally(answered=3, troubled=7)}, True),
        ({1: Tally(answered=4, troubled=6)}, False),
        ({1: Tally(troubled=1000), 2: Tally(answered=1)}, False),  # another mailing's success proves the gateway alive
        ({1: Tally(troubled=1000), 2: Tally(slowed=50)}, True),
        ({1: Tally(troubled=20), 2: Tally(troubled=1)}, True),
    ],
)
def test_the_breaker_opens_when_most_calls_of_every_mailing_fail(
    tallies: dict[int, Tally], failing: bool | None
) -> None:
    assert breaker.is_failing(tallies) is failing


def test_the_pace_halves_what_was_really_going_on() -> None:
    assert breaker.lowered_pace(None, 800.0) == 400.0
    assert breaker.lowered_pace(1000.0, 800.0) == 400.0
    assert breaker.lowered_pace(100.0, 800.0) == 50.0
    assert breaker.lowered_pace(None, 0.0) == breaker.SLOWEST_PACE


def test_the_pace_climbs_until_it_limits_nothing() -> None:
    assert breaker.raised_pace(100.0, 1000.0) == 125.0
    assert breaker.raised_pace(900.0, 1000.0) is None
    pace: float | None = 1.0
    seconds = 0
    while pace is not None:
        pace = breaker.raised_pace(pace, None)
        seconds += 1
    assert seconds < 60

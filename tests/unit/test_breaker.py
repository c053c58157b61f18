"""When the breaker opens, and how the pace moves."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import pytest

from db.queries.gateway import Tally
from sender import breaker

LONG_SUSPECTED = 60.0


def is_failing_after(windows: list[dict[int, Tally]], under_way: AbstractSet[int], suspected_for: float) -> bool:
    """Whether the gateway counts as failing when this is all that was heard for so many seconds."""
    suspicion = breaker.Suspicion()
    suspicion.is_sure(windows, under_way, now=1000.0)
    return suspicion.is_sure(windows, under_way, now=1000.0 + suspected_for)


@pytest.mark.parametrize(
    ("tallies", "failing"),
    [
        ({}, False),
        ({1: Tally(troubled=9)}, False),  # too few to say
        ({1: Tally(troubled=10)}, True),
        ({1: Tally(answered=3, troubled=7)}, True),
        ({1: Tally(answered=4, troubled=6)}, False),
        ({1: Tally(troubled=1000), 2: Tally(answered=1)}, False),  # another mailing's success proves the gateway alive
        ({1: Tally(troubled=1000), 2: Tally(slowed=50)}, True),
        ({1: Tally(troubled=20), 2: Tally(troubled=1)}, True),
    ],
)
def test_the_breaker_opens_when_most_calls_of_every_mailing_fail(tallies: dict[int, Tally], failing: bool) -> None:
    assert is_failing_after([tallies, tallies, tallies], tallies.keys(), LONG_SUSPECTED) is failing


def test_a_mailing_that_was_heard_a_while_ago_still_proves_the_gateway_alive() -> None:
    failing, fine = Tally(troubled=100), Tally(answered=100)
    # The second is between two groups of answers: the shortest window knows nothing of it.
    assert not is_failing_after([{1: failing}, {1: failing, 2: fine}, {1: failing, 2: fine}], {1, 2}, LONG_SUSPECTED)


def test_a_mailing_that_has_ended_proves_nothing() -> None:
    failing, fine = Tally(troubled=100), Tally(answered=100)
    assert is_failing_after([{1: failing}, {1: failing, 2: fine}, {1: failing, 2: fine}], {1}, LONG_SUSPECTED)


def test_an_outage_shows_in_the_newest_calls_of_every_mailing() -> None:
    newest = {1: Tally(troubled=50), 2: Tally(troubled=3)}
    whole = {1: Tally(answered=9_000, troubled=50), 2: Tally(answered=90, troubled=3)}
    assert is_failing_after([newest, whole, whole], {1, 2}, LONG_SUSPECTED)


def test_every_mailing_under_way_is_heard_first() -> None:
    windows = [{1: Tally(troubled=100)}] * 3
    assert not is_failing_after(windows, {1, 2}, breaker.HEARING_SECONDS / 2)
    assert is_failing_after(windows, {1, 2}, breaker.HEARING_SECONDS * 2)
    assert is_failing_after(windows, {1}, breaker.HEARING_SECONDS / 2)


def test_what_was_suspected_before_an_answer_counts_no_longer() -> None:
    trouble, answers = [{1: Tally(troubled=100)}] * 3, [{1: Tally(answered=100)}] * 3
    suspicion = breaker.Suspicion()
    assert not suspicion.is_sure(trouble, {1, 2}, now=0.0)
    assert not suspicion.is_sure(answers, {1, 2}, now=1.0)
    assert not suspicion.is_sure(trouble, {1, 2}, now=breaker.HEARING_SECONDS + 0.5)
    assert suspicion.is_sure(trouble, {1, 2}, now=2 * breaker.HEARING_SECONDS + 0.5)


@pytest.mark.parametrize(
    ("failed_in_a_row", "on_the_wire", "away"),
    [(0, 0, False), (1, 0, False), (2, 0, True), (2, 2, True), (2, 3, False), (9, 1000, False)],
)
def test_with_few_calls_two_in_a_row_are_enough_unless_more_are_still_to_be_heard(
    failed_in_a_row: int, on_the_wire: int, away: bool
) -> None:
    assert breaker.is_away(failed_in_a_row, on_the_wire) is away


def test_calls_are_few_when_less_than_ten_of_all_mailings_failed() -> None:
    assert breaker.are_few({1: Tally(answered=1000, troubled=5), 2: Tally(troubled=4)})
    assert not breaker.are_few({1: Tally(troubled=5), 2: Tally(troubled=5)})


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


def test_a_mailing_whose_calls_do_not_all_fail_is_probed_first_and_equals_take_turns() -> None:
    lately = {1: Tally(troubled=1), 2: Tally(troubled=3), 3: Tally(answered=5)}
    last_served = {1: 4, 2: 7, 3: 9}
    assert breaker.mailing_to_probe({1, 2, 3, 4}, lately, last_served) == 4
    assert breaker.mailing_to_probe({1, 2, 3}, lately, last_served) == 3
    assert breaker.mailing_to_probe({1, 2}, lately, last_served) == 1

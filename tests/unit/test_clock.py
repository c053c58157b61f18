"""The database's clock as the senders see it: never slow, whatever its answers took."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from sender.clock import TRUSTED_SECONDS, DatabaseClock

# The database lives in another year: nothing here can come from this machine's clock.
THERE = datetime(2031, 5, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize("took", [0.0, 0.1, TRUSTED_SECONDS * 0.9])
def test_an_instant_is_never_seen_later_than_it_is(took: float) -> None:
    clock = DatabaseClock()
    asked_at = time.monotonic() - took
    # The question took all the time, or the answer did: the database read its clock in between.
    for read_at in (asked_at, asked_at + took):
        clock.sync(THERE, asked_at)
        true_monotonic = read_at + 10.0
        assert clock.monotonic(THERE + timedelta(seconds=10)) <= true_monotonic + 1e-3


def test_an_answer_that_took_long_does_not_move_the_clock() -> None:
    clock = DatabaseClock()
    clock.sync(THERE, time.monotonic())
    clock.sync(THERE + timedelta(hours=1), time.monotonic() - TRUSTED_SECONDS - 0.1)
    assert clock.now() - THERE < timedelta(seconds=5)


def test_the_first_answer_is_taken_whatever_it_took() -> None:
    clock = DatabaseClock()
    clock.sync(THERE, time.monotonic() - 2.0)
    assert clock.now() - THERE < timedelta(seconds=5)

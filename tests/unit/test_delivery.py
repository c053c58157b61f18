"""What may be called for at a moment: a batch's window and end, also when people move them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from datetime import time as clock_time

from db.queries.batches import Recipient, Standing, TakenBatch
from db.windows import Window
from sender.clock import DatabaseClock
from sender.delivery import Call, Delivery, Result, Skip
from sender.outcomes import Terms

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
CALL = Call(Recipient(1, 1, 0, "+79161234567", "UTC", {}, opted_out=False), 79161234567, "Hello")
MORNING = Window(clock_time(9), clock_time(12))


class Clock(DatabaseClock):
    """The database's clock, set by hand; the monotonic one goes along, with the noon of that day as zero."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.seconds)

    def monotonic(self, instant: datetime) -> float:
        return (instant - NOON).total_seconds()


class Sink:
    """Nobody asks here what was skipped."""

    def put(self, delivery: Delivery, results: Sequence[Result]) -> None:
        pass


def delivery(clock: Clock, window: Window | None, ends_at: datetime = NOON + timedelta(days=1)) -> Delivery:
    batch = TakenBatch(1, 1, "Hello", Standing(True, ends_at, window), False, [CALL.recipient])
    return Delivery(batch, Terms(ends_at, window, False, 20), [CALL], clock, math.inf, Sink())


def may_start(sent: Delivery, clock: Clock, seconds: float) -> bool:
    """Whether a call may start so many seconds after noon."""
    clock.seconds = seconds
    return sent.objection(CALL, seconds) is None


def test_nothing_starts_from_the_moment_on_at_which_the_window_closes() -> None:
    clock = Clock(-10)
    sent = delivery(clock, MORNING)
    assert [may_start(sent, clock, seconds) for seconds in (-10, -0.4, -0.06)] == [True, True, True]
    assert not may_start(sent, clock, -0.04)  # On the wire it would be past noon.


def test_a_window_opens_at_once() -> None:
    clock = Clock(-10)
    sent = delivery(clock, Window(clock_time(12), clock_time(13)))
    assert [may_start(sent, clock, seconds) for seconds in (-10, -0.4, 0.01)] == [False, False, True]


def test_a_call_that_took_long_to_connect_is_looked_at_again() -> None:
    clock = Clock(-1)
    sent = delivery(clock, MORNING)
    assert sent.next_calls(1, -1) == [CALL]
    clock.seconds = 2
    assert sent.objection(CALL, 2) is Skip.CLOSED
    sent.stop()
    assert sent.objection(CALL, 2) is Skip.RETURNED


def test_an_end_and_a_window_that_were_moved_go_for_what_is_in_hand() -> None:
    clock = Clock(-10)
    sent = delivery(clock, MORNING, ends_at=NOON)
    sent.renewed(Standing(True, NOON + timedelta(hours=1), None), 60, asked_at=time.monotonic())
    assert (sent.terms.ends_at, sent.terms.window) == (NOON + timedelta(hours=1), None)
    assert may_start(sent, clock, 5)
    sent.renewed(Standing(True, NOON + timedelta(hours=1), MORNING), 60, asked_at=time.monotonic())
    assert not may_start(sent, clock, 6)

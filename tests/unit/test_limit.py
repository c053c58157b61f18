"""How many calls are in flight at gateways of several kinds; each is a rule for how long answers take."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from sender.limit import FIRST, Limit

TIMEOUT_SECONDS = 10.0


class Trial:
    """Calls a gateway as fast as the limit allows, on a clock of its own."""

    def __init__(self, answer_seconds: Callable[[int], float], most: int = 1600) -> None:
        self.limit = Limit(most, TIMEOUT_SECONDS)
        self.answer_seconds = answer_seconds  # from the number in flight
        self.now = 100.0
        self.in_flight: list[tuple[float, float]] = []  # when answered, begun
        self.slowest = 0.0
        self.answers = 0

    def run(self, seconds: float) -> Trial:
        end = self.now + seconds
        self.slowest, self.answers = 0.0, 0
        while self.now < end:
            while len(self.in_flight) < int(self.limit.value):
                took = min(TIMEOUT_SECONDS, self.answer_seconds(len(self.in_flight) + 1))
                heapq.heappush(self.in_flight, (self.now + took, self.now))
            self.now, begun = heapq.heappop(self.in_flight)
            self.slowest = max(self.slowest, self.now - begun)
            self.answers += 1
            self.limit.answered(self.now - begun, self.now)
        return self


def test_it_begins_with_few_and_doubles_with_every_round() -> None:
    trial = Trial(lambda _: 0.5)
    assert trial.limit.value == FIRST
    trial.run(1.1)
    assert 3 * FIRST <= trial.limit.value <= 4 * FIRST + 1
    assert trial.run(5).limit.value == 1600


def test_a_gateway_that_queues_is_not_driven_into_time_outs() -> None:
    trial = Trial(lambda in_flight: in_flight / 100)  # a hundred a second: all 1,600 would wait for sixteen
    assert trial.run(60).slowest < TIMEOUT_SECONDS
    settled = trial.run(300)
    assert settled.slowest < TIMEOUT_SECONDS / 2
    assert settled.answers / 300 > 95  # and has always something to do


def test_a_gateway_that_is_slow_by_nature_gets_all_calls() -> None:
    trial = Trial(lambda _: 4.0).run(120)
    assert trial.limit.value == 1600
    assert Trial(lambda _: 4.0).run(600).answers > 1600 / 4 * 600 * 0.9


def test_one_that_becomes_quick_again_is_watched_as_before() -> None:
    slow = 4.0
    trial = Trial(lambda in_flight: slow + in_flight / 1000).run(120)
    slow = 0.1
    trial.run(20)
    assert trial.limit.value == 1600
    trial.answer_seconds = lambda in_flight: in_flight / 100
    assert trial.run(300).run(300).slowest < TIMEOUT_SECONDS / 2


def test_some_calls_that_hang_do_not_lower_it_for_long() -> None:
    count = 0

    def some_hang(_: int) -> float:
        nonlocal count
        count += 1
        return TIMEOUT_SECONDS if count % 20 == 0 else 0.05

    assert Trial(some_hang).run(300).limit.value > 1000


def test_refused_connections_lower_it_once_a_moment() -> None:
    limit = Trial(lambda _: 0.1).run(10).limit
    for instant in (200.0, 200.1, 200.2):
        limit.refused(instant)
    assert limit.value == 0.7 * 1600
    limit.refused(200.6)
    assert limit.value < 0.5 * 1600


def test_after_a_trip_it_begins_with_one() -> None:
    limit = Trial(lambda _: 0.1).run(10).limit
    limit.trip()
    assert limit.value == 1

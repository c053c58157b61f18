"""How many calls are in flight at gateways of several kinds; each is a rule for how long answers take."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import pytest

from sender.limit import FIRST, Limit

TIMEOUT_SECONDS = 10.0


class Trial:
    """Some processes call one gateway as fast as their limits allow, on a clock of their own."""

    def __init__(self, answer_seconds: Callable[[int], float], most: int = 1600, processes: int = 1) -> None:
        self.limits = [Limit(most, TIMEOUT_SECONDS) for _ in range(processes)]
        self.limit = self.limits[0]
        self.answer_seconds = answer_seconds  # from the number in flight
        self.now = 100.0
        self.in_flight: list[tuple[float, float, int]] = []  # when answered, begun, and by which process
        self.calls = [0] * processes  # in flight
        self.slowest = 0.0
        self.answers = 0

    def run(self, seconds: float) -> Trial:
        end = self.now + seconds
        self.slowest, self.answers = 0.0, 0
        while self.now < end:
            for process, limit in enumerate(self.limits):
                while self.calls[process] < int(limit.value):
                    took = min(TIMEOUT_SECONDS, self.answer_seconds(len(self.in_flight) + 1))
                    heapq.heappush(self.in_flight, (self.now + took, self.now, process))
                    self.calls[process] += 1
            self.now, begun, process = heapq.heappop(self.in_flight)
            self.slowest = max(self.slowest, self.now - begun)
            self.answers += 1
            self.limits[process].answered([self.now - begun], self.calls[process], self.now)
            self.calls[process] -= 1
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


@pytest.mark.parametrize("each_seconds", [0.01, 0.05])
def test_two_processes_do_not_drive_one_another_into_time_outs(each_seconds: float) -> None:
    trial = Trial(lambda in_flight: in_flight * each_seconds, processes=2).run(60)
    for _ in range(20):
        assert trial.run(60).slowest < TIMEOUT_SECONDS
        assert trial.answers / 60 > 0.95 / each_seconds


VARYING: dict[str, Callable[[random.Random], float]] = {
    "exponential": lambda chance: chance.expovariate(1 / 0.5),
    "uniform": lambda chance: chance.uniform(0.0, 1.0),
    "lognormal": lambda chance: chance.lognormvariate(-1.2, 1.0),
    "two kinds": lambda chance: 2.0 if chance.random() < 0.5 else 0.1,
}


@pytest.mark.parametrize("seconds", VARYING.values(), ids=VARYING.keys())
def test_answers_that_take_now_more_now_less_time_do_not_hold_it_back(
    seconds: Callable[[random.Random], float],
) -> None:
    chance = random.Random(1)
    assert Trial(lambda _: seconds(chance)).run(10).limit.value == 1600


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

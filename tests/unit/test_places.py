"""How many batches the dispatcher has under way, and how large they are."""

from __future__ import annotations

import math

import pytest

from db.queries.planned import BATCH_SIZE
from sender.places import (
    BATCHES_TOGETHER,
    PIPELINE_SECONDS,
    in_turn,
    may_hold_another,
    places,
    share_of_place,
)

PLACES_OF_A_PROCESS = 6


def test_without_a_limit_every_place_gets_a_full_batch() -> None:
    assert places(12, None) == (12, BATCH_SIZE)


@pytest.mark.parametrize("processes", [1, 2, 6, 20])
@pytest.mark.parametrize("rate", [50.0, 200.0, 1_000.0, 5_000.0])
def test_under_a_limit_every_process_has_another_batch_at_hand(processes: int, rate: float) -> None:
    number, size = places(processes * PLACES_OF_A_PROCESS, rate)
    messages = number * size
    assert number >= 2 * processes
    assert size <= BATCH_SIZE
    # Not much more than three seconds' worth, and not less unless the places do not hold it.
    assert messages <= PIPELINE_SECONDS * rate + number
    assert messages >= min(PIPELINE_SECONDS * rate, processes * PLACES_OF_A_PROCESS * BATCH_SIZE)


@pytest.mark.parametrize("rate", [0.2, 1.0, 4.0])
def test_a_slow_gateway_gets_single_messages(rate: float) -> None:
    number, size = places(12, rate)
    assert 1 <= number * size <= PIPELINE_SECONDS * rate + number


def test_without_senders_there_is_no_place() -> None:
    assert places(0, 100.0)[0] == 0


@pytest.mark.parametrize("room", [1, 2, 3, 6, 12, 120])
def test_one_mailing_alone_has_three_quarters_of_the_places(room: int) -> None:
    held = 0
    while may_hold_another(held, held, room):
        held += 1
    assert held == math.ceil(room * 0.75)


def test_however_much_large_mailings_have_to_send_two_places_in_twelve_are_left_for_another() -> None:
    assert may_hold_another(5, 9, 12)
    assert not may_hold_another(5, 10, 12)
    assert may_hold_another(0, 11, 12)
    assert not may_hold_another(0, 12, 12)


def test_mailings_have_their_turn_the_one_with_the_fewest_batches_first() -> None:
    assert in_turn({1, 2, 3}, {1: 2, 3: 1}, {}, 12) == [2, 3, 1]
    assert in_turn({1, 2, 3}, {}, {1: 30, 2: 10, 3: 20}, 12) == [2, 3, 1]
    # Another has a batch under way, and nothing due.
    assert in_turn({1}, {1: 0, 9: 1}, {}, 12) == [1]


def test_no_more_mailings_have_a_turn_than_there_are_places() -> None:
    many = range(1, 301)
    assert in_turn(many, {}, {}, 12) == list(range(1, 1 + BATCHES_TOGETHER))
    assert in_turn(many, {1: 9, 2: 2.5}, {}, 12) == [3, 4, 5, 6]
    # The two places left are for mailings that have none.
    assert in_turn({1, 2, 3}, {1: 5, 2: 5}, {}, 12) == [3]
    assert in_turn({1, 2}, {1: 5, 2: 5}, {}, 12) == []


def test_small_batches_share_a_place() -> None:
    assert share_of_place(1000, 1000) == 1
    assert share_of_place(500, 1000) == 0.5
    # What goes together takes a place also if each is tiny: a thread is busy with it.
    assert share_of_place(1, 1000) * BATCHES_TOGETHER == 1
    # Released before the limit made batches small: it is one all the same.
    assert share_of_place(1000, 25) == 1


def test_many_small_mailings_fill_the_places_as_a_large_one_does() -> None:
    held: dict[int, float] = {}
    messages = 0
    while mailings := in_turn(set(range(1, 301)) - held.keys(), held, {}, 12):
        held |= {mailing_id: share_of_place(100, 1000) for mailing_id in mailings}
        messages += 100 * len(mailings)
    assert messages == 9_600

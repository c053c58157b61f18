"""How many batches the dispatcher has under way, and how large they are."""

from __future__ import annotations

import pytest

from sender.dispatcher import BATCH_SIZE, PIPELINE_SECONDS, places

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

"""From an answer to what is recorded, and the retry schedule."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, time, timedelta

import pytest

from db.models import MessageStatus
from db.queries.batches import Recipient
from db.queries.gateway import Tally
from db.queries.outcomes import Outcome
from db.windows import Window
from sender.answers import Answer, Fault, judge
from sender.outcomes import Terms, add_to_tally, after_answer, is_sent_at_once, outside_window
from sender.retry import (
    BASE_SECONDS,
    CAP_SECONDS,
    LONGEST_DEFERRAL_SECONDS,
    backoff_seconds,
    deferral_seconds,
)

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)  # 15:00 in Moscow
ANNA = Recipient(7, 70, 0, "+79161234567", "Europe/Moscow", {}, opted_out=False)
TERMS = Terms(ends_at=NOW + timedelta(hours=1), window=None, is_probe=False, max_attempts=20)
ACCEPTED = Answer(12, None, 200, b'{"code": 0}')
BROKEN = Answer(34, None, 500)


def _lowest(low: float, _high: float) -> float:
    return low


def _highest(_low: float, high: float) -> float:
    return high


def after(answer: Answer, recipient: Recipient = ANNA, terms: Terms = TERMS, wait: float | None = 10.0) -> Outcome:
    return after_answer(recipient, answer, judge(answer), terms, NOW, wait)


def test_a_first_success_needs_no_history() -> None:
    assert is_sent_at_once(ANNA, judge(ACCEPTED))
    assert not is_sent_at_once(ANNA._replace(attempts=1), judge(ACCEPTED))
    assert not is_sent_at_once(ANNA, judge(BROKEN))


def test_a_success_after_failures_ends_the_history() -> None:
    outcome = after(ACCEPTED, ANNA._replace(attempts=2))
    assert (outcome.status, outcome.outcome, outcome.http_status, outcome.milliseconds) == ("sent", "sent", 200, 12)


def test_trouble_is_counted_and_retried_after_the_wait() -> None:
    outcome = after(BROKEN)
    assert (outcome.status, outcome.counted, outcome.due_at) == ("pending", True, NOW + timedelta(seconds=10))
    assert (outcome.error, outcome.outcome, outcome.reason, outcome.http_status) == (
        "http_500",
        "retry",
        "http_500",
        500,
    )


def test_a_refusal_is_final_at_once() -> None:
    outcome = after(Answer(5, None, 422))
    assert (outcome.status, outcome.counted, outcome.error, outcome.outcome) == ("failed", True, "http_422", "failed")


def test_the_last_allowed_attempt_fails_the_message_with_its_reason() -> None:
    assert after(BROKEN, ANNA._replace(attempts=18)).status is MessageStatus.PENDING
    outcome = after(BROKEN, ANNA._replace(attempts=19))
    assert (outcome.status, outcome.error, outcome.due_at) == ("failed", "http_500", None)


@pytest.mark.parametrize("answer", [Answer(5, None, 401), Answer(5, None, 429)])
def test_blocking_and_slowing_answers_count_no_attempt_and_never_fail_a_message(answer: Answer) -> None:
    outcome = after(answer, ANNA._replace(attempts=19))
    assert (outcome.status, outcome.counted) == (MessageStatus.PENDING, False)


def test_a_failed_probe_counts_no_attempt() -> None:
    probe = dataclasses.replace(TERMS, is_probe=True, max_attempts=1)
    assert after(BROKEN, terms=probe).counted is False
    assert after(BROKEN, terms=probe).status is MessageStatus.PENDING
    assert after(ACCEPTED, terms=probe).counted is True


def test_a_retry_beyond_the_end_expires_the_message_with_its_last_reason() -> None:
    outcome = after(Answer(5, Fault.TIMEOUT), wait=3600.0)
    assert (outcome.status, outcome.error, outcome.due_at, outcome.counted) == ("expired", "timeout", None, True)


def test_a_retry_outside_the_window_moves_to_its_next_opening() -> None:
    day = dataclasses.replace(TERMS, window=Window(time(9), time(15, 0, 5)), ends_at=NOW + timedelta(days=2))
    # 15:00:00 in Moscow plus ten seconds is past 15:00:05: tomorrow at nine, 06:00 UTC.
    assert after(BROKEN, terms=day).due_at == datetime(2026, 11, 24, 6, 0, tzinfo=UTC)
    assert after(BROKEN, terms=dataclasses.replace(day, ends_at=NOW + timedelta(hours=9))).status == "expired"


def test_a_closed_window_defers_uncounted_or_expires() -> None:
    night = dataclasses.replace(TERMS, window=Window(time(22), time(23)), ends_at=NOW + timedelta(hours=8))
    outcome = outside_window(ANNA, night, NOW)
    assert (outcome.status, outcome.counted, outcome.due_at) == ("pending", False, NOW + timedelta(hours=7))
    expired = outside_window(ANNA, dataclasses.replace(night, ends_at=NOW + timedelta(hours=7)), NOW)
    assert (expired.status, expired.error) == ("expired", "ended")
    assert outcome.keeps_error
    assert expired.keeps_error  # Why an earlier call failed tells more.


def test_the_tally_tells_the_gateways_trouble_from_the_messages_fault() -> None:
    tally = Tally()
    for answer in (
        ACCEPTED,
        Answer(5, None, 400),
        BROKEN,
        Answer(5, Fault.RESET),
        Answer(5, None, 429),
        Answer(5, None, 403),
    ):
        add_to_tally(tally, judge(answer))
    assert tally == Tally(answered=2, troubled=2, slowed=1, blocked=1, reason="http_403")


@pytest.mark.parametrize(("attempt", "bound"), [(1, 2.0), (2, 4.0), (3, 8.0), (8, 256.0), (9, 300.0), (10_000, 300.0)])
def test_the_back_off_doubles_to_its_cap_with_full_jitter(attempt: int, bound: float) -> None:
    assert backoff_seconds(attempt, uniform=_highest) == min(bound, CAP_SECONDS)
    assert backoff_seconds(attempt, uniform=_lowest) == 0.0
    assert 0 <= backoff_seconds(attempt) <= BASE_SECONDS * 2 ** min(attempt, 60)


def test_a_deferral_is_never_shorter_than_asked_for_nor_absurdly_long() -> None:
    assert deferral_seconds(7.0, uniform=_lowest) == 7.0
    assert deferral_seconds(7.0, uniform=_highest) == pytest.approx(8.2)
    assert deferral_seconds(1e12, uniform=_lowest) == LONGEST_DEFERRAL_SECONDS
    assert deferral_seconds(None) >= 2.0

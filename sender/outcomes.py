"""From a gateway's answer to what is recorded of the message: pure rules, no HTTP, no database."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta

from db.models import MessageStatus
from db.queries.batches import Recipient
from db.queries.gateway import Tally
from db.queries.outcomes import Outcome
from db.windows import Window, next_opening
from sender.answers import Answer, Judgement, Verdict
from sender.retry import backoff_seconds, deferral_seconds

# The word for each verdict in a message's history.
HISTORY_WORDS = {
    Verdict.REFUSED: "failed",
    Verdict.BLOCKED: "blocked",
    Verdict.DEFERRED: "deferred",
    Verdict.TROUBLE: "retry",
    Verdict.UNKNOWN: "retry",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Terms:
    """What the batch says about all of its messages."""

    ends_at: datetime
    window: Window | None
    is_probe: bool
    max_attempts: int


def after_answer(
    recipient: Recipient,
    answer: Answer,
    judgement: Judgement,
    terms: Terms,
    now: datetime,
    wait_seconds: float | None = None,
) -> Outcome:
    """What becomes of a message after a call; `wait_seconds` overrides the back-off in tests."""
    if judgement.verdict is Verdict.ACCEPTED:
        return _accepted(recipient, answer, now)
    if judgement.verdict is Verdict.REFUSED:
        return _outcome(recipient, answer, judgement, now, MessageStatus.FAILED, counted=True)
    counted = judgement.verdict in (Verdict.TROUBLE, Verdict.UNKNOWN) and not terms.is_probe
    if counted and recipient.attempts + 1 >= terms.max_attempts:
        return _outcome(recipient, answer, judgement, now, MessageStatus.FAILED, counted=True)
    if wait_seconds is None:
        wait_seconds = _wait_seconds(recipient, answer, judgement)
    due_at = _due_at(recipient, terms, now, wait_seconds)
    if due_at >= terms.ends_at:
        return _outcome(recipient, answer, judgement, now, MessageStatus.EXPIRED, counted=counted)
    return _outcome(recipient, answer, judgement, now, MessageStatus.PENDING, counted=counted, due_at=due_at)


def is_sent_at_once(recipient: Recipient, judgement: Judgement) -> bool:
    """Whether the message was accepted at its first attempt: there is nothing to tell of it but that."""
    return judgement.verdict is Verdict.ACCEPTED and recipient.attempts == 0


def outside_window(recipient: Recipient, terms: Terms, now: datetime) -> Outcome:
    """What becomes of a message whose client's window is closed just now."""
    due_at = _due_at(recipient, terms, now, 0.0)
    if due_at >= terms.ends_at:
        return Outcome(recipient.message_id, MessageStatus.EXPIRED, error="ended", keeps_error=True)
    return Outcome(recipient.message_id, MessageStatus.PENDING, due_at=due_at, keeps_error=True)


def taken_back(recipient: Recipient, now: datetime) -> Outcome:
    """What becomes of a message that was released and not called for: due again, as if nothing had been."""
    return Outcome(recipient.message_id, MessageStatus.PENDING, due_at=now, keeps_error=True)


def unsendable(recipient: Recipient, status: MessageStatus, reason: str, now: datetime) -> Outcome:
    """What becomes of a message that is not worth a call: the client is gone, or the text cannot be filled in."""
    word = "failed" if status is MessageStatus.FAILED else None
    return Outcome(recipient.message_id, status, error=reason, outcome=word, reason=reason, at=now)


def add_to_tally(tally: Tally, judgement: Judgement) -> None:
    """Count an answer for the breaker and the pace."""
    match judgement.verdict:
        case Verdict.ACCEPTED | Verdict.REFUSED:
            tally.answered += 1
            return
        case Verdict.BLOCKED:
            tally.blocked += 1
        case Verdict.DEFERRED:
            tally.slowed += 1
        case _:
            tally.troubled += 1
    tally.reason = judgement.reason


def _wait_seconds(recipient: Recipient, answer: Answer, judgement: Judgement) -> float:
    if judgement.verdict is Verdict.DEFERRED:
        return deferral_seconds(answer.retry_after)
    if judgement.verdict is Verdict.BLOCKED:
        return 0.0  # The dispatcher holds everything back; no message is to blame.
    return backoff_seconds(recipient.attempts + 1)


def _due_at(recipient: Recipient, terms: Terms, now: datetime, wait_seconds: float) -> datetime:
    at = now + timedelta(seconds=wait_seconds)
    if terms.window is None or recipient.timezone is None:
        return at
    return next_opening(terms.window, recipient.timezone, at)


def _accepted(recipient: Recipient, answer: Answer, now: datetime) -> Outcome:
    return Outcome(
        recipient.message_id,
        MessageStatus.SENT,
        counted=True,
        outcome="sent",
        http_status=answer.http_status,
        milliseconds=answer.milliseconds,
        at=now,
    )


def _outcome(
    recipient: Recipient,
    answer: Answer,
    judgement: Judgement,
    now: datetime,
    status: MessageStatus,
    *,
    counted: bool,
    due_at: datetime | None = None,
) -> Outcome:
    return Outcome(
        recipient.message_id,
        status,
        counted=counted,
        due_at=due_at,
        error=judgement.reason,
        outcome=HISTORY_WORDS[judgement.verdict],
        reason=judgement.reason,
        http_status=answer.http_status,
        milliseconds=answer.milliseconds,
        at=now,
    )

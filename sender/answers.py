"""What an answer of the gateway means: the one table that classifies every one of them."""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

ACCEPTED_CODE = 0
REFUSING_STATUSES = frozenset({400, 404, 409, 413, 422})
BLOCKING_STATUSES = frozenset({401, 403})


class Verdict(StrEnum):
    """What to do about an answer."""

    ACCEPTED = "accepted"  # the gateway has the message
    REFUSED = "refused"  # this message can never go
    BLOCKED = "blocked"  # our credentials are wrong: nothing can go
    DEFERRED = "deferred"  # slow down, this message later
    TROUBLE = "trouble"  # it did not arrive: try again
    UNKNOWN = "unknown"  # it may have been accepted: try again under the same id, counted apart


class Fault(StrEnum):
    """How a call ended without a whole HTTP answer; the value is the reason that is stored and counted."""

    DNS = "dns"
    REFUSED = "connection_refused"
    TLS = "tls"
    CONNECT_TIMEOUT = "timeout_connect"
    TIMEOUT = "timeout"  # the request was written, no answer in time
    BODY_TIMEOUT = "timeout_body"  # the answer began and did not end in time
    RESET = "connection_reset"  # after the request was, or may have been, written
    CLOSED = "connection_closed"  # closed without an answer
    TRUNCATED = "truncated"  # the body ended before its announced length
    TOO_LARGE = "body_too_large"
    NOT_HTTP = "not_http"
    OTHER = "transport"


# The request may have reached the gateway, so it may have been accepted.
AMBIGUOUS_FAULTS = frozenset(Fault) - {Fault.DNS, Fault.REFUSED, Fault.TLS, Fault.CONNECT_TIMEOUT}


class Answer(NamedTuple):
    """What came back from one call."""

    milliseconds: int
    fault: Fault | None = None
    http_status: int | None = None  # None when no status line arrived
    body: bytes = b""
    retry_after: float | None = None  # seconds


class Judgement(NamedTuple):
    """The verdict with its short countable reason (None when accepted)."""

    verdict: Verdict
    reason: str | None = None


_ACCEPTED = Judgement(Verdict.ACCEPTED)


def judge(answer: Answer) -> Judgement:
    """Classify an answer. Never raises, whatever the gateway sent."""
    status = answer.http_status
    # A status beyond 2xx is clear without its body, whatever became of that.
    if status is not None and status >= 300:
        return _judge_status(status, answer.retry_after)
    if answer.fault is not None:
        return Judgement(Verdict.UNKNOWN if answer.fault in AMBIGUOUS_FAULTS else Verdict.TROUBLE, answer.fault.value)
    return _judge_success(answer.body)


def _judge_status(status: int, retry_after: float | None) -> Judgement:
    reason = f"http_{status}"
    if status in REFUSING_STATUSES:
        return Judgement(Verdict.REFUSED, reason)
    if status in BLOCKING_STATUSES:
        return Judgement(Verdict.BLOCKED, reason)
    if status == 429 or (status == 503 and retry_after is not None):
        return Judgement(Verdict.DEFERRED, reason)
    # 5xx, redirects (not followed: the token is for the configured address), and the 4xx that say nothing of this
    # message (405, 408, 425, ...): worth another attempt.
    return Judgement(Verdict.TROUBLE, "redirect" if status < 400 else reason)


# A gateway accepts with the same few bytes a million times.
@lru_cache(maxsize=64)
def _judge_success(body: bytes) -> Judgement:
    try:
        answer: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return Judgement(Verdict.UNKNOWN, "not_json" if body else "empty_body")
    # A bool is an int in Python, and `false == 0`: an answer of {"code": false} is not one of ours.
    if not isinstance(answer, dict) or type(answer.get("code")) is not int:
        return Judgement(Verdict.UNKNOWN, "wrong_shape")
    code = answer["code"]
    if code == ACCEPTED_CODE:
        return _ACCEPTED
    if code in REFUSING_STATUSES:  # A body that names a permanent refusal.
        return Judgement(Verdict.REFUSED, f"code_{code}")
    return Judgement(Verdict.UNKNOWN, "wrong_code")

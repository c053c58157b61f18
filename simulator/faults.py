"""What can go wrong at the gateway: one small class for each kind of fault, all listed in `KINDS`.

The fields of a class are the fields of its JSON object; `simulator.rules` adds those that say when a fault applies.
A fault is of one of three sorts: `Delay` postpones the answer, `BadAnswer` replaces it, `Refuse` shuts the door.
"""

import json
from collections import deque
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from random import Random
from typing import Any, ClassVar, Literal

from simulator.answers import ACCEPTED_BODY, Answer, Then, http


@dataclass(kw_only=True)
class Fault:
    """The base of all kinds. A constructor raises ValueError for values that make no sense."""

    kind: ClassVar[str]


@dataclass(kw_only=True)
class Delay(Fault):
    """Postpones the answer; several that match add up."""

    def seconds(self, random: Random) -> float:
        """Return how long to wait before answering."""
        raise NotImplementedError


@dataclass(kw_only=True)
class BadAnswer(Fault):
    """Replaces the answer. With `accepted` the message counts as accepted all the same: the ambiguous case."""

    accepted: bool = False
    prepared: Answer = field(init=False)  # Given by the kinds whose answer is always the same.

    def answer(self, now: float) -> Answer | None:
        """Return the answer to give at `now`, None to let this request pass."""
        answer = self.make(now)
        if answer is None or not self.accepted:
            return answer
        return replace(answer, accepted=True, label=f"{answer.label} after accepting")

    def make(self, now: float) -> Answer | None:  # noqa: ARG002 - some kinds need the time
        """Return the answer as if the message was not accepted."""
        return self.prepared


@dataclass(kw_only=True)
class Latency(Delay):
    """Every answer takes `milliseconds`: fixed; uniform up to `max_milliseconds`; or the median of a lognormal."""

    kind = "latency"
    milliseconds: float
    distribution: Literal["fixed", "uniform", "lognormal"] = "fixed"
    max_milliseconds: float | None = None  # The upper end of uniform; a cap for lognormal.
    sigma: float = 0.5  # The width of lognormal.

    def __post_init__(self) -> None:
        within("milliseconds", self.milliseconds, 0, 3_600_000)
        within("sigma", self.sigma, 0, 5)
        if self.max_milliseconds is not None:
            within("max_milliseconds", self.max_milliseconds, self.milliseconds, 3_600_000)
        if self.distribution == "uniform" and self.max_milliseconds is None:
            raise ValueError("a uniform distribution needs max_milliseconds")

    def seconds(self, random: Random) -> float:
        value, cap = self.milliseconds, self.max_milliseconds
        if self.distribution == "uniform" and cap is not None:
            value = random.uniform(value, cap)
        elif self.distribution == "lognormal":
            value *= random.lognormvariate(0, self.sigma)
        return (value if cap is None else min(value, cap)) / 1000


@dataclass(kw_only=True)
class Status(BadAnswer):
    """An HTTP status, with Retry-After as given, or as the HTTP date that many seconds ahead."""

    kind = "status"
    status: int = 500
    retry_after: str | int | None = None
    retry_after_date: float | None = None
    body: str | None = None
    content_type: str = "application/json"

    def __post_init__(self) -> None:
        within("status", self.status, 200, 599)
        if self.retry_after is not None and self.retry_after_date is not None:
            raise ValueError("give retry_after or retry_after_date, not both")
        if self.retry_after_date is not None:
            within("retry_after_date", self.retry_after_date, -86_400, 86_400)
        plain("retry_after", str(self.retry_after))
        plain("content_type", self.content_type)

    def make(self, now: float) -> Answer:
        headers = {}
        if self.retry_after is not None:
            headers["retry_after"] = str(self.retry_after)
        elif self.retry_after_date is not None:
            headers["retry_after"] = formatdate(now + self.retry_after_date, usegmt=True)
        body = json.dumps({"code": self.status, "message": "simulated"}) if self.body is None else self.body
        return Answer(str(self.status), http(self.status, body.encode(), self.content_type, **headers))


@dataclass(kw_only=True)
class Unauthorized(Status):
    """Our credentials are refused although they are right."""

    kind = "unauthorized"
    status: int = 401

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.status not in (401, 403):
            raise ValueError("status must be 401 or 403")


@dataclass(kw_only=True)
class RateLimit(BadAnswer):
    """More than `per_second` requests in a sliding second get a 429 with Retry-After."""

    kind = "rate_limit"
    per_second: int
    retry_after: str | int | None = 1

    def __post_init__(self) -> None:
        within("per_second", self.per_second, 1, 1_000_000)
        self.refused = Status(status=429, retry_after=self.retry_after)
        self.passed: deque[float] = deque()

    def make(self, now: float) -> Answer | None:
        while self.passed and self.passed[0] <= now - 1:
            self.passed.popleft()
        if len(self.passed) >= self.per_second:
            return self.refused.make(now)
        self.passed.append(now)
        return None


@dataclass(kw_only=True)
class Html(BadAnswer):
    """200 with a web page, as a captive portal or a maintenance page gives."""

    kind = "html"
    prepared = Answer("html", http(200, b"<!doctype html><title>Maintenance</title><h1>Back soon</h1>", "text/html"))


@dataclass(kw_only=True)
class Truncated(BadAnswer):
    """200 whose body ends before its Content-Length: the connection closes in the middle of the JSON."""

    kind = "truncated"
    prepared = Answer("truncated", http(200, ACCEPTED_BODY)[:-10], Then.CLOSE)


@dataclass(kw_only=True)
class WrongShape(BadAnswer):
    """200 with JSON that is not what the contract says."""

    kind = "wrong_shape"
    body: Any = "accepted"

    def __post_init__(self) -> None:
        self.prepared = Answer(self.kind, http(200, json.dumps(self.body).encode()))


@dataclass(kw_only=True)
class WrongCode(BadAnswer):
    """200 in the right shape with a code that is not success."""

    kind = "wrong_code"
    code: int = 7
    message: str = "not today"

    def __post_init__(self) -> None:
        body = json.dumps({"code": self.code, "message": self.message})
        self.prepared = Answer(self.kind, http(200, body.encode()))


@dataclass(kw_only=True)
class Empty(BadAnswer):
    """200 with no body at all."""

    kind = "empty"
    prepared = Answer("empty", http(200, b""))


@dataclass(kw_only=True)
class Huge(BadAnswer):
    """200 with a body of `megabytes` which, read to its end, would even be a valid acceptance."""

    kind = "huge"
    megabytes: int = 10

    def __post_init__(self) -> None:
        within("megabytes", self.megabytes, 1, 1024)
        self.prepared = Answer(self.kind, http(200, ACCEPTED_BODY.rjust(self.megabytes * 1_000_000)))


@dataclass(kw_only=True)
class Drip(BadAnswer):
    """A good answer whose body comes one byte every `seconds`."""

    kind = "drip"
    seconds: float = 1.0

    def __post_init__(self) -> None:
        within("seconds", self.seconds, 0.001, 3600)
        self.prepared = Answer(self.kind, http(200, ACCEPTED_BODY), seconds_per_byte=self.seconds)


@dataclass(kw_only=True)
class Hang(BadAnswer):
    """No answer, ever; the connection stays open until the caller gives up."""

    kind = "hang"
    prepared = Answer("hang", then=Then.HANG)


@dataclass(kw_only=True)
class Reset(BadAnswer):
    """The connection is reset (RST) once the request was read."""

    kind = "reset"
    prepared = Answer("reset", then=Then.RESET)


@dataclass(kw_only=True)
class Close(BadAnswer):
    """The connection is closed in order (FIN) without an answer."""

    kind = "close"
    prepared = Answer("close", then=Then.CLOSE)


@dataclass(kw_only=True)
class Redirect(BadAnswer):
    """A redirect to somewhere that must not be followed with our token."""

    kind = "redirect"
    status: Literal[301, 302, 303, 307, 308] = 302
    location: str = "http://127.0.0.1:9/elsewhere"

    def __post_init__(self) -> None:
        plain("location", self.location)
        self.prepared = Answer(str(self.status), http(self.status, b"", "text/plain", location=self.location))


@dataclass(kw_only=True)
class Refuse(Fault):
    """No connection can be made: refused, reset as soon as it is accepted, or lost in silence. Open ones are reset."""

    kind = "refuse"
    how: Literal["refuse", "reset", "silence"] = "refuse"


KINDS: dict[str, type[Fault]] = {
    fault.kind: fault
    for fault in (
        Latency,
        Status,
        Unauthorized,
        RateLimit,
        Html,
        Truncated,
        WrongShape,
        WrongCode,
        Empty,
        Huge,
        Drip,
        Hang,
        Reset,
        Close,
        Redirect,
        Refuse,
    )
}


def within(name: str, value: float, low: float, high: float) -> None:
    """Raise ValueError unless low <= value <= high; NaN is in no range."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low:g} and {high:g}")


def plain(name: str, value: str) -> None:
    """Raise ValueError for text that cannot stand in a header."""
    if not value.isascii() or not value.isprintable():
        raise ValueError(f"{name} must be printable ASCII")

"""The gateway itself: what it answers to /send, and the control and reporting endpoints around it."""

import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import parse_qs

from simulator.answers import Answer, http, json_answer, refusal
from simulator.connection import Request
from simulator.ledger import Ledger, clock
from simulator.rules import Rule, RuleError, Rules, parse, parse_one

PAGE = (Path(__file__).parent / "page.html").read_bytes()
FORM_ERROR = "the body must be JSON with exactly an id, a phone of 11 to 15 digits and a text"
MAX_PAGE = 10_000
# An order is answered when the listener has seen it: a caller who asked for an outage can rely on it from then on.
SETTLING_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Call:
    """What a control or reporting endpoint needs to know."""

    body: bytes
    query: dict[str, str]


Handler = Callable[[Call], Answer]


class BadRequestError(ValueError):
    """A request that is answered with 400 and the text of the error."""


class Gateway:
    """Everything one simulator knows. It plays the application behind every connection."""

    def __init__(
        self,
        token: str | None = None,
        faults: list[dict[str, Any]] | None = None,
        seed: int | None = None,
        outages_can_be_ended: bool = False,
    ) -> None:
        """Raise RuleError if the faults to start with are wrong. No token, or an empty one, lets everybody in."""
        self.ledger = Ledger()
        self.token = token
        self.random = Random(seed)
        self.outages_can_be_ended = outages_can_be_ended
        self.initial_faults = faults or []
        self.rules = Rules(self.random, self._checked(parse(self.initial_faults, clock())))
        self.on_accepted: Callable[[int], None] | None = None  # Set where delivery receipts are wanted.
        self.receipts_summary: Callable[[], dict[str, int]] = dict
        self._handlers: dict[tuple[bytes, str], Handler] = {
            (b"GET", "/"): lambda _: Answer("200", http(200, PAGE, "text/html; charset=utf-8")),
            (b"GET", "/healthz"): lambda _: json_answer({"status": "ok"}),
            (b"GET", "/control"): lambda _: self._control(),
            (b"PUT", "/control"): self._put_control,
            (b"POST", "/control"): self._post_control,
            (b"DELETE", "/control"): self._delete_control,
            (b"GET", "/received"): lambda _: json_answer(self.summary()),
            (b"DELETE", "/received"): self._forget,
            (b"GET", "/received/ids"): self._ids,
            (b"GET", "/received/latest"): self._latest,
            (b"GET", "/timeline"): self._timeline,
            (b"GET", "/arrivals"): self._arrivals,
        }

    def started(self, request: Request) -> None:
        """Count a message that waits for its answer."""
        if is_send(request):
            self.ledger.started()

    def finished(self, request: Request, abandoned: bool) -> None:
        """Count a message that was answered, or whose caller went away."""
        if is_send(request):
            self.ledger.finished(abandoned)

    def answer(self, request: Request) -> tuple[float, Answer]:
        """Return the delay in seconds and the answer for any request."""
        if is_send(request):
            return self._send(request)
        return SETTLING_SECONDS if changes_rules(request) else 0.0, self._respond(request)

    def summary(self) -> dict[str, Any]:
        """Return the counts over everything received, and over the receipts sent."""
        return {"now": clock(), **self.ledger.summary(), "receipts": self.receipts_summary()}

    # The contract: messages are sent here.

    def _send(self, request: Request) -> tuple[float, Answer]:
        now = clock()
        if request.method != b"POST":
            return 0.0, self._complain(405, "only POST is allowed here", request, now)
        if self.token and not hmac.compare_digest(request.authorization, b"Bearer " + self.token.encode()):
            return 0.0, self._complain(401, "wrong or missing bearer token", request, now)
        try:
            message_id, phone, text = read_message(request)
        except BadRequestError as error:
            return 0.0, self._complain(400, str(error), request, now)
        attempt = self.ledger.attempts_of(message_id) + 1
        delay, answer = self.rules.decide(message_id, phone, attempt, now)
        first = self.ledger.record(message_id, phone, text, answer.label, answer.accepted, now)
        if first and self.on_accepted:
            self.on_accepted(message_id)
        return delay, answer

    def _complain(self, status: int, reason: str, request: Request, now: float) -> Answer:
        self.ledger.complain(status, reason, request.target.decode("latin-1")[:200], now)
        return refusal(status, reason)

    # Everything else

    def _respond(self, request: Request) -> Answer:
        target, _, query_string = request.target.decode("latin-1").partition("?")
        query = {name: values[-1] for name, values in parse_qs(query_string).items()}
        path = target.rstrip("/") or "/"
        try:
            if handler := self._handlers.get((request.method, path)):
                return handler(Call(request.body, query))
            if request.method == b"GET" and path.startswith("/received/"):
                return json_answer(self.ledger.one(whole_number(path.removeprefix("/received/"))))
        except (BadRequestError, RuleError) as error:
            return refusal(400, str(error))
        except KeyError:
            return refusal(404, "no such id was received")
        return refusal(404, "there is no such endpoint")

    def _control(self) -> Answer:
        return json_answer({"token_required": bool(self.token), "faults": self.rules.describe(clock())})

    def _put_control(self, call: Call) -> Answer:
        document = json_object(call.body)
        if unknown := document.keys() - {"faults", "token", "seed"}:
            raise BadRequestError(f"unknown field {min(unknown)!r}; known are faults, token, seed")
        token, seed = document.get("token", self.token), document.get("seed")
        if not isinstance(token, str | None) or not isinstance(seed, int | None):
            raise BadRequestError("token must be a string or null, seed an integer or null")
        if "faults" in document:
            self.rules.rules = self._checked(parse(document["faults"], clock()))
        self.token = token
        if seed is not None:
            self.random.seed(seed)
        return self._control()

    def _post_control(self, call: Call) -> Answer:
        self.rules.rules += self._checked([parse_one(json_object(call.body), clock())])
        return self._control()

    def _delete_control(self, _: Call) -> Answer:
        self.rules.rules = parse(self.initial_faults, clock())
        return self._control()

    def _checked(self, rules: list[Rule]) -> list[Rule]:
        endless = any(rule.fault.kind == "refuse" and rule.selection.for_seconds is None for rule in rules)
        if endless and not self.outages_can_be_ended:
            raise RuleError("refuse: without --control-port it needs for_seconds, or nobody could end it")
        return rules

    def _forget(self, _: Call) -> Answer:
        self.ledger.forget()
        return json_answer(self.summary())

    def _ids(self, call: Call) -> Answer:
        after = whole_number(call.query["after"]) if "after" in call.query else None
        limit = min(whole_number(call.query.get("limit", "1000")), MAX_PAGE)
        items = self.ledger.page(after, limit)
        return json_answer({"items": items, "next": items[-1]["id"] if items and len(items) == limit else None})

    def _latest(self, call: Call) -> Answer:
        return json_answer({"items": self.ledger.latest(min(whole_number(call.query.get("limit", "20")), MAX_PAGE))})

    def _timeline(self, call: Call) -> Answer:
        try:
            since = float(call.query.get("since", "0"))
        except ValueError:
            raise BadRequestError("since must be seconds since 1970") from None
        return json_answer({"bucket_seconds": 0.1, "buckets": self.ledger.timeline(since)})

    def _arrivals(self, _: Call) -> Answer:
        return Answer("200", http(200, self.ledger.arrivals(), "application/octet-stream"))


def is_send(request: Request) -> bool:
    """Return whether the request is for /send/{id}, under whatever prefix."""
    return b"/send/" in request.target


def changes_rules(request: Request) -> bool:
    """Return whether the request gives orders to the control API."""
    return request.method != b"GET" and request.target.startswith(b"/control")


def read_message(request: Request) -> tuple[int, int, str]:
    """Return id, phone and text of a message as the contract writes it; raise BadRequestError for any other."""
    if request.content_type.partition(b";")[0].strip().lower() != b"application/json":
        raise BadRequestError("Content-Type must be application/json")
    body = json_object(request.body)
    message_id, phone, text = body.get("id"), body.get("phone"), body.get("text")
    if len(body) != 3 or type(message_id) is not int or type(phone) is not int or type(text) is not str:
        raise BadRequestError(FORM_ERROR)
    if not 0 < message_id < 2**63 or not 10**10 <= phone < 10**15:
        raise BadRequestError(FORM_ERROR)
    if request.target.rpartition(b"/send/")[2] != b"%d" % message_id:
        raise BadRequestError("the id in the path is not the id in the body")
    return message_id, phone, text


def json_object(body: bytes) -> dict[str, Any]:
    """Return a body as a JSON object; raise BadRequestError if it is none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequestError("the body is not JSON") from None
    if not isinstance(value, dict):
        raise BadRequestError("the body must be a JSON object")
    return value


def whole_number(text: str) -> int:
    """Return a non-negative integer from a path or query; raise BadRequestError for anything else."""
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise BadRequestError(f"{text[:40]!r} is not a whole number")
    return int(text)

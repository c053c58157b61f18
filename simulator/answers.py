"""What the simulator puts on the wire for one request."""

import json
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus
from typing import Any


class Then(Enum):
    """What happens to the connection after the answer."""

    KEEP = auto()
    CLOSE = auto()
    RESET = auto()
    HANG = auto()


@dataclass(frozen=True, slots=True)
class Answer:
    """A ready answer; `label` names it wherever answers are listed or counted."""

    label: str
    payload: bytes = b""
    then: Then = Then.KEEP
    accepted: bool = False
    seconds_per_byte: float = 0.0  # Of the body; 0 sends everything at once.


def http(status: int, body: bytes, content_type: str = "application/json", **headers: str) -> bytes:
    """Return a complete HTTP/1.1 response; `retry_after="2"` becomes the header `Retry-After: 2`."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = [f"HTTP/1.1 {status} {phrase}", f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-').title()}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def json_answer(value: Any, status: int = 200) -> Answer:
    """Return `value` as JSON."""
    return Answer(str(status), http(status, json.dumps(value).encode()))


def refusal(status: int, message: str, then: Then = Then.KEEP) -> Answer:
    """Return an error in the shape of the gateway's own answers."""
    return Answer(str(status), http(status, json.dumps({"code": status, "message": message}).encode()), then)


ACCEPTED_BODY = b'{"code": 0, "message": "OK"}'
ACCEPTED = Answer("200", http(200, ACCEPTED_BODY), accepted=True)

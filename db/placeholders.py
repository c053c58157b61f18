"""`{name}` and `{name|fallback}` in the text of a mailing, filled in from a client's attributes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from db import rules
from db.refusals import InvalidError

_PLACEHOLDER = re.compile(r"\{([^{}|\n]+)(?:\|([^{}]*))?\}")


class UnfillableError(Exception):
    """The text cannot be filled in for a client; `reason` is what is stored of the message."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class MissingAttributeError(UnfillableError):
    """The client lacks an attribute that the text names without a fallback; `name` is the attribute."""

    def __init__(self, name: str) -> None:
        # Bounded, whatever texts were stored before `check` was asked: an index takes no more than 2.7 kB.
        super().__init__(f"missing_placeholder:{name}"[: rules.REASON_LENGTH])
        self.name = name


class TextTooLongError(UnfillableError):
    """Filled in, the text has more than `rules.FILLED_TEXT_LENGTH` characters."""

    def __init__(self) -> None:
        super().__init__("text_too_long")


def names(text: str) -> list[str]:
    """The attributes that the text names, in order, each once."""
    return list(dict.fromkeys(match[1].strip() for match in _PLACEHOLDER.finditer(text)))


def check(text: str) -> None:
    """Raise InvalidError for a text with a name in it that no attribute can have."""
    if any(len(name) > rules.ATTRIBUTE_NAME_LENGTH for name in names(text)):
        raise InvalidError(
            f"the name in a placeholder may have at most {rules.ATTRIBUTE_NAME_LENGTH} characters", field="text"
        )


def fill(text: str, attributes: Mapping[str, Any]) -> str:
    """Return the text for one client. An empty attribute counts as lacking.

    Raises MissingAttributeError and TextTooLongError.
    """
    room = rules.FILLED_TEXT_LENGTH

    def value(match: re.Match[str]) -> str:
        nonlocal room
        name = match[1].strip()
        found = attributes.get(name)
        filled = match[2] if found is None or found == "" else str(found)
        if filled is None:
            raise MissingAttributeError(name)
        room -= len(filled)
        if room < 0:  # Noticed on the way: a hundred long attributes, each many times, are megabytes.
            raise TextTooLongError
        return filled

    if "{" not in text:
        return text
    whole = _PLACEHOLDER.sub(value, text)
    if len(whole) > rules.FILLED_TEXT_LENGTH:
        raise TextTooLongError
    return whole

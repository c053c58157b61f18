"""`{name}` and `{name|fallback}` in the text of a mailing, filled in from a client's attributes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_PLACEHOLDER = re.compile(r"\{([^{}|\n]+)(?:\|([^{}]*))?\}")


class MissingAttributeError(Exception):
    """The client lacks an attribute that the text names without a fallback; `name` is the attribute."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def names(text: str) -> list[str]:
    """The attributes that the text names, in order, each once."""
    return list(dict.fromkeys(match[1].strip() for match in _PLACEHOLDER.finditer(text)))


def fill(text: str, attributes: Mapping[str, Any]) -> str:
    """Return the text for one client; raise MissingAttributeError. An empty attribute counts as lacking."""

    def value(match: re.Match[str]) -> str:
        name = match[1].strip()
        found = attributes.get(name)
        if found is not None and found != "":
            return str(found)
        if match[2] is None:
            raise MissingAttributeError(name)
        return match[2]

    return _PLACEHOLDER.sub(value, text) if "{" in text else text

"""How the domain says no. The texts are for people: the API and the admin UI show them."""

from __future__ import annotations


class RefusedError(Exception):
    """A rule forbids the change; `field` is the input it is about, if it is about one."""

    def __init__(self, reason: str, field: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.field = field


class InvalidError(RefusedError):
    """The values contradict each other or the clock."""


class ConflictError(RefusedError):
    """Something that exists already, or its present state, stands in the way."""


class MissingError(RefusedError):
    """There is no such thing, or not any more."""

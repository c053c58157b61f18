"""What several modules need to talk to the driver."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def as_array(numbers: Iterable[int]) -> str:
    """A PostgreSQL array as text: the driver would quote the numbers one by one."""
    return "{" + ",".join(map(str, numbers)) + "}"


def rowcount(result: Any) -> int:
    """How many rows a statement changed, which SQLAlchemy's types do not know of."""
    return int(result.rowcount)

"""What people mean by the beginning of a number."""

from __future__ import annotations

import pytest

from db.queries.directory import _after_all_of, prefix_of


@pytest.mark.parametrize(
    ("typed", "prefix"),
    [
        ("+7 (916) 12", "+791612"),
        ("8 916", "+7916"),
        ("7916", "+7916"),
        ("916", "+7916"),
        ("+44", "+44"),
        ("+", None),
        ("", None),
        ("Anna", None),
        ("٩١٦", None),
        ("9" * 16, None),
        ("916%", None),
    ],
)
def test_prefix(typed: str, prefix: str | None) -> None:
    assert prefix_of(typed) == prefix


@pytest.mark.parametrize(
    ("prefix", "following"), [("+7916", "+7917"), ("+7919", "+792"), ("+7999", "+8"), ("+9", None), ("+99", None)]
)
def test_range_of_a_prefix_ends_before_the_next(prefix: str, following: str | None) -> None:
    assert _after_all_of(prefix) == following

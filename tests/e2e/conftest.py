"""A browser for the tests of the admin pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.browser import AdminSite, Visitor, open_browser

expect.set_options(timeout=20_000)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One for all tests; each visitor has a window of its own."""
    with open_browser() as opened:
        yield opened


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visitor]]:
    """Open windows; they are closed, and checked for troubles, at the end."""
    visitors: list[Visitor] = []

    def open_window(site: AdminSite, **options: Any) -> Visitor:
        visitors.append(Visitor(browser, site, **options))
        return visitors[-1]

    yield open_window
    for visitor in visitors:
        visitor.close()

"""What a browser does to forms, and the scripts to it: going back, the keyboard, a session or a mailing that is gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import expect

from db.models import Role
from db.queries import users
from tests.browser import PEOPLE, AdminSite, Visitor
from tests.factories import make_client


@pytest.fixture(scope="module")
def site(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdminSite]:
    """The pages, with three clients."""
    admin = AdminSite(module_database_url, tmp_path_factory.mktemp("admin"))
    with admin.session() as session:
        for phone in ("+79160000001", "+79160000002", "+79260000003"):
            make_client(session, phone=phone)
    admin.start()
    yield admin
    admin.process.stop()


def test_preview_tells_that_the_session_has_ended(visit: Callable[..., Visitor], site: AdminSite) -> None:
    page = visit(site).log_in(Role.OPERATOR).page
    page.goto("/mailings/new/")
    log_out(site, Role.OPERATOR)
    page.fill("#text", "Come at 8!")
    expect(page.locator("#trouble")).to_have_text("Your session has ended. Log in again to go on.")


def log_out(site: AdminSite, role: Role) -> None:
    """End the sessions of whoever has this role, as another admin would."""
    with site.session() as session:
        account = users.find(session, PEOPLE[role])
        assert account
        users.log_out_everywhere(session, account.id)

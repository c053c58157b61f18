"""Times at the edges of the calendar: the forms take none, and the pages bear what the database may hold."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from flask.testing import FlaskClient
from sqlalchemy.orm import Session

from admin.app import create_app
from admin.locale import ZONE_COOKIE
from db.models import MailingState, Role
from db.queries import audit, users
from tests.factories import make_client, make_mailing, settings_for
from tests.forms import form_with
from tests.integration.test_admin_access import PASSWORD, send

EMAIL = "admin@example.com"
FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
FORM = {"name": "Sale", "text": "Hello", "when": "later", "starts_at": "2098-01-01T00:00", "step": "review"}


@pytest.fixture
def browser(database_url: str, session: Session) -> FlaskClient:
    """An admin's, logged in."""
    users.create(session, EMAIL, PASSWORD, Role.ADMIN)
    session.commit()
    client = create_app(settings_for(database_url, secret_key="test secret")).test_client()
    assert send(client, "/login", email=EMAIL, password=PASSWORD).status_code == 303
    return client


@pytest.mark.parametrize("zone", ["Europe/Moscow", "America/New_York"])
def test_every_page_bears_times_that_the_calendar_of_the_zone_lacks(
    browser: FlaskClient, session: Session, zone: str
) -> None:
    draft = make_mailing(session, state=MailingState.DRAFT, starts_at=FIRST, ends_at=LAST)
    client = make_client(session, opted_out_at=LAST)
    for number, instant in enumerate((FIRST, LAST)):
        audit.record(session, "mailing.change", f"mailing:{number}", after={"ends_at": instant})
    session.commit()
    browser.set_cookie(ZONE_COOKIE, zone)

    mailing = f"/mailings/{draft.id}"
    paths = ["/", "/mailings/", "/audit/", "/clients/", f"/clients/{client.id}/", f"{mailing}/", f"{mailing}/live"]
    paths += [f"{mailing}/confirm/start", f"/mailings/new/{draft.id}/", f"/mailings/new/?copy={draft.id}"]

    assert {path: browser.get(path, follow_redirects=True).status_code for path in paths} == dict.fromkeys(paths, 200)


@pytest.mark.parametrize("ends_at", ["9999-12-31T23:59", "9999-01-01T12:00", "1969-12-30T12:00"])
def test_the_form_refuses_a_time_outside_the_years_we_know(browser: FlaskClient, ends_at: str) -> None:
    page = send(browser, "/mailings/new/", **FORM, ends_at=ends_at).get_data(as_text=True)

    assert "Please choose a year from 1970 to 9998." in page


def test_an_edit_keeps_an_end_that_the_form_can_show_only_in_part(browser: FlaskClient, session: Session) -> None:
    mailing = make_mailing(session, state=MailingState.DRAFT, ends_at=LAST)
    session.commit()

    page = f"/mailings/new/{mailing.id}/"
    shown = form_with("ends_at", browser.get(page).get_data(as_text=True))
    answer = send(browser, page, **{**shown, "name": "Renamed", "step": "save"})

    assert answer.status_code == 303
    session.refresh(mailing)
    assert (mailing.name, mailing.ends_at) == ("Renamed", LAST)


@pytest.mark.parametrize("name", ["2026-99-99T99:99:99+00:00", "2026-11-24T09:00:00+00:00"])
def test_the_audit_log_takes_no_name_for_a_time(browser: FlaskClient, session: Session, name: str) -> None:
    times = {"starts_at": "no time", "ends_at": "2030-02-03T09:00:00+00:00"}
    audit.record(session, "mailing.create", "mailing:1", after={"name": name, **times})
    session.commit()

    answer = browser.get("/audit/")

    assert answer.status_code == 200
    page = answer.get_data(as_text=True)
    assert all(f"<ins>{text}</ins>" in page for text in (name, "no time", "3 Feb 2030, 12:00:00"))

"""What is shown once is made once: keys of the API, and passwords that are made up."""

from __future__ import annotations

import re

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient
from sqlalchemy.orm import Session

from db.models import ApiKey, Role, UserAccount
from db.queries import users
from tests.forms import form_with
from tests.integration.test_admin_access import PASSWORD, send


@pytest.fixture
def browser(browser: FlaskClient, session: Session) -> FlaskClient:
    """An admin's, logged in."""
    session.execute(sa.update(UserAccount).values(role=Role.ADMIN))
    session.commit()
    return browser


def secret_on(page: str) -> str | None:
    found = re.search(r'id="secret" value="([^"]+)"', page)
    return found[1] if found else None


def test_reloading_the_page_of_a_new_key_makes_no_second_one(browser: FlaskClient, session: Session) -> None:
    form = {**form_with("name", browser.get("/api-keys/").get_data(as_text=True)), "name": "Shop", "scope": "full"}

    made, again = (browser.post("/api-keys/", data=form) for _ in range(2))

    assert secret_on(made.get_data(as_text=True))
    assert again.status_code == 409
    assert "Nothing was done" in again.get_data(as_text=True)
    assert session.scalars(sa.select(ApiKey.name)).all() == ["Shop"]


def test_a_key_is_made_although_another_page_was_asked_for_meanwhile(browser: FlaskClient) -> None:
    """The answer to the other comes last, and the cookie that it sets is of before the form."""
    at_first = browser.get_cookie("mailings_admin")
    form = {**form_with("name", browser.get("/api-keys/").get_data(as_text=True)), "name": "Shop", "scope": "full"}

    assert at_first
    browser.set_cookie("mailings_admin", at_first.value)
    made = browser.post("/api-keys/", data=form)

    assert secret_on(made.get_data(as_text=True))


def test_a_key_is_made_of_nothing_but_what_the_page_offered(browser: FlaskClient, session: Session) -> None:
    form = {**form_with("name", browser.get("/api-keys/").get_data(as_text=True)), "name": "Shop", "scope": "full"}

    assert browser.post("/api-keys/", data={**form, "once": ""}).status_code == 409
    assert not session.scalars(sa.select(ApiKey.name)).all()


def test_two_keys_can_be_made_one_after_the_other(browser: FlaskClient, session: Session) -> None:
    page = browser.get("/api-keys/").get_data(as_text=True)
    for name in ("Shop", "", "Warehouse"):
        form = {**form_with("name", page), "name": name, "scope": "full"}
        page = browser.post("/api-keys/", data=form).get_data(as_text=True)

    assert session.scalars(sa.select(ApiKey.name).order_by(ApiKey.id)).all() == ["Shop", "Warehouse"]


def test_a_password_is_replaced_once_and_after_a_question(browser: FlaskClient, session: Session) -> None:
    user = users.create(session, "anna@example.com", PASSWORD, Role.VIEWER)
    session.commit()
    assert f'href="/users/{user.id}/password"' in browser.get(f"/users/{user.id}/").get_data(as_text=True)
    question = browser.get(f"/users/{user.id}/password").get_data(as_text=True)
    form = form_with("version", question)

    made, again = (browser.post(f"/users/{user.id}/password", data=form) for _ in range(2))

    assert "anna@example.com" in question
    password = secret_on(made.get_data(as_text=True))
    assert password
    assert again.status_code == 409
    entered = send(browser.application.test_client(), "/login", email="anna@example.com", password=password)
    assert entered.status_code == 303

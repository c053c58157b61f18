"""The page of a mailing, its row in the list, and the questions before it is started, ended or deleted."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient
from sqlalchemy.orm import Session

from db.models import Mailing, MailingState, MessageStatus, StatusFlow
from tests.factories import make_client, make_mailing, make_message
from tests.integration.test_admin_access import send

HOUR = timedelta(hours=1)
WITHOUT_START = {"name": "Sale", "text": "Hello", "when": "draft", "ends_at": "2099-12-31T23:59", "step": "review"}


def page_of(browser: FlaskClient, address: str) -> str:
    return browser.get(address).get_data(as_text=True)


def starts_shown(browser: FlaskClient, mailing: Mailing) -> list[str]:
    """What the list and the page of a mailing call its start, without markup."""
    row = re.search(r'<td data-label="Start">(.*?)</td>', page_of(browser, "/mailings/"))
    fact = re.search(r"<dt>Start</dt><dd>(.*?)</dd>", page_of(browser, f"/mailings/{mailing.id}/"))
    return [re.sub("<.*?>", "", found[1]) for found in (row, fact) if found]


def test_a_draft_that_was_given_no_start_shows_none(browser: FlaskClient, session: Session) -> None:
    send(browser, "/mailings/new/", **WITHOUT_START)
    draft = session.scalars(sa.select(Mailing)).one()

    assert starts_shown(browser, draft) == ["–", "–"]


@pytest.mark.parametrize("state", [MailingState.SCHEDULED, MailingState.RUNNING])
def test_the_start_of_any_other_mailing_is_shown(browser: FlaskClient, session: Session, state: MailingState) -> None:
    mailing = make_mailing(session, state=state, starts_at=datetime(2025, 1, 10, 9, tzinfo=UTC))

    assert starts_shown(browser, mailing) == ["10 Jan 2025, 12:00"] * 2


@pytest.mark.parametrize(("ahead", "expected"), [(HOUR, "It is to start <time"), (-HOUR, "It starts at once.")])
def test_the_question_before_a_start_says_when_that_is(
    browser: FlaskClient, session: Session, ahead: timedelta, expected: str
) -> None:
    now = datetime.now(UTC)
    # Edited before the time that it was to start at.
    draft = make_mailing(session, state=MailingState.DRAFT, starts_at=now + ahead, updated_at=now - 2 * HOUR)

    assert expected in page_of(browser, f"/mailings/{draft.id}/confirm/start")


@pytest.mark.parametrize("action", ["cancel", "delete"])
def test_the_question_before_an_end_says_who_would_get_what_is_not_written_yet(
    browser: FlaskClient, session: Session, action: str
) -> None:
    for tags in (["vip"], ["vip", "new"], []):
        make_client(session, tags=tags)
    mailing = make_mailing(session, state=MailingState.SCHEDULED, tags=["vip"])

    page = page_of(browser, f"/mailings/{mailing.id}/confirm/{action}")

    assert "It would go to 2 recipients." in page
    assert "still wait" not in page


@pytest.mark.parametrize("action", ["cancel", "delete"])
def test_the_question_before_an_end_says_how_many_messages_wait(
    browser: FlaskClient, session: Session, action: str
) -> None:
    mailing = make_mailing(session)
    for status in (MessageStatus.SENT, MessageStatus.PENDING, MessageStatus.SENDING):
        make_message(session, mailing, make_client(session), status=status)

    page = page_of(browser, f"/mailings/{mailing.id}/confirm/{action}")

    assert "2 messages still wait and will not be sent." in page
    assert "It would go to" not in page


@pytest.mark.parametrize(("language", "expected"), [("en", "10 Jan 2025, 12:00"), ("ru", "10 янв. 2025, 12:00")])
def test_a_chart_of_days_writes_dates_as_the_rest_of_the_page(
    browser: FlaskClient, session: Session, language: str, expected: str
) -> None:
    begin = datetime(2025, 1, 10, 9, tzinfo=UTC)
    mailing = make_mailing(session, starts_at=begin)
    for minute in (begin, begin + 30 * HOUR):
        session.add(StatusFlow(minute=minute, mailing_id=mailing.id, status=MessageStatus.SENT, amount=1))
    session.commit()

    page = browser.get(f"/mailings/{mailing.id}/", headers={"Accept-Language": language}).get_data(as_text=True)

    assert f'<th scope="row">{expected}</th>' in page

"""The list of messages: of whom it is, and that it stays so."""

from __future__ import annotations

import re

from flask.testing import FlaskClient
from sqlalchemy.orm import Session

from db.models import MessageStatus
from tests.factories import make_client, make_mailing, make_message
from tests.forms import form_with


def test_all_messages_of_a_client_stay_theirs_whatever_else_is_chosen(browser: FlaskClient, session: Session) -> None:
    one, other = make_client(session), make_client(session)
    sent, failed = (
        make_message(session, make_mailing(session), one, status=status)
        for status in (MessageStatus.SENT, MessageStatus.FAILED)
    )
    make_message(session, make_mailing(session), other, status=MessageStatus.FAILED)

    def shown(page: str) -> list[int]:
        return [int(message_id) for message_id in re.findall(r'href="/messages/([0-9]+)/"', page)]

    link = re.search(r'href="([^"]+)">All messages', browser.get(f"/clients/{one.id}/").get_data(as_text=True))
    assert link
    page = browser.get(link[1]).get_data(as_text=True)
    form = form_with("phone", page)

    assert shown(page) == [failed.id, sent.id]
    assert form["phone"] == [one.phone]
    chosen = browser.get("/messages/", query_string={**form, "status": "failed"})
    assert shown(chosen.get_data(as_text=True)) == [failed.id]

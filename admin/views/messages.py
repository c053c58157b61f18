"""Messages: the list by mailing, status, number and reason, and one with all that happened to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flask import Response

from admin.database import session
from admin.texts import lazy_gettext as _
from admin.views.base import Keyset, Page, argument_choice, argument_id, argument_text, expose, keyset, part
from db import phones
from db.models import Client, Mailing, MessageStatus
from db.queries import directory, failures, mailings, messages
from db.queries.messages import MessageRow
from db.refusals import MissingError
from db.rules import REASON_LENGTH


class Messages(Page):
    """Every message there is."""

    def __init__(self) -> None:
        super().__init__(_("Messages"), endpoint="messages", url="/messages", menu_icon_value="chat")

    @expose("/")
    def index(self) -> Any:
        """Return a page of the list."""
        wanted, typed = _filter()
        mailing = _mailing(wanted.mailing_id)
        reasons = failures.ranked(session(), mailing.id) if mailing else []
        return self.render(
            "messages.html",
            wanted=wanted,
            typed=typed,
            mailing=mailing,
            reasons=reasons,
            choices=mailings.latest(session(), mailings.Filter(), None, 100),
            statuses=MessageStatus,
            **_rows(wanted, typed),
        )

    @expose("/<id:message_id>/")
    def show(self, message_id: int) -> Any:
        """Return one message with its whole history."""
        row, history = messages.get(session(), message_id)
        mailing = mailings.get(session(), row.mailing_id)
        return self.render("message.html", message=row, history=history, mailing=mailing)

    @expose("/<id:message_id>/live")
    def refresh(self, message_id: int) -> Response:
        """Return what has changed."""
        row, history = messages.get(session(), message_id)
        return self.live(message=part("message_state", message=row, history=history))


def _rows(wanted: messages.Filter, typed: str) -> dict[str, Any]:
    if typed and wanted.client_id is None:
        return {"page": Keyset([], None, None), "names": {}}

    def load(beyond: int | None, limit: int, newer: bool) -> Sequence[MessageRow]:
        found = messages.page(session(), wanted, beyond, limit, backwards=not newer)
        return found[::-1] if newer else found

    found = keyset(load)
    names = mailings.names(session(), {row.mailing_id for row in found.rows})
    return {"page": found, "names": names}


def _filter() -> tuple[messages.Filter, str]:
    typed = argument_text("phone", 40)
    client = _client_of(typed) if typed else None
    return (
        messages.Filter(
            mailing_id=argument_id("mailing"),
            client_id=client.id if client else None,
            status=argument_choice("status", MessageStatus),
            reason=argument_text("reason", REASON_LENGTH + 50) or None,
        ),
        typed,
    )


def _client_of(typed: str) -> Client | None:
    try:
        number = phones.normalise(typed)
    except ValueError:
        return None
    found = directory.by_phone(session(), directory.Filter(phone_prefix=number), None, 1)
    return found[0] if found and found[0].phone == number else None


def _mailing(mailing_id: int | None) -> Mailing | None:
    if mailing_id is None:
        return None
    try:
        return mailings.get(session(), mailing_id)
    except MissingError:
        return None

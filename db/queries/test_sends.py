"""Trying a text on one number: a mailing of its own with a single message, sent and accounted for like any other."""

from __future__ import annotations

from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from db import phones, placeholders
from db.models import Client, Mailing, MailingState, Message, MessageStatus
from db.queries import audit, clients
from db.queries.notifications import notify_work
from db.refusals import ConflictError, InvalidError

TAG = "test"
VALID_FOR = timedelta(hours=1)


def create(session: Session, name: str, text: str, phone: str, default_timezone: str, now: datetime) -> Mailing:
    """Send this very text to this number now; a number that is not in the directory is added with the tag `test`.

    Raise InvalidError for a number that is none or a text that cannot be filled in, ConflictError for a number that has
    opted out.
    """
    placeholders.check(text)
    try:
        number = phones.normalise(phone)
    except ValueError as error:
        raise InvalidError(str(error), field="phone") from None
    client: Client | clients.ClientRow | None = session.scalar(sa.select(Client).where(Client.phone == number))
    if client is None:
        values = {"phone": number, "tags": [TAG], "timezone": default_timezone, "attributes": {}}
        client = clients.create(session, values, now)
    if client.opted_out_at is not None:
        raise ConflictError("this client has opted out", field="phone")
    mailing = _running(name, text, now)
    session.add(mailing)
    session.flush()
    session.add(Message(mailing_id=mailing.id, client_id=client.id, status=MessageStatus.PENDING, next_attempt_at=now))
    session.flush()
    audit.record(session, "mailing.test", f"mailing:{mailing.id}", after={"client_id": client.id})
    notify_work(session)
    return mailing


def _running(name: str, text: str, now: datetime) -> Mailing:
    # As the dispatcher leaves a mailing whose messages are all written: it will release this one, and write no other.
    return Mailing(
        name=name,
        text=text,
        starts_at=now,
        ends_at=now + VALID_FOR,
        state=MailingState.RUNNING,
        started_at=now,
        materialised_at=now,
        created_at=now,
        updated_at=now,
        operator_codes=[],
        tags=[],
        is_test=True,
    )

"""Rows filled in with all that a test is not about."""

from __future__ import annotations

import dataclasses
import itertools
import os
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from common.settings import Settings, load
from db.models import Client, Mailing, MailingState, Message, MessageStatus
from db.queries.messages import STATUS

Row = TypeVar("Row")

_numbers = itertools.count(1)


def make_client(session: Session, **values: Any) -> Client:
    """A client with a number of its own."""
    phone = values.pop("phone", f"+7916{next(_numbers):07d}")
    client = Client(phone=phone, operator_code=phone[2:5], timezone="Europe/Moscow", tags=[], attributes={})
    return _add(session, client, values)


def make_mailing(session: Session, **values: Any) -> Mailing:
    """A mailing to everyone that runs since a minute and for a day."""
    now = datetime.now(UTC)
    mailing = Mailing(
        name="Sale",
        text="Hello",
        starts_at=now - timedelta(minutes=1),
        ends_at=now + timedelta(days=1),
        operator_codes=[],
        tags=[],
        state=MailingState.RUNNING,
        started_at=now,
    )
    if values.get("state") in (MailingState.COMPLETED, MailingState.CANCELLED):
        mailing.finished_at = now
    if values.get("state") in (MailingState.DRAFT, MailingState.SCHEDULED):
        mailing.started_at = None
    return _add(session, mailing, values)


def make_message(session: Session, mailing: Mailing, client: Client, **values: Any) -> Message:
    """A message that was sent, or whatever else its status says."""
    now = datetime.now(UTC)
    status = values.get("status", MessageStatus.SENT)
    message = Message(mailing_id=mailing.id, client_id=client.id, status=status, attempts=1)
    if status is MessageStatus.PENDING:
        message.next_attempt_at = now
    if status is MessageStatus.SENDING:
        message.batch_id = 1
    if status in (MessageStatus.SENT, MessageStatus.DELIVERED):
        message.sent_at = now
    if status in (MessageStatus.FAILED, MessageStatus.EXPIRED, MessageStatus.CANCELLED):
        message.last_error = "http_400"
    return _add(session, message, values)


def told_statuses(session: Session, mailing: Mailing | None = None) -> dict[str, int]:
    """How many messages have a status, as people are told: those of planned batches are pending."""
    status: sa.Label[str] = sa.literal_column(STATUS).label("status")
    counted = sa.select(status, sa.func.count()).select_from(Message).group_by(sa.text("1"))
    if mailing is not None:
        counted = counted.where(Message.mailing_id == mailing.id)
    return {row[0]: row[1] for row in session.execute(counted)}


def settings_for(database_url: str, **others: object) -> Settings:
    """The defaults, whatever the environment of the run holds, on this database."""
    kept = dict(os.environ)
    os.environ.clear()
    try:
        defaults = load()
    finally:
        os.environ.update(kept)
    return dataclasses.replace(defaults, database_url=database_url, **others)  # type: ignore[arg-type]


def _add(session: Session, row: Row, values: dict[str, Any]) -> Row:
    for name, value in values.items():
        setattr(row, name, value)
    session.add(row)
    session.commit()
    return row

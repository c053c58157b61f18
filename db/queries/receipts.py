"""Delivery receipts: what the gateway tells later about a message that it accepted."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.models import Attempt, Mailing, Message, MessageStatus, Receipt
from db.refusals import ConflictError, MissingError

# `last_error` of a message whose failure was told without a reason, and the outcome in its history.
RECEIPT = "receipt"


def apply(session: Session, message_id: int, status: MessageStatus, reason: str | None, now: datetime) -> MessageStatus:
    """Note that a message was delivered or failed; its status after that.

    A final status stands: a doubled or late receipt changes nothing. One that comes before our own record of the
    attempt is kept, and applied with that record. Raise MissingError, or ConflictError for a message never sent.
    """
    message = session.scalar(
        sa.select(Message)
        .join(Mailing, Mailing.id == Message.mailing_id)
        .where(Message.id == message_id, Mailing.deleted_at.is_(None))
        .with_for_update(of=Message)
    )
    if message is None:
        raise MissingError("no such message")
    if message.status is MessageStatus.SENDING:
        _keep(session, message_id, status, reason)
    elif message.status is MessageStatus.SENT or _may_have_been_accepted(message):
        _settle(session, message, status, reason, now)
    elif message.attempts == 0 and message.status is not MessageStatus.FAILED:
        raise ConflictError("this message was never sent", field="id")
    return message.status


def _may_have_been_accepted(message: Message) -> bool:
    """An attempt whose answer never came, and that waits to be repeated, reached the gateway: the receipt proves it."""
    return message.status is MessageStatus.PENDING and message.attempts > 0


def _keep(session: Session, message_id: int, status: MessageStatus, reason: str | None) -> None:
    statement = insert(Receipt).values(message_id=message_id, status=status, reason=reason)
    session.execute(statement.on_conflict_do_nothing(index_elements=[Receipt.message_id]))


def _settle(session: Session, message: Message, status: MessageStatus, reason: str | None, now: datetime) -> None:
    message.status = status
    message.next_attempt_at = None
    if status is MessageStatus.DELIVERED:
        message.sent_at = message.sent_at or now
        message.last_error = None
    else:
        message.last_error = reason or RECEIPT
        session.add(
            Attempt(message_id=message.id, at=now, attempt=message.attempts, outcome=RECEIPT, reason=message.last_error)
        )
    session.flush()

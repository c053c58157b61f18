"""Delivery receipts: what the gateway tells later about a message that it accepted."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.models import Attempt, Mailing, Message, MessageStatus, Receipt
from db.queries import planned
from db.refusals import ConflictError, MissingError

# `last_error` of a message whose failure was told without a reason, and the outcome in its history.
RECEIPT = "receipt"
# The lines of a history that tell of a call: its answer, that its worker was lost, or an earlier receipt. (A text that
# could not be filled in has a line as well.)
_WAS_CALLED = sa.select(
    sa.exists().where(
        Attempt.message_id == sa.bindparam("message_id"),
        sa.or_(Attempt.milliseconds.is_not(None), Attempt.outcome.in_(("lost", RECEIPT))),
    )
)


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
    was = message.status
    if was is MessageStatus.SENDING and planned.take_out(session, [message_id], skip_locked=True):
        was = MessageStatus.PENDING  # It was to be sent again.
    if was is MessageStatus.SENDING:
        _keep(session, message_id, status, reason)
    elif not _may_have_been_accepted(session, message):
        raise ConflictError("this message was never sent", field="id")
    elif was in (MessageStatus.SENT, MessageStatus.PENDING):
        _settle(session, message, status, reason, now)
    return message.status


def _may_have_been_accepted(session: Session, message: Message) -> bool:
    """Whether it may have reached the gateway, whatever the answer was: the receipt then proves that it did.

    No attempts are counted of a message that `retry-failed` has put back, nor those that tried whether the gateway is
    back: the history knows them.
    """
    if message.attempts > 0 or message.status is MessageStatus.FAILED:
        return True
    return bool(session.scalar(_WAS_CALLED, {"message_id": message.id}))


def _keep(session: Session, message_id: int, status: MessageStatus, reason: str | None) -> None:
    statement = insert(Receipt).values(message_id=message_id, status=status, reason=reason)
    session.execute(statement.on_conflict_do_nothing(index_elements=[Receipt.message_id]))


def _settle(session: Session, message: Message, status: MessageStatus, reason: str | None, now: datetime) -> None:
    message.status = status
    message.batch_id = None
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

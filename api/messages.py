"""Messages: what became of each."""

from __future__ import annotations

from typing import Any

from flask.views import MethodView
from marshmallow import fields
from marshmallow.validate import OneOf

from api.blueprint import Blueprint, id_parameter
from api.database import reading, session
from api.fields import Answer, KeyQuery, QueryNumber, about, choice
from api.mailings import STATUSES, ByStatus, MailingSchema
from api.mailings import represent as represent_mailing
from api.paging import next_key
from db.engine import Database
from db.models import Attempt, MessageStatus
from db.queries import mailings, messages, statistics

blueprint = Blueprint("message", __name__, url_prefix="/api/v1/message", description="What became of each message.")

_STATUS = about("Where the message stands.", "sent", enum=STATUSES)


class MessageSchema(Answer):
    """A message."""

    id = fields.Integer(required=True, metadata=about("The id, also towards the gateway.", 1))
    mailing_id = fields.Integer(required=True, metadata=about("Its mailing.", 1))
    client_id = fields.Integer(required=True, metadata=about("Its client.", 1))
    phone = fields.String(
        required=True,
        allow_none=True,
        metadata=about("The client's number; null when the client was erased.", "+79161234567"),
    )
    status = fields.String(required=True, validate=OneOf(STATUSES), metadata=_STATUS)
    attempts = fields.Integer(required=True, metadata=about("Attempts that count.", 1))
    created_at = fields.AwareDateTime(required=True, metadata=about("When it was written.", "2026-11-23T09:00:00Z"))
    next_attempt_at = fields.AwareDateTime(
        required=True, allow_none=True, metadata=about("When it is due, while it is pending.", "2026-11-23T09:00:00Z")
    )
    sent_at = fields.AwareDateTime(
        required=True, allow_none=True, metadata=about("When the gateway accepted it.", "2026-11-23T09:00:01Z")
    )
    last_error = fields.String(
        required=True, allow_none=True, metadata=about("A short reason of the last failure.", "http_400")
    )


class AttemptSchema(Answer):
    """An attempt that was not simply accepted the first time, or a receipt of a failure."""

    at = fields.AwareDateTime(required=True, metadata=about("When.", "2026-11-23T09:00:01Z"))
    attempt = fields.Integer(required=True, metadata=about("The number of the attempt.", 1))
    outcome = fields.String(required=True, metadata=about("What followed from it.", "retry"))
    reason = fields.String(required=True, allow_none=True, metadata=about("A short reason.", "timeout"))
    http_status = fields.Integer(required=True, allow_none=True, metadata=about("The gateway's HTTP status.", 503))
    milliseconds = fields.Integer(required=True, allow_none=True, metadata=about("How long the call took.", 10003))


class MessageWithHistory(MessageSchema):
    """A message and how it came about."""

    history = fields.List(fields.Nested(AttemptSchema), required=True, metadata=about("Its attempts, oldest first."))


class MessagePage(Answer):
    """Messages, and where to go on."""

    items = fields.List(fields.Nested(MessageSchema), required=True, metadata=about("The messages."))
    next = fields.Integer(
        required=True, allow_none=True, metadata=about("`after` of the next page; null on the last one.", 50)
    )


class MailingDetail(MessagePage):
    """A mailing and its messages."""

    mailing = fields.Nested(MailingSchema, required=True, metadata=about("The mailing."))
    messages = fields.Integer(required=True, metadata=about("All its messages.", 6))
    by_status = fields.Nested(ByStatus, required=True, metadata=about("The same by status."))


class MessageQuery(KeyQuery):
    """Which messages, and from where on."""

    mailing_id = QueryNumber(metadata=about("Only this mailing's.", 1))
    client_id = QueryNumber(metadata=about("Only this client's.", 1))
    status = choice(*STATUSES, metadata=about("Only those with this status.", "failed"))


def represent(row: messages.MessageRow) -> dict[str, Any]:
    """A message as callers see it."""
    return dict(zip(messages.FIELDS, row, strict=True))  # A third of what `_asdict` takes, for every row.


def _represent_attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "at": attempt.at,
        "attempt": attempt.attempt,
        "outcome": attempt.outcome,
        "reason": attempt.reason,
        "http_status": attempt.http_status,
        "milliseconds": attempt.milliseconds,
    }


def _page(database: Database, wanted: messages.Filter, query: dict[str, Any]) -> dict[str, Any]:
    rows = messages.page(database, wanted, query["after"], query["limit"])
    items = [represent(row) for row in rows]
    return {"items": items, "next": next_key(items, query["limit"])}


@blueprint.route("/")
class Messages(MethodView):
    """The list."""

    @blueprint.arguments(MessageQuery, location="query")
    @blueprint.response(200, MessagePage)
    def get(self, query: dict[str, Any]) -> dict[str, Any]:
        """List messages

        In the order of their ids, paged by key: hand `next` back as `after`.
        """
        status = MessageStatus(query["status"]) if "status" in query else None
        wanted = messages.Filter(query.get("mailing_id"), query.get("client_id"), status)
        with reading() as database:
            return _page(database, wanted, query)


@blueprint.route("/<id:message_id>/", parameters=id_parameter("message_id", "message"))
class OneMessage(MethodView):
    """One message."""

    @blueprint.response(200, MessageWithHistory)
    @blueprint.refuses(404, "There is no such message.")
    def get(self, message_id: int) -> dict[str, Any]:
        """Return one message with its history"""
        row, history = messages.get(session(), message_id)
        return {**represent(row), "history": [_represent_attempt(attempt) for attempt in history]}


@blueprint.route("/<id:mailing_id>/retrieveMessagesForMailing/", parameters=id_parameter("mailing_id", "mailing"))
class MessagesOfMailing(MethodView):
    """One mailing in detail."""

    @blueprint.arguments(KeyQuery, location="query")
    @blueprint.response(200, MailingDetail)
    @blueprint.refuses(404, "There is no such mailing.")
    def get(self, query: dict[str, Any], mailing_id: int) -> dict[str, Any]:
        """Return a mailing with its counts and messages

        The messages are paged by key: hand `next` back as `after`.
        """
        with reading() as database:
            mailing = mailings.get_row(database, mailing_id)
            by_status = statistics.of_mailing(database, mailing_id)
            page = _page(database, messages.Filter(mailing_id=mailing_id), query)
        return {
            "mailing": represent_mailing(mailing),
            "messages": sum(by_status.values()),
            "by_status": by_status,
            **page,
        }

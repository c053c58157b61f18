"""Mailings: made, edited, controlled."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, time
from typing import Any

import orjson
from flask import request
from flask.views import MethodView
from marshmallow import ValidationError, fields, post_load, validates_schema
from marshmallow.validate import OneOf

from api.blueprint import Blueprint, id_parameter
from api.database import reading, session, session_of_one_statement
from api.fields import (
    Answer,
    ClockTime,
    Distinct,
    FilledText,
    Input,
    Matching,
    OperatorCode,
    OptionalInput,
    PageQuery,
    Tags,
    Text,
    Timestamp,
    about,
    choice,
)
from api.paging import X_PAGINATION, Paged, offset_of, paged
from db import rules
from db.models import Mailing, MailingState, MessageStatus
from db.queries import mailings, statistics

blueprint = Blueprint("mailing", __name__, url_prefix="/api/v1/mailing", description="Mailings and their control.")

STATES = [state.value for state in MailingState]
STATUSES = [status.value for status in MessageStatus]

_NAME = about("A name for people.", "Sale")
_TEXT = about(
    "What is sent; may hold `{placeholders}` and `{placeholders|with a fallback}`, whose names have at most"
    f" {rules.ATTRIBUTE_NAME_LENGTH} characters, as those of attributes. A client whose text would have over"
    f" {rules.FILLED_TEXT_LENGTH:,} characters gets none: that message fails with the reason `text_too_long`.",
    "Hello, {name|there}!",
)
_STARTS = about("When sending begins; by default now.", "2026-11-23T09:00:00Z")
_ENDS = about("Nothing is sent from this time on.", "2030-01-01T21:00:00Z")
_FILTER = about("Who gets it; left out, or with both lists empty: everyone.")
_WINDOW = about("Between which times of the client's own clock messages may go; null: at any time.")
_STATE = about("Where the mailing stands.", "running", enum=STATES)
_NO_SUCH = "There is no such mailing."


class FilterSchema(Input):
    """Clients with one of the codes (if any are given) and one of the tags (if any are given)."""

    operator_codes = Distinct(
        OperatorCode(), rules.FILTER_CODES, load_default=list, metadata=about("Operator codes; empty: any.", ["916"])
    )
    tags = Tags(load_default=list, metadata=about("Tags, of which the client has at least one; empty: any.", ["vip"]))


class WindowSchema(Input):
    """A part of the day; with `to` before `from` it goes over midnight."""

    opens = ClockTime(required=True, data_key="from", metadata=about("The first minute inside.", "09:00"))
    closes = ClockTime(required=True, data_key="to", metadata=about("The first minute outside.", "21:00"))

    @validates_schema
    def check_length(self, values: dict[str, Any], **_options: Any) -> None:
        """A window that opens when it closes is none."""
        if values["opens"] == values["closes"]:
            raise ValidationError("may not be the same as from", "to")


def _clock_time(text: str | None) -> time | None:
    return time.fromisoformat(text) if text else None


class _MailingFields(Input):
    """Fields to columns."""

    @post_load
    def to_columns(self, values: dict[str, Any], **_options: Any) -> dict[str, Any]:
        """Return the columns that the fields stand for."""
        if "filter" in values:
            values.update(values.pop("filter"))
        if "send_window" in values:
            window = values.pop("send_window") or {}
            values.update(window_from=_clock_time(window.get("opens")), window_to=_clock_time(window.get("closes")))
        if "state" in values:
            values["state"] = MailingState(values["state"])
        return values


class MailingInput(_MailingFields):
    """A mailing as handed in."""

    name = FilledText(1, rules.NAME_LENGTH, required=True, metadata=_NAME)
    text = FilledText(1, rules.TEXT_LENGTH, required=True, metadata=_TEXT)
    starts_at = Timestamp(metadata=_STARTS)
    ends_at = Timestamp(required=True, metadata=_ENDS)
    filter = fields.Nested(FilterSchema, metadata=_FILTER)
    send_window = fields.Nested(WindowSchema, allow_none=True, metadata=_WINDOW)
    state = choice("draft", metadata=about("`draft` keeps it until `start`; left out, it is scheduled.", "draft"))


class MailingReplacement(MailingInput):
    """A mailing as it is to be."""

    state = choice(
        *STATES, metadata=about("May only be what it is: see `start`, `pause`, `resume`, `cancel`.", "draft")
    )


class MailingChanges(_MailingFields):
    """Some fields of a mailing; those left out stay. `filter` and `send_window` are replaced as a whole."""

    name = FilledText(1, rules.NAME_LENGTH, metadata=_NAME)
    text = FilledText(1, rules.TEXT_LENGTH, metadata=_TEXT)
    starts_at = Timestamp(metadata=_STARTS)
    ends_at = Timestamp(metadata=_ENDS)
    filter = fields.Nested(FilterSchema, metadata=_FILTER)
    send_window = fields.Nested(WindowSchema, allow_none=True, metadata=_WINDOW)
    state = choice(
        *STATES, metadata=about("May only be what it is: see `start`, `pause`, `resume`, `cancel`.", "draft")
    )


class FilterAnswer(Answer):
    """Who gets it."""

    operator_codes = fields.List(fields.String(), required=True, metadata=about("Operator codes; empty: any.", ["916"]))
    tags = fields.List(fields.String(), required=True, metadata=about("Tags; empty: any.", ["vip"]))


class WindowAnswer(Answer):
    """A part of the day on the client's own clock."""

    opens = fields.String(required=True, data_key="from", metadata=about("The first minute inside.", "09:00"))
    closes = fields.String(required=True, data_key="to", metadata=about("The first minute outside.", "21:00"))


class MailingSchema(Answer):
    """A mailing."""

    id = fields.Integer(required=True, metadata=about("The id.", 1))
    name = fields.String(required=True, metadata=_NAME)
    text = fields.String(required=True, metadata=_TEXT)
    starts_at = fields.AwareDateTime(required=True, metadata=about("When sending begins.", "2026-11-23T09:00:00Z"))
    ends_at = fields.AwareDateTime(required=True, metadata=_ENDS)
    filter = fields.Nested(FilterAnswer, required=True, metadata=_FILTER)
    send_window = fields.Nested(WindowAnswer, required=True, allow_none=True, metadata=_WINDOW)
    state = fields.String(required=True, validate=OneOf(STATES), metadata=_STATE)
    created_at = fields.AwareDateTime(required=True, metadata=about("When it was made.", "2026-11-23T09:00:00Z"))
    updated_at = fields.AwareDateTime(required=True, metadata=about("When it last changed.", "2026-11-23T09:00:00Z"))


class ByStatus(Answer):
    """How many messages have each status."""

    pending = fields.Integer(required=True, metadata=about("Waiting for their time.", 0))
    sending = fields.Integer(required=True, metadata=about("With the senders.", 0))
    sent = fields.Integer(required=True, metadata=about("Accepted by the gateway.", 6))
    delivered = fields.Integer(required=True, metadata=about("Delivered, by a receipt.", 0))
    failed = fields.Integer(required=True, metadata=about("Given up.", 0))
    expired = fields.Integer(required=True, metadata=about("Not sent before the mailing's end.", 0))
    cancelled = fields.Integer(required=True, metadata=about("Cancelled, or the client is gone.", 0))


class ControlledMailing(MailingSchema):
    """A mailing, with its messages at the moment of the answer."""

    messages = fields.Integer(required=True, metadata=about("All its messages.", 6))
    by_status = fields.Nested(ByStatus, required=True, metadata=about("The same by status."))


class RetryInput(OptionalInput):
    """Which of the failed messages."""

    reasons = fields.List(
        Text(1, rules.REASON_LENGTH), metadata=about("Only those whose `last_error` is one of these.", ["http_400"])
    )


class RetryAnswer(Answer):
    """What was put back."""

    retried = fields.Integer(required=True, metadata=about("How many messages are pending again.", 3))
    mailing = fields.Nested(ControlledMailing, required=True, metadata=about("The mailing after that."))


class MailingQuery(PageQuery):
    """Which mailings, and which page of them."""

    state = choice(*STATES, metadata=about("Only those in this state.", "running"))


class IdempotencyHeader(Input):
    """A name for the request, chosen by the caller."""

    class Meta:
        unknown = "exclude"

    key = Matching(
        r"[!-~]{1,255}",
        "1 to 255 printable ASCII characters are needed",
        data_key="Idempotency-Key",
        metadata=about("Repeating a request with the same key makes no second mailing.", "order-1234"),
    )


def represent(mailing: Mailing | mailings.MailingRow) -> dict[str, Any]:
    """A mailing as callers see it."""
    window = None
    if mailing.window_from is not None and mailing.window_to is not None:
        window = {"from": f"{mailing.window_from:%H:%M}", "to": f"{mailing.window_to:%H:%M}"}
    return {
        "id": mailing.id,
        "name": mailing.name,
        "text": mailing.text,
        "starts_at": mailing.starts_at,
        "ends_at": mailing.ends_at,
        "filter": {"operator_codes": mailing.operator_codes, "tags": mailing.tags},
        "send_window": window,
        "state": mailing.state,
        "created_at": mailing.created_at,
        "updated_at": mailing.updated_at,
    }


def _with_counts(mailing: Mailing) -> dict[str, Any]:
    by_status = statistics.of_mailing(session(), mailing.id)
    return {**represent(mailing), "messages": sum(by_status.values()), "by_status": by_status}


@blueprint.route("/")
class Mailings(MethodView):
    """The list."""

    @blueprint.arguments(MailingQuery, location="query")
    @blueprint.response(200, MailingSchema(many=True), headers=X_PAGINATION)
    def get(self, query: dict[str, Any]) -> Paged:
        """List mailings

        In the order in which they were made, all or those in one state.
        """
        state = MailingState(query["state"]) if "state" in query else None
        with reading() as reader:
            found, total = mailings.page(reader, state, offset_of(query), query["page_size"])
        return paged([represent(mailing) for mailing in found], total, query)

    @blueprint.arguments(MailingInput)
    @blueprint.arguments(IdempotencyHeader, location="headers")
    @blueprint.response(201, MailingSchema)
    @blueprint.refuses(409, "The Idempotency-Key was used with another body.")
    def post(self, values: dict[str, Any], headers: dict[str, Any]) -> dict[str, Any]:
        """Make a mailing

        It is scheduled, and starts at `starts_at` (now, if left out) in the background; with `state: draft` it waits
        for `start`. With an `Idempotency-Key`, repeating the request answers the mailing that was made first.
        """
        key = headers.get("key")
        digest = _digest(request.get_data(cache=True)) if key else None
        mailing, _is_new = mailings.create(session_of_one_statement(), values, datetime.now(UTC), key, digest)
        session.commit()
        return represent(mailing)


def _digest(body: bytes) -> str:
    """The same for bodies that say the same, whatever the order of their fields and their white space."""
    return hashlib.sha256(orjson.dumps(orjson.loads(body), option=orjson.OPT_SORT_KEYS)).hexdigest()


@blueprint.route("/<id:mailing_id>/", parameters=id_parameter("mailing_id", "mailing"))
class OneMailing(MethodView):
    """One mailing."""

    @blueprint.response(200, MailingSchema)
    @blueprint.refuses(404, _NO_SUCH)
    def get(self, mailing_id: int) -> dict[str, Any]:
        """Return one mailing"""
        with reading() as reader:
            return represent(mailings.get_row(reader, mailing_id))

    @blueprint.arguments(MailingReplacement)
    @blueprint.response(200, MailingSchema)
    @blueprint.refuses(404, _NO_SUCH)
    @blueprint.refuses(409, "A field cannot be changed any more; the answer says which.")
    def put(self, values: dict[str, Any], mailing_id: int) -> dict[str, Any]:
        """Replace a mailing

        `filter` and `send_window`, left out, become everyone and any time; `starts_at` and `state` stay. After the
        start only `name`, `ends_at` and `send_window` may differ, after the end only `name`.
        """
        defaults: dict[str, Any] = {"operator_codes": [], "tags": [], "window_from": None, "window_to": None}
        return _edit(mailing_id, {**defaults, **values})

    @blueprint.arguments(MailingChanges)
    @blueprint.response(200, MailingSchema)
    @blueprint.refuses(404, _NO_SUCH)
    @blueprint.refuses(409, "A field cannot be changed any more; the answer says which.")
    def patch(self, values: dict[str, Any], mailing_id: int) -> dict[str, Any]:
        """Change some fields of a mailing

        After the start only `name`, `ends_at` and `send_window`, after the end only `name`.
        """
        return _edit(mailing_id, values)

    @blueprint.response(204)
    @blueprint.refuses(404, _NO_SUCH)
    def delete(self, mailing_id: int) -> None:
        """Stop and delete a mailing

        It is gone at once from every answer and from the statistics; its messages are removed in the background.
        """
        mailings.delete(session(), mailing_id, datetime.now(UTC))
        session.commit()


def _edit(mailing_id: int, changes: dict[str, Any]) -> dict[str, Any]:
    mailing = mailings.edit(session(), mailing_id, changes, datetime.now(UTC))
    session.commit()
    return represent(mailing)


def _control(mailing_id: int, action: str) -> dict[str, Any]:
    mailing = mailings.control(session(), mailing_id, action, datetime.now(UTC))
    answer = _with_counts(mailing)
    session.commit()
    return answer


@blueprint.route("/<id:mailing_id>/start/", methods=["POST"], parameters=id_parameter("mailing_id", "mailing"))
@blueprint.response(200, ControlledMailing)
@blueprint.refuses(404, _NO_SUCH)
@blueprint.refuses(409, "It is no draft, or its end time has passed.")
def start(mailing_id: int) -> dict[str, Any]:
    """Schedule a draft"""
    return _control(mailing_id, "start")


@blueprint.route("/<id:mailing_id>/pause/", methods=["POST"], parameters=id_parameter("mailing_id", "mailing"))
@blueprint.response(200, ControlledMailing)
@blueprint.refuses(404, _NO_SUCH)
@blueprint.refuses(409, "It is neither scheduled nor running.")
def pause(mailing_id: int) -> dict[str, Any]:
    """Hold a mailing

    Within two seconds nothing more is sent, until `resume`. The end time still counts.
    """
    return _control(mailing_id, "pause")


@blueprint.route("/<id:mailing_id>/resume/", methods=["POST"], parameters=id_parameter("mailing_id", "mailing"))
@blueprint.response(200, ControlledMailing)
@blueprint.refuses(404, _NO_SUCH)
@blueprint.refuses(409, "It is not paused.")
def resume(mailing_id: int) -> dict[str, Any]:
    """Let a paused mailing go on"""
    return _control(mailing_id, "resume")


@blueprint.route("/<id:mailing_id>/cancel/", methods=["POST"], parameters=id_parameter("mailing_id", "mailing"))
@blueprint.response(200, ControlledMailing)
@blueprint.refuses(404, _NO_SUCH)
@blueprint.refuses(409, "It has ended already.")
def cancel(mailing_id: int) -> dict[str, Any]:
    """End a mailing for good

    Within two seconds nothing more is sent, and the waiting messages are cancelled.
    """
    return _control(mailing_id, "cancel")


@blueprint.route("/<id:mailing_id>/retry-failed/", methods=["POST"], parameters=id_parameter("mailing_id", "mailing"))
@blueprint.arguments(RetryInput, required=False)
@blueprint.response(200, RetryAnswer)
@blueprint.refuses(404, _NO_SUCH)
@blueprint.refuses(409, "It has not started, was cancelled, or its end time has passed.")
def retry_failed(values: dict[str, Any], mailing_id: int) -> dict[str, Any]:
    """Put failed messages back to pending

    All, or those of the given reasons, with all their attempts anew; clients who opted out since stay failed. A
    completed mailing runs again.
    """
    mailing, retried = mailings.retry_failed(session(), mailing_id, values.get("reasons"), datetime.now(UTC))
    answer = {"retried": retried, "mailing": _with_counts(mailing)}
    session.commit()
    return answer

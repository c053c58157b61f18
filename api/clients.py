"""The directory of clients."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from flask import current_app
from flask.views import MethodView
from marshmallow import fields

from api.blueprint import Blueprint, id_parameter
from api.database import reading, session, session_of_one_statement
from api.fields import (
    Answer,
    Attributes,
    FilledText,
    Input,
    OperatorCode,
    PageQuery,
    Phone,
    Tags,
    Timestamp,
    Timezone,
    about,
)
from api.paging import X_PAGINATION, Paged, offset_of, paged
from db import rules
from db.models import Client
from db.queries import clients

blueprint = Blueprint("client", __name__, url_prefix="/api/v1/client", description="The directory of clients.")

_PHONE = about(
    "`+7…`, `7…` or `8…` with spaces, brackets and dashes, or another country's with its plus.", "+79161234567"
)
_CODE = about("The mobile operator's code; by default the three digits after +7.", "916")
_TAGS = about("Marks to filter by.", ["vip"])
_ZONE = about("An IANA time zone; by default that of the installation.", "Europe/Moscow")
_ATTRIBUTES = about("Values for `{placeholders}` in texts.", {"name": "Anna"})
_OPTED_OUT = about(
    "Since when the client wants no messages; null while they may be sent. Setting it cancels what waits.",
    "2026-11-23T09:00:00Z",
)


class ClientInput(Input):
    """A client as handed in."""

    phone = Phone(required=True, metadata=_PHONE)
    operator_code = OperatorCode(metadata=_CODE)
    tags = Tags(metadata=_TAGS)
    timezone = Timezone(1, 64, metadata=_ZONE)
    attributes = Attributes(metadata=_ATTRIBUTES)
    opted_out_at = Timestamp(allow_none=True, metadata=_OPTED_OUT)


class ClientChanges(ClientInput):
    """Some fields of a client; those left out stay. `tags` and `attributes` are replaced as a whole."""

    phone = Phone(metadata=_PHONE)


class ClientSchema(Answer):
    """A client."""

    id = fields.Integer(required=True, metadata=about("The id.", 1))
    phone = fields.String(required=True, metadata=about("The number, as E.164.", "+79161234567"))
    operator_code = fields.String(required=True, metadata=about("The mobile operator's code.", "916"))
    tags = fields.List(fields.String(), required=True, metadata=_TAGS)
    timezone = fields.String(required=True, metadata=about("The IANA time zone.", "Europe/Moscow"))
    attributes = fields.Dict(required=True, metadata=_ATTRIBUTES)
    opted_out_at = fields.AwareDateTime(
        required=True,
        allow_none=True,
        metadata=about("Since when no messages are wanted, or null.", "2026-11-23T09:00:00Z"),
    )
    created_at = fields.AwareDateTime(required=True, metadata=about("When it was added.", "2026-11-23T09:00:00Z"))
    updated_at = fields.AwareDateTime(required=True, metadata=about("When it last changed.", "2026-11-23T09:00:00Z"))


class ClientQuery(PageQuery):
    """Which clients, and which page of them."""

    phone = Phone(metadata=about("Only the client with this number, in any spelling.", "+79161234567"))
    operator_code = OperatorCode(metadata=about("Only this operator's.", "916"))
    tag = FilledText(1, rules.TAG_LENGTH, metadata=about("Only those with this tag.", "vip"))


def represent(client: Client | clients.ClientRow) -> dict[str, Any]:
    """A client as callers see it."""
    return {
        "id": client.id,
        "phone": client.phone,
        "operator_code": client.operator_code,
        "tags": client.tags,
        "timezone": client.timezone,
        "attributes": client.attributes,
        "opted_out_at": client.opted_out_at,
        "created_at": client.created_at,
        "updated_at": client.updated_at,
    }


def _with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    return {"tags": [], "attributes": {}, "timezone": current_app.config["DEFAULT_TIMEZONE"], **values}


@blueprint.route("/")
class Clients(MethodView):
    """The list."""

    @blueprint.arguments(ClientQuery, location="query")
    @blueprint.response(200, ClientSchema(many=True), headers=X_PAGINATION)
    def get(self, query: dict[str, Any]) -> Paged:
        """List clients

        In the order in which they were added, all or those with a number, an operator code or a tag.
        """
        marks = (query.get("phone"), query.get("operator_code"), query.get("tag"))
        with reading() as reader:
            found, total = clients.page(reader, *marks, offset_of(query), query["page_size"])
        return paged([represent(client) for client in found], total, query)

    @blueprint.arguments(ClientInput)
    @blueprint.response(201, ClientSchema)
    @blueprint.refuses(409, "A client with this phone exists already.")
    def post(self, values: dict[str, Any]) -> dict[str, Any]:
        """Add a client"""
        client = clients.create(session_of_one_statement(), _with_defaults(values), datetime.now(UTC))
        session.commit()
        return represent(client)


@blueprint.route("/<id:client_id>/", parameters=id_parameter("client_id", "client"))
class OneClient(MethodView):
    """One client."""

    @blueprint.response(200, ClientSchema)
    @blueprint.refuses(404, "There is no such client.")
    def get(self, client_id: int) -> dict[str, Any]:
        """Return one client"""
        with reading() as reader:
            return represent(clients.get(reader, client_id))

    @blueprint.arguments(ClientInput)
    @blueprint.response(200, ClientSchema)
    @blueprint.refuses(404, "There is no such client.")
    @blueprint.refuses(409, "Another client has this phone.")
    def put(self, values: dict[str, Any], client_id: int) -> dict[str, Any]:
        """Replace a client

        Fields left out get their defaults, except `opted_out_at`: who asked for no messages gets none until it is
        set to null in so many words.
        """
        return _edit(client_id, {"operator_code": None, **_with_defaults(values)})

    @blueprint.arguments(ClientChanges)
    @blueprint.response(200, ClientSchema)
    @blueprint.refuses(404, "There is no such client.")
    @blueprint.refuses(409, "Another client has this phone.")
    def patch(self, values: dict[str, Any], client_id: int) -> dict[str, Any]:
        """Change some fields of a client

        `tags` and `attributes` are replaced as a whole. A new phone brings its own operator code, unless the old code
        was set by hand. Opting out cancels the messages that wait for the client.
        """
        return _edit(client_id, values)

    @blueprint.response(204)
    @blueprint.refuses(404, "There is no such client.")
    def delete(self, client_id: int) -> None:
        """Erase a client

        Waiting messages are cancelled; those already sent stay in the statistics, without the number.
        """
        clients.delete(session(), client_id)
        session.commit()


def _edit(client_id: int, changes: dict[str, Any]) -> dict[str, Any]:
    client = clients.edit(session(), client_id, changes, datetime.now(UTC))
    session.commit()
    return represent(client)

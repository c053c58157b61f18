"""The directory of clients."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
from flask import Response, current_app, request
from sqlalchemy.orm import Session

from admin.access import requires
from admin.database import session
from admin.locale import zone_name
from admin.refusals import explain, translate
from admin.texts import gettext
from admin.texts import lazy_gettext as _
from admin.versions import refuse_stale, version_of
from admin.views.base import (
    EXPORTED_AT_ONCE,
    PAGE_SIZE,
    Keyset,
    Page,
    apply,
    argument_text,
    csv_download,
    expose,
    go,
    keyset,
    notify,
)
from db import phones, rules
from db.models import Client, Role
from db.queries import audit, clients, directory, messages, previews
from db.refusals import RefusedError

MESSAGES_SHOWN = 20
# What the form shows of a client.
COLUMNS = ("phone", "operator_code", "tags", "timezone", "attributes")


class Clients(Page):
    """Everybody who can be written to."""

    def __init__(self) -> None:
        super().__init__(_("Clients"), endpoint="clients", url="/clients", menu_icon_value="people")

    @expose("/")
    def index(self) -> Any:
        """Return a page of the list."""
        typed = argument_text("phone", 40)
        wanted = _filter(typed)
        unreadable = bool(typed) and wanted.phone_prefix is None
        return self.render(
            "clients.html",
            page=Keyset([], None, None) if unreadable else _page(wanted),
            wanted=wanted,
            typed=typed,
            unreadable=unreadable,
            estimate=directory.estimated_size(session()),
            tags=previews.common_marks(session())[1],
        )

    @expose("/new", methods=("GET", "POST"))
    @requires(Role.OPERATOR)
    def add(self) -> Any:
        """Return the form of a new client, and add it."""
        if request.method == "GET":
            return self._form(None, _blank())
        fields, values, errors = _read()
        if not errors:
            try:
                client = clients.create(session(), values, datetime.now(UTC))
            except RefusedError as error:
                session.rollback()
                errors[error.field or "phone"] = explain(error)
            else:
                session.commit()
                notify(gettext("The client is added."))
                return go("clients.show", client_id=client.id)
        return self._form(None, fields, errors)

    @expose("/<id:client_id>/")
    def show(self, client_id: int) -> Any:
        """Return a client with the latest messages."""
        client = clients.get(session(), client_id)
        wanted = messages.Filter(client_id=client_id)
        latest = messages.page(session(), wanted, None, MESSAGES_SHOWN, backwards=True)
        return self.render("client.html", client=client, messages=latest)

    @expose("/<id:client_id>/edit", methods=("GET", "POST"))
    @requires(Role.OPERATOR)
    def edit(self, client_id: int) -> Any:
        """Return the form of a client, and save it."""
        client = clients.get(session(), client_id)
        if request.method == "GET":
            return self._form(client, _fields_of(client))
        fields, values, errors = _read()
        if not errors:
            try:
                refuse_stale(clients.lock(session(), client_id), COLUMNS, values)
                clients.edit(session(), client_id, values, datetime.now(UTC))
            except RefusedError as error:
                session.rollback()
                errors[error.field or "phone"] = explain(error)
            else:
                session.commit()
                notify(gettext("Your changes are saved."))
                return go("clients.show", client_id=client_id)
        return self._form(client, fields, errors)

    @expose("/<id:client_id>/opt-out", methods=("POST",))
    @requires(Role.OPERATOR)
    def opt_out(self, client_id: int) -> Any:
        """Write to this client no more, or again."""
        now = datetime.now(UTC)
        is_out = request.form.get("opted_out") == "yes"
        success = gettext("Nothing more will be sent to this client.") if is_out else gettext("The client is back.")
        changes = {"opted_out_at": now if is_out else None}
        apply(lambda: clients.edit(session(), client_id, changes, now), success)
        return go("clients.show", client_id=client_id)

    @expose("/<id:client_id>/delete", methods=("GET", "POST"))
    @requires(Role.OPERATOR)
    def delete(self, client_id: int) -> Any:
        """Ask, and erase the client."""
        if request.method == "GET":
            return self.render("client_delete.html", client=clients.get(session(), client_id))
        apply(lambda: clients.delete(session(), client_id), gettext("The client is erased."))
        return go("clients.index")

    @expose("/export.csv")
    @requires(Role.OPERATOR)
    def export(self) -> Response:
        """Return the list as CSV; the first four columns as an import reads them."""
        wanted = _filter(argument_text("phone", 40))
        audit.record(
            session(), "client.export", after={name: value for name, value in wanted._asdict().items() if value}
        )
        session.commit()
        header = ["phone", "operator_code", "tags", "timezone", "opted_out_at", "attributes"]

        def load(reading: Session, last: int) -> Sequence[Client]:
            return directory.all_after(reading, wanted, last, EXPORTED_AT_ONCE)

        return csv_download("clients.csv", header, load, _export_cells)

    def _form(
        self, client: clients.ClientRow | None, fields: dict[str, str], errors: dict[str, str] | None = None
    ) -> Any:
        errors = errors or {}
        zones = sorted(rules.timezones())
        page = self.render("client_form.html", client=client, fields=fields, errors=errors, zones=zones)
        return page, 409 if "version" in errors else 422 if errors else 200


def _page(wanted: directory.Filter) -> Keyset:
    if wanted.phone_prefix is not None:
        # In the order of the numbers, which is how their index finds them; a longer prefix leads to the rest.
        found = directory.by_phone(session(), wanted, argument_text("from") or None, PAGE_SIZE)
        return Keyset(found, None, None)

    def load(beyond: int | None, limit: int, newer: bool) -> Sequence[Client]:
        return directory.page(session(), wanted, beyond, limit, newer=newer)

    return keyset(load)


def _filter(typed: str) -> directory.Filter:
    opted_out = {"yes": True, "no": False}.get(argument_text("opted_out"))
    return directory.Filter(
        phone_prefix=directory.prefix_of(typed) if typed else None,
        tag=argument_text("tag", rules.TAG_LENGTH) or None,
        opted_out=opted_out,
    )


def _blank() -> dict[str, str]:
    zone = current_app.config["DEFAULT_TIMEZONE"] or zone_name()
    return {"phone": "", "operator_code": "", "tags": "", "timezone": zone, "attributes": "", "version": ""}


def _fields_of(client: clients.ClientRow) -> dict[str, str]:
    return {
        "phone": client.phone,
        "operator_code": client.operator_code,
        "tags": ", ".join(client.tags),
        "timezone": client.timezone,
        "attributes": "\n".join(f"{name} = {_plain(value)}" for name, value in client.attributes.items()),
        "version": version_of(client, COLUMNS),
    }


def _plain(value: Any) -> str:
    return value if isinstance(value, str) and "\n" not in value else orjson.dumps(value).decode()


def _read() -> tuple[dict[str, str], dict[str, Any], dict[str, str]]:
    """The fields as typed, the columns, and what is wrong."""
    fields = {
        name: request.form.get(name, "").strip() for name in ("phone", "operator_code", "tags", "timezone", "version")
    }
    fields["attributes"] = request.form.get("attributes", "").replace("\r\n", "\n")
    values: dict[str, Any] = {}
    errors: dict[str, str] = {}
    try:
        values["phone"] = phones.normalise(fields["phone"][:40])
    except ValueError as error:
        errors["phone"] = gettext("The number %(problem)s.", problem=translate(str(error)))
    code = fields["operator_code"]
    values["operator_code"] = code or None
    if code and not rules.OPERATOR_CODE.match(code):
        errors["operator_code"] = gettext("“%(code)s” is not a code of 2 to 10 digits.", code=code[:30])
    values["timezone"] = fields["timezone"]
    if fields["timezone"] not in rules.timezones():
        errors["timezone"] = gettext("There is no such time zone.")
    values["tags"] = list(dict.fromkeys(tag for tag in map(str.strip, re.split(r"[,;|\n]+", fields["tags"])) if tag))
    if len(values["tags"]) > rules.TAGS or any(len(tag) > rules.TAG_LENGTH for tag in values["tags"]):
        errors["tags"] = gettext(
            "At most %(most)s tags of %(length)s characters.", most=rules.TAGS, length=rules.TAG_LENGTH
        )
    values["attributes"] = _attributes(fields["attributes"], errors)
    return fields, values, errors


def _attributes(text: str, errors: dict[str, str]) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for line in filter(str.strip, text.split("\n")):
        name, equals, value = (piece.strip() for piece in line.partition("="))
        if not equals or not name or len(name) > rules.ATTRIBUTE_NAME_LENGTH:
            errors["attributes"] = gettext("Not readable: “%(line)s”. Write: name = value", line=line[:60])
            return {}
        attributes[name] = value
    if len(attributes) > rules.ATTRIBUTES or len(orjson.dumps(attributes)) > rules.ATTRIBUTES_BYTES:
        errors["attributes"] = gettext("These are too many.")
    return attributes


def _export_cells(client: Client) -> list[str]:
    return [
        client.phone,
        client.operator_code,
        "|".join(client.tags),
        client.timezone,
        client.opted_out_at.astimezone(UTC).isoformat(timespec="seconds") if client.opted_out_at else "",
        orjson.dumps(client.attributes).decode() if client.attributes else "",
    ]

"""The directory of clients."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
from flask import Response, current_app, request
from sqlalchemy.orm import Session

from admin import client_values
from admin.access import requires
from admin.database import session
from admin.locale import zone_name
from admin.mailing_values import Form
from admin.refusals import explain
from admin.texts import gettext
from admin.texts import lazy_gettext as _
from admin.versions import refuse_stale
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
from db import rules
from db.models import Client, Role
from db.queries import audit, clients, directory, messages, previews
from db.refusals import InvalidError, RefusedError

MESSAGES_SHOWN = 20


class Clients(Page):
    """Everybody who can be written to."""

    def __init__(self) -> None:
        super().__init__(_("Clients"), endpoint="clients", url="/clients", menu_icon_value="people")

    @expose("/")
    def index(self) -> Any:
        """Return a page of the list."""
        typed = argument_text("phone", 40)
        wanted = _filter(typed)
        unreadable = _unreadable(typed, wanted)
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
            return self._form(None, client_values.blank(current_app.config["DEFAULT_TIMEZONE"] or zone_name()))
        form = client_values.read(request.form)
        if form.errors:
            return self._form(None, form)
        try:
            client = clients.create(session(), form.values, datetime.now(UTC))
        except RefusedError as error:
            return self._refused(None, form, error)
        session.commit()
        notify(gettext("The client is added."))
        return go("clients.show", client_id=client.id)

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
            return self._form(client, client_values.of_client(client))
        form = client_values.read(request.form, client)
        if form.errors:
            return self._form(client, form)
        try:
            refuse_stale(clients.lock(session(), client_id), client_values.COLUMNS, form.values)
            clients.edit(session(), client_id, form.values, datetime.now(UTC))
        except RefusedError as error:
            return self._refused(client, form, error)
        session.commit()
        notify(gettext("Your changes are saved."))
        return go("clients.show", client_id=client_id)

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
        typed = argument_text("phone", 40)
        wanted = _filter(typed)
        if problem := _unreadable(typed, wanted):
            raise InvalidError(problem, field="phone")  # Without its number the filter would let everyone through.
        audit.record(
            session(), "client.export", after={name: value for name, value in wanted._asdict().items() if value}
        )
        session.commit()
        header = ["phone", "operator_code", "tags", "timezone", "opted_out_at", "attributes"]

        def load(reading: Session, last: int) -> Sequence[Client]:
            return directory.all_after(reading, wanted, last, EXPORTED_AT_ONCE)

        return csv_download("clients.csv", header, load, _export_cells)

    def _refused(self, client: clients.ClientRow | None, form: Form, error: RefusedError) -> Any:
        session.rollback()
        form.errors[error.field or "phone"] = explain(error)
        return self._form(client, form)

    def _form(self, client: clients.ClientRow | None, form: Form) -> Any:
        page = self.render(
            "client_form.html",
            client=client,
            fields=form.fields,
            errors=form.errors,
            # What is taken away stays in sight until that is saved.
            tags=list(dict.fromkeys([*(client.tags if client else []), *form.fields["tags"]])),
            zones=sorted(rules.timezones()),
        )
        return page, 409 if "version" in form.errors else 422 if form.errors else 200


def _page(wanted: directory.Filter) -> Keyset:
    if wanted.phone_prefix is not None:
        # In the order of the numbers, which is how their index finds them; a longer prefix leads to the rest.
        found = directory.by_phone(session(), wanted, argument_text("from") or None, PAGE_SIZE + 1)
        rows = found[:PAGE_SIZE]
        return Keyset(rows, rows[-1].id if len(found) > PAGE_SIZE else None, None)

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


def _unreadable(typed: str, wanted: directory.Filter) -> str | None:
    """Why nobody can be found by what was typed; None where somebody can."""
    if not typed or wanted.phone_prefix is not None:
        return None
    return gettext("This is no beginning of a phone number: digits are, such as +7 916 or 8 916.")


def _export_cells(client: Client) -> list[str]:
    return [
        client.phone,
        client.operator_code,
        "|".join(client.tags),
        client.timezone,
        client.opted_out_at.astimezone(UTC).isoformat(timespec="seconds") if client.opted_out_at else "",
        orjson.dumps(client.attributes).decode() if client.attributes else "",
    ]

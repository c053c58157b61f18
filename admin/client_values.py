"""What the form of a client says, checked by the same rules as the API's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson
from werkzeug.datastructures import MultiDict

from admin.mailing_values import Form, unix_lines
from admin.refusals import translate
from admin.texts import gettext
from admin.versions import version_of
from db import phones, rules
from db.queries.clients import ClientRow

COLUMNS = ("phone", "operator_code", "tags", "timezone", "attributes")
# Attributes are a line each: this stands for the line breaks within.
_BREAK = "⏎"


def blank(timezone: str) -> Form:
    """A new form."""
    empty = {"phone": "", "operator_code": "", "tags": [], "other_tags": "", "attributes": "", "version": ""}
    return Form({**empty, "timezone": timezone})


def of_client(client: ClientRow) -> Form:
    """The form that says what is known of this client."""
    return Form(
        {
            "phone": client.phone,
            "operator_code": client.operator_code,
            "tags": list(client.tags),
            "other_tags": "",
            "timezone": client.timezone,
            "attributes": "\n".join(_line(name, value) for name, value in client.attributes.items()),
            "version": version_of(client, COLUMNS),
        }
    )


def read(sent: MultiDict[str, str], client: ClientRow | None = None) -> Form:
    """Read a form; the attributes of `client`, who is being edited, stay what they are where a line was not changed."""
    lines = ("phone", "operator_code", "other_tags", "timezone", "version")
    fields: dict[str, Any] = {name: sent.get(name, "").strip() for name in lines}
    fields["tags"] = [unix_lines(tag) for tag in sent.getlist("tags")]
    fields["attributes"] = unix_lines(sent.get("attributes", ""))
    form = Form(fields)
    _read_marks(form)
    _read_tags(form)
    _read_attributes(form, client.attributes if client else {})
    return form


def _read_marks(form: Form) -> None:
    try:
        form.values["phone"] = phones.normalise(form.fields["phone"][:40])
    except ValueError as error:
        form.errors["phone"] = gettext("The number %(problem)s.", problem=translate(str(error)))
    code, timezone = form.fields["operator_code"], form.fields["timezone"]
    form.values |= {"operator_code": code or None, "timezone": timezone}
    if code and not rules.OPERATOR_CODE.match(code):
        form.errors["operator_code"] = gettext("“%(code)s” is not a code of 2 to 10 digits.", code=code[:30])
    if timezone not in rules.timezones():
        form.errors["timezone"] = gettext("There is no such time zone.")


def _read_tags(form: Form) -> None:
    others = map(str.strip, re.split(r"[,;|\n]+", form.fields["other_tags"]))
    tags = list(dict.fromkeys(tag for tag in (*form.fields["tags"], *others) if tag))
    if len(tags) > rules.TAGS or any(len(tag) > rules.TAG_LENGTH for tag in tags):
        form.errors["tags"] = gettext(
            "At most %(most)s tags of %(length)s characters.", most=rules.TAGS, length=rules.TAG_LENGTH
        )
    form.values["tags"] = tags


def _line(name: str, value: Any) -> str:
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return unix_lines(f"{name} = {text}").replace("\n", _BREAK).strip()


def _read_attributes(form: Form, stored: Mapping[str, Any]) -> None:
    # Not every value can be typed, such as a number or nothing at all: what was not touched is not read.
    unchanged: dict[str, list[tuple[str, Any]]] = {}
    for attribute in stored.items():
        unchanged.setdefault(_line(*attribute), []).append(attribute)
    attributes: dict[str, Any] = {}
    for line in filter(None, map(str.strip, form.fields["attributes"].split("\n"))):
        if same := unchanged.get(line):
            name, value = same.pop()
        else:
            name, equals, value = (piece.strip().replace(_BREAK, "\n") for piece in line.partition("="))
            if not equals or not name or len(name) > rules.ATTRIBUTE_NAME_LENGTH:
                form.errors["attributes"] = gettext("Not readable: “%(line)s”. Write: name = value", line=line[:60])
                return
        attributes[name] = value
    if len(attributes) > rules.ATTRIBUTES or len(orjson.dumps(attributes)) > rules.ATTRIBUTES_BYTES:
        form.errors["attributes"] = gettext("These are too many.")
    form.values["attributes"] = attributes

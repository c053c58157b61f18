"""What the form of a mailing says, checked by the same rules as the API's."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from datetime import UTC, datetime, time, timedelta
from typing import Any

from werkzeug.datastructures import MultiDict

from admin.locale import input_value, local, zone
from admin.texts import gettext
from admin.versions import version_of
from db import rules
from db.models import Mailing, MailingState

COLUMNS = ("name", "text", "operator_codes", "tags", "starts_at", "ends_at", "window_from", "window_to")
NOW, LATER, DRAFT = "now", "later", "draft"
_CLOCK = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]\Z")
_LOCAL = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(:[0-9]{2})?\Z")


@dataclasses.dataclass
class Form:
    """The fields as they were typed, what is wrong with them, and the columns that they stand for."""

    fields: dict[str, Any]
    errors: dict[str, str] = dataclasses.field(default_factory=dict)
    values: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def operator_codes(self) -> list[str]:
        """The filter, as far as it can be read."""
        return list(self.values.get("operator_codes", []))

    @property
    def tags(self) -> list[str]:
        """The filter, as far as it can be read."""
        return list(self.values.get("tags", []))


def blank(now: datetime) -> Form:
    """A new form: at once, until tomorrow evening, by day only."""
    tomorrow = local(now) + timedelta(days=1)
    ends_at = tomorrow.replace(hour=21, minute=0, second=0, microsecond=0)
    return Form(
        {
            "name": "",
            "text": "",
            "operator_codes": "",
            "tags": [],
            "other_tags": "",
            "when": NOW,
            "starts_at": "",
            "ends_at": input_value(ends_at),
            "window": True,
            "window_from": "09:00",
            "window_to": "21:00",
            "phone": "",
            "version": "",
        }
    )


def of_mailing(mailing: Mailing, now: datetime, *, is_copy: bool = False) -> Form:
    """The form that says what this mailing is, or what a copy of it would be."""
    form = blank(now)
    form.fields |= {
        "name": mailing.name[: rules.NAME_LENGTH],
        "text": mailing.text,
        "operator_codes": ", ".join(mailing.operator_codes),
        "tags": list(mailing.tags),
        "window": mailing.window_from is not None,
    }
    if mailing.window_from is not None and mailing.window_to is not None:
        form.fields |= {"window_from": f"{mailing.window_from:%H:%M}", "window_to": f"{mailing.window_to:%H:%M}"}
    if not is_copy:
        form.fields |= {
            "when": DRAFT if mailing.state is MailingState.DRAFT else LATER,
            "starts_at": input_value(mailing.starts_at),
            "ends_at": input_value(mailing.ends_at),
            "version": version_of(mailing, COLUMNS),
        }
    form.values |= {"operator_codes": mailing.operator_codes, "tags": mailing.tags}
    return form


def with_absent(sent: MultiDict[str, str], mailing: Mailing, now: datetime) -> MultiDict[str, str]:
    """What was sent of this mailing's form. Browsers leave out what cannot be changed any more: it is as it is."""
    kept = of_mailing(mailing, now).fields
    whole = sent.copy()
    for name in ("text", "operator_codes", "starts_at", "ends_at"):
        whole.setdefault(name, kept[name])
    # Boxes that are not checked are left out as well: the field beside them tells.
    if "other_tags" not in sent:
        whole.setlist("tags", kept["tags"])
    if "window_from" not in sent:
        whole.update({name: kept[name] for name in ("window_from", "window_to")})
        whole["window"] = "on" if kept["window"] else ""
    whole["when"] = LATER
    return whole


def read(sent: MultiDict[str, str], kept: Mailing | None = None) -> Form:
    """Read a form; `kept` is the mailing being edited, whose text and times stay exactly unless they were changed."""
    fields: dict[str, Any] = {
        name: sent.get(name, "").strip()
        for name in (
            "name",
            "operator_codes",
            "other_tags",
            "starts_at",
            "ends_at",
            "window_from",
            "window_to",
            "phone",
            "version",
        )
    }
    fields["text"] = unix_lines(sent.get("text", ""))
    fields["tags"] = [unix_lines(tag) for tag in sent.getlist("tags")]
    fields["when"] = sent.get("when") if sent.get("when") in (NOW, LATER, DRAFT) else NOW
    fields["window"] = sent.get("window") == "on"
    form = Form(fields)
    _read_texts(form, kept)
    _read_filter(form)
    _read_window(form)
    _read_times(form, kept)
    return form


def _read_texts(form: Form, kept: Mailing | None) -> None:
    for name, longest in (("name", rules.NAME_LENGTH), ("text", rules.TEXT_LENGTH)):
        text = form.fields[name]
        if not text.strip():
            form.errors[name] = gettext("Please fill this in.")
        elif len(text) > longest:
            form.errors[name] = gettext("At most %(most)s characters, please.", most=longest)
        else:
            form.values[name] = text
    if kept is not None and form.values.get("text") == unix_lines(kept.text):
        form.values["text"] = kept.text


def _read_filter(form: Form) -> None:
    codes = list(dict.fromkeys(code for code in re.split(r"[\s,;|]+", form.fields["operator_codes"]) if code))
    if wrong := [code for code in codes if not rules.OPERATOR_CODE.match(code)]:
        form.errors["operator_codes"] = gettext("“%(code)s” is not a code of 2 to 10 digits.", code=wrong[0][:30])
    elif len(codes) > rules.FILTER_CODES:
        form.errors["operator_codes"] = gettext("At most %(most)s, please.", most=rules.FILTER_CODES)
    else:
        form.values["operator_codes"] = codes
    others = [tag.strip() for tag in re.split(r"[,;|\n]+", form.fields["other_tags"])]
    tags = list(dict.fromkeys(tag for tag in (*form.fields["tags"], *others) if tag))
    if len(tags) > rules.TAGS:
        form.errors["tags"] = gettext("At most %(most)s, please.", most=rules.TAGS)
    elif too_long := [tag for tag in tags if len(tag) > rules.TAG_LENGTH]:
        form.errors["tags"] = gettext("“%(tag)s…” is too long for a tag.", tag=too_long[0][:20])
    else:
        form.values["tags"] = tags


def _read_window(form: Form) -> None:
    form.values["window_from"] = form.values["window_to"] = None
    if not form.fields["window"]:
        return
    opens, closes = form.fields["window_from"], form.fields["window_to"]
    if not _CLOCK.match(opens) or not _CLOCK.match(closes):
        form.errors["window"] = gettext("Please give both times, such as 09:00 and 21:00.")
    elif opens == closes:
        form.errors["window"] = gettext("The two times must differ.")
    else:
        form.values |= {"window_from": time.fromisoformat(opens), "window_to": time.fromisoformat(closes)}


def _read_times(form: Form, kept: Mailing | None) -> None:
    if form.fields["when"] == LATER:
        form.values["starts_at"] = _instant(form, "starts_at", kept)
    form.values["ends_at"] = _instant(form, "ends_at", kept)
    for name in ("starts_at", "ends_at"):
        if form.values.get(name) is None:
            form.values.pop(name, None)
    if form.fields["when"] == DRAFT:
        form.values["state"] = MailingState.DRAFT


def _instant(form: Form, name: str, kept: Mailing | None) -> datetime | None:
    text = form.fields[name]
    was: datetime | None = getattr(kept, name) if kept else None
    if was is not None and text == input_value(was):
        return was
    if not _LOCAL.match(text):
        form.errors[name] = gettext("Please give a date and a time.")
        return None
    try:
        typed = datetime.fromisoformat(text)
    except ValueError:
        form.errors[name] = gettext("There is no such date.")
        return None
    if not rules.is_known_year(typed):
        form.errors[name] = gettext(
            "Please choose a year from %(first)s to %(last)s.", first=rules.FIRST_YEAR, last=rules.LAST_YEAR
        )
        return None
    return typed.replace(tzinfo=zone()).astimezone(UTC)


def unix_lines(text: str) -> str:
    """The text as it was before a browser sent its line ends as in DOS, which a phone would count as two characters."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def field_of(domain_field: str | None) -> str:
    """Where in the form a refusal of the domain belongs."""
    places: Mapping[str, str] = {"filter": "operator_codes", "send_window": "window", "Idempotency-Key": "name"}
    return places.get(domain_field or "", domain_field or "name")

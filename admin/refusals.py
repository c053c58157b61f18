"""The domain's refusals, and what imports say of rows, in the language of the page.

`db/` speaks English, for programs and people alike. Every sentence that people can meet here is listed with its
translation; one that is not listed is shown as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from flask import Flask

from admin.labels import STATES
from admin.texts import gettext
from admin.texts import lazy_gettext as _
from db.models import MailingState
from db.refusals import RefusedError

# Each once as a key, as `db/` says it, and once for the translators.
_SENTENCES = {
    "a client with this phone exists already": _("a client with this phone exists already"),
    "required for a number outside +7": _("required for a number outside +7"),
    "its end time has passed: it cannot be started": _("its end time has passed: it cannot be started"),
    "its end time has passed: nothing can be sent any more": _("its end time has passed: nothing can be sent any more"),
    "must be after starts_at": _("must be after the start"),
    "must be in the future": _("must be in the future"),
    "this client has opted out": _("this client has opted out"),
    "is not an e-mail address": _("is not an e-mail address"),
    "must have at least 10 characters": _("must have at least 10 characters"),
    "must have at most 200 characters": _("must have at most 200 characters"),
    "a user with this e-mail address exists already": _("a user with this e-mail address exists already"),
    "this is the last admin: make another one first": _("this is the last admin: make another one first"),
    "the mailing made with this Idempotency-Key was deleted": _("this mailing was made already, and deleted since"),
    "is empty": _("is empty"),
    "has no country code that exists": _("has no country code that exists"),
    "is not a number that exists": _("is not a number that exists"),
    "may hold only digits, spaces, brackets and dashes, with or without a + in front": _(
        "may hold only digits, spaces, brackets and dashes, with or without a + in front"
    ),
    "has too few or too many digits": _("has too few or too many digits"),
    "must begin with +7, 7 or 8 and have eleven digits, or begin with + and another country code": _(
        "must begin with +7, 7 or 8 and have eleven digits, or begin with + and another country code"
    ),
    "This is an Excel file (or another ZIP archive): save it as CSV UTF-8.": _(
        "This is an Excel file (or another ZIP archive): save it as CSV UTF-8."
    ),
    "This is an old Excel file: save it as CSV UTF-8.": _("This is an old Excel file: save it as CSV UTF-8."),
    "This is a compressed file: unpack it first.": _("This is a compressed file: unpack it first."),
    "This is a PDF file: a CSV file is needed.": _("This is a PDF file: a CSV file is needed."),
    "The file is encoded as UTF-16: save it as CSV UTF-8.": _("The file is encoded as UTF-16: save it as CSV UTF-8."),
    "The file holds NUL bytes: it is no text, or UTF-16. Save it as CSV UTF-8.": _(
        "The file holds NUL bytes: it is no text, or UTF-16. Save it as CSV UTF-8."
    ),
    "The first line holds more than a header can: this is not CSV.": _(
        "The first line holds more than a header can: this is not CSV."
    ),
    "The body is not a valid multipart form.": _("The body is not a valid multipart form."),
    "the file broke off on the way": _("the file broke off on the way"),
    "a quotation mark is not closed, or not doubled inside a quoted cell": _(
        "a quotation mark is not closed, or not doubled inside a quoted cell"
    ),
}

_FIELDS = {
    "starts_at": _("start"),
    "ends_at": _("end"),
    "text": _("text"),
    "filter": _("recipients"),
    "send_window": _("sending hours"),
    "name": _("name"),
}


def _state(name: str) -> str:
    return str(STATES[MailingState(name)]).lower()


def _field(name: str) -> str:
    return str(_FIELDS.get(name, name))


_PATTERNS: list[tuple[re.Pattern[str], Callable[[re.Match[str]], str]]] = [
    (
        re.compile(r"a (\w+) mailing cannot be (?:started|paused|resumed|cancelled)\Z"),
        lambda found: gettext(
            "This is not possible any more: the state of the mailing is now “%(state)s”.", state=_state(found[1])
        ),
    ),
    (
        re.compile(r"a (\w+) mailing has nothing to retry\Z"),
        lambda found: gettext(
            "There is nothing to retry: the state of the mailing is “%(state)s”.", state=_state(found[1])
        ),
    ),
    (
        re.compile(r"(\w+) cannot be changed after the start of a mailing\Z"),
        lambda found: gettext("This cannot be changed after the start: %(field)s.", field=_field(found[1])),
    ),
    (
        re.compile(r"(\w+) cannot be changed in a (\w+) mailing\Z"),
        lambda found: gettext(
            "This cannot be changed any more: %(field)s. The state of the mailing is “%(state)s”.",
            field=_field(found[1]),
            state=_state(found[2]),
        ),
    ),
    (
        re.compile(r"the name in a placeholder may have at most ([0-9]+) characters\Z"),
        lambda found: gettext("the name in a placeholder may have at most %(most)s characters", most=found[1]),
    ),
    # Rows of imports: the column first, then what was in it.
    (
        re.compile(r"phone: '(.*)' (.*)\Z", re.DOTALL),
        lambda found: gettext("phone: “%(value)s” %(problem)s", value=found[1], problem=translate(found[2])),
    ),
    (re.compile(r"phone: (is empty)\Z"), lambda found: gettext("phone: %(problem)s", problem=translate(found[1]))),
    (
        re.compile(r"timezone: '(.*)' is not an IANA time zone such as Europe/Moscow\Z", re.DOTALL),
        lambda found: gettext("timezone: “%(value)s” is no time zone; one is, e.g., Europe/Moscow", value=found[1]),
    ),
    (
        re.compile(r"operator_code: '(.*)' is not a code of 2 to 10 digits\Z", re.DOTALL),
        lambda found: gettext("operator_code: “%(value)s” is not a code of 2 to 10 digits", value=found[1]),
    ),
    (
        re.compile(r"operator_code: required for a new number outside \+7\Z"),
        lambda _found: gettext("operator_code: required for a new number outside +7"),
    ),
    (
        re.compile(r"tags: '(.*)' is longer than ([0-9]+) characters\Z", re.DOTALL),
        lambda found: gettext("tags: “%(value)s” is longer than %(most)s characters", value=found[1], most=found[2]),
    ),
    (
        re.compile(r"tags: ([0-9]+) tags, ([0-9]+) are allowed\Z"),
        lambda found: gettext("tags: there are %(count)s, %(most)s are allowed", count=found[1], most=found[2]),
    ),
    (
        re.compile(r"column ([0-9]+): the row has ([0-9]+) cells, but the header ([0-9]+) columns\Z"),
        lambda found: gettext(
            "the row has %(cells)s cells, but the header %(columns)s columns", cells=found[2], columns=found[3]
        ),
    ),
    (
        re.compile(r"(.*): missing, the row ends before this column\Z", re.DOTALL),
        lambda found: gettext("%(column)s: missing, the row ends before this column", column=found[1]),
    ),
    (
        re.compile(r"(.*): the attributes take ([0-9]+) bytes, ([0-9]+) are allowed\Z", re.DOTALL),
        lambda found: gettext(
            "%(column)s: the attributes take %(size)s bytes, %(most)s are allowed",
            column=found[1],
            size=found[2],
            most=found[3],
        ),
    ),
    (
        re.compile(r"column ([0-9]+): has a value but no name in the header\Z"),
        lambda found: gettext("column %(number)s has a value, but no name in the header", number=found[1]),
    ),
    (
        re.compile(r"the row cannot be read: (.*)\Z"),
        lambda found: gettext("the row cannot be read: %(problem)s", problem=translate(found[1])),
    ),
    (
        re.compile(r"a cell is longer than ([0-9]+) characters\Z"),
        lambda found: gettext("a cell is longer than %(most)s characters", most=found[1]),
    ),
    # Files as a whole.
    (
        re.compile(r"The header has no column 'phone'; its columns are without names\.\Z"),
        lambda _found: gettext("The header has no column “phone”; its columns have no names."),
    ),
    (
        re.compile(r"The header has no column 'phone'; its columns are '(.*)'\.\Z", re.DOTALL),
        lambda found: gettext(
            "The header has no column “phone”; its columns are %(columns)s.", columns=found[1].replace("', '", ", ")
        ),
    ),
    (
        re.compile(r"The header has more than ([0-9]+) columns for attributes\.\Z"),
        lambda found: gettext("The header has more than %(most)s columns for attributes.", most=found[1]),
    ),
    (
        re.compile(r"The column name '(.*)' is longer than ([0-9]+) characters\.\Z", re.DOTALL),
        lambda found: gettext(
            "The column name “%(column)s” is longer than %(most)s characters.", column=found[1], most=found[2]
        ),
    ),
    (
        re.compile(r"Line ([0-9]+), the header: (.*)\.\Z"),
        lambda found: gettext("Line %(line)s, the header: %(problem)s.", line=found[1], problem=translate(found[2])),
    ),
    (
        re.compile(r"Line ([0-9]+) is longer than ([0-9]+) characters: this is not CSV\.\Z"),
        lambda found: gettext(
            "Line %(line)s is longer than %(most)s characters: this is not CSV.", line=found[1], most=found[2]
        ),
    ),
    (
        re.compile(r"More than ([0-9]+) rows have a quotation mark that is not closed, the last in line ([0-9]+):"),
        lambda found: gettext(
            "More than %(most)s rows have an unclosed quotation mark, the last in line %(line)s: this is not CSV.",
            most=found[1],
            line=found[2],
        ),
    ),
    (
        re.compile(r"The file has more than ([0-9]+) rows: split it and import the parts\.\Z"),
        lambda found: gettext("The file has more than %(most)s rows: split it and import the parts.", most=found[1]),
    ),
    (
        re.compile(r"The header names the column '(.*)' twice\.\Z", re.DOTALL),
        lambda found: gettext("The header names the column “%(column)s” twice.", column=found[1]),
    ),
    (
        re.compile(r"The file is not UTF-8 \(line ([0-9]+)\), it looks like Windows-1251: save it as CSV UTF-8\.\Z"),
        lambda found: gettext(
            "The file is not UTF-8 (line %(line)s), it looks like Windows-1251: save it as CSV UTF-8.", line=found[1]
        ),
    ),
    (
        re.compile(r"The file is not UTF-8 \(line ([0-9]+)\): save it as CSV UTF-8\.\Z"),
        lambda found: gettext("The file is not UTF-8 (line %(line)s): save it as CSV UTF-8.", line=found[1]),
    ),
    (re.compile(r"The file is empty\.\Z"), lambda _found: gettext("The file is empty.")),
    (
        re.compile(r"The file has a header, but no row below it\.\Z"),
        lambda _found: gettext("The file has a header, but no row below it."),
    ),
    (
        re.compile(r"The form has no field 'file'\.\Z"),
        lambda _found: gettext("Choose a file first."),
    ),
    (
        re.compile(r"the file is larger than ([0-9]+) MB: split it and import the parts\Z"),
        lambda found: gettext("The file is larger than %(size)s MB: split it and import the parts.", size=found[1]),
    ),
]

# Where the next mistake of a row begins.
_NEXT_MISTAKE = re.compile(r"; (?=(?:operator_code|tags|timezone): |[^;]*: the attributes take )")


def explain(error: RefusedError) -> str:
    """The refusal as a sentence of its own."""
    text = translate(error.reason)
    return text[:1].upper() + text[1:]


def translate(reason: str) -> str:
    """The refusal in the language of the page."""
    return "; ".join(map(_translate_one, _NEXT_MISTAKE.split(reason)))


def _translate_one(reason: str) -> str:
    if reason in _SENTENCES:
        return str(_SENTENCES[reason])
    for pattern, sentence in _PATTERNS:
        if found := pattern.match(reason):
            return sentence(found)
    return reason


def init(app: Flask) -> None:
    """Offer it to templates."""
    app.jinja_env.filters["refusal"] = translate

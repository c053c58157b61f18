"""The Russian catalogue is whole, and compiled from what is written."""

from __future__ import annotations

import gettext
import re
from pathlib import Path

import babel.messages.pofile
from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract_from_dir

ADMIN = Path(__file__).resolve().parents[2] / "admin"
RUSSIAN = ADMIN / "translations" / "ru" / "LC_MESSAGES"
KEYWORDS = {"_": None, "gettext": None, "ngettext": (1, 2), "lazy_gettext": None, "_in": ((1, "c"), 2)}
_FIELD = re.compile(r"%\((\w+)\)s")


def _russian() -> Catalog:
    with (RUSSIAN / "messages.po").open("rb") as file:
        return babel.messages.pofile.read_po(file)


def _texts_in_use() -> set[tuple[str | None, str]]:
    """Context and text of everything that the code and the templates ask a translation for."""
    methods = [("templates/**.html", "jinja2"), ("**.py", "python")]
    options = {"templates/**.html": {"trimmed": "true"}}
    found = extract_from_dir(ADMIN, methods, options, keywords=KEYWORDS)
    return {(context, text if isinstance(text, str) else text[0]) for _, _, text, _, context in found}


def _forms(message: Message) -> list[str]:
    return [message.string] if isinstance(message.string, str) else list(message.string or ())


def test_every_text_has_a_translation() -> None:
    translated = {
        (message.context, message.id if isinstance(message.id, str) else message.id[0])
        for message in _russian()
        if message.id and message.string and all(message.string) and not message.fuzzy
    }
    assert len(translated) > 400
    assert _texts_in_use() - translated == set()


def test_translations_fill_in_the_same_values() -> None:
    for message in _russian():
        if not message.id:
            continue
        texts = message.id if isinstance(message.id, tuple | list) else (message.id,)
        strings = _forms(message)
        wanted = set(_FIELD.findall("".join(texts)))
        for string in strings:
            assert set(_FIELD.findall(string)) <= wanted, message.id
            assert len(strings) > 1 or set(_FIELD.findall(string)) == wanted, message.id


def test_compiled_catalogue_is_up_to_date() -> None:
    with (RUSSIAN / "messages.mo").open("rb") as file:
        compiled = gettext.GNUTranslations(file)
    for message in _russian():
        if isinstance(message.id, str) and message.id:
            found = compiled.pgettext(message.context, message.id) if message.context else compiled.gettext(message.id)
            assert [found] == _forms(message), f"{message.id}: make translate"
        elif message.id:
            one, many = message.id
            # The numbers that need each of the three Russian forms.
            assert [compiled.ngettext(one, many, number) for number in (1, 2, 5)] == _forms(message)

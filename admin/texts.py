"""Flask-Babel's functions, with types. What they are called here is what `make translate` looks for."""

from __future__ import annotations

from typing import Any

import flask_babel
from flask_babel import LazyString, lazy_gettext, lazy_pgettext

__all__ = ["LazyString", "gettext", "lazy_gettext", "lazy_pgettext", "ngettext"]


def gettext(text: str, **values: Any) -> str:
    """The text in the language of this request."""
    return str(flask_babel.gettext(text, **values))


def ngettext(one: str, many: str, number: int, **values: Any) -> str:
    """The text in the form that this number needs; the number itself is `num`."""
    return str(flask_babel.ngettext(one, many, number, **values))

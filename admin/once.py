"""Forms that make something once, however often they are sent: by a second click, a reload, or after going back.

Each page's form carries a token of its own, and what is made of it bears it in the database, where it is unique. The
session could not tell what was made: it is a cookie, which an answer that comes late sets back.
"""

from __future__ import annotations

import re
import secrets

from flask import request

FIELD = "once"
_TOKEN = re.compile(r"[0-9a-f]{64}")


def new_token() -> str:
    """256 random bits for a form."""
    return secrets.token_hex(32)


def given_token() -> str | None:
    """Return the token of the form that was sent; None when it has none that a page of ours could have made."""
    token = request.form.get(FIELD, "")
    return token if _TOKEN.fullmatch(token) else None

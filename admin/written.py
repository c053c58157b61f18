"""What somebody had written when the session ended: carried through the log-in in a hidden field, and sent again then.

Without it an afternoon's text would be lost to a form that was sent too late, or from a page older than the log-in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import orjson
from flask import current_app, request
from werkzeug.exceptions import HTTPException

# The pages on which people write more than they would like to write again.
ENDPOINTS = frozenset({"mailing_form.index", "mailing_form.edit", "clients.add", "clients.edit"})
FIELD = "written"


class Written(NamedTuple):
    """A form that was refused for want of a session."""

    path: str
    fields: Sequence[tuple[str, str]]

    def packed(self) -> str:
        """As text, for a hidden field."""
        return orjson.dumps([self.path, self.fields]).decode()


def sent() -> Written | None:
    """What this request would have saved, or carries; None when it comes from no page on which people write."""
    if request.endpoint == "login.index":
        return carried()
    if request.method != "POST" or request.endpoint not in ENDPOINTS:
        return None
    fields = [(name, value) for name, value in request.form.items(multi=True) if name != "csrf_token"]
    return Written(request.path, fields)


def is_from_our_page() -> bool:
    """Whether the browser vouches that one of our pages sent this, for a request without the token of the session."""
    return request.headers.get("Sec-Fetch-Site") == "same-origin"


def carried() -> Written | None:
    """What the log-in form carries; None when there is nothing, or nothing that this module packed."""
    try:
        path, fields = orjson.loads(request.form.get(FIELD, ""))
        endpoint, _values = current_app.url_map.bind("").match(path, method="POST")
        written = Written(path, [(str(name), str(value)) for name, value in fields])
    except (ValueError, TypeError, AttributeError, HTTPException):
        return None
    return written if endpoint in ENDPOINTS else None

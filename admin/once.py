"""Forms that are answered with a secret, on the spot: reloading that page may not do the work again.

The session is kept in a cookie, which is no place to put the secret by for a page to redirect to.
"""

from __future__ import annotations

import secrets

from flask import request, session

from admin.texts import gettext
from db.refusals import ConflictError

FIELD = "once"


def token() -> str:
    """What the next such form of this session carries, in a hidden field."""
    if FIELD not in session:
        session[FIELD] = secrets.token_urlsafe(12)
    return str(session[FIELD])


def use_up() -> None:
    """Raise ConflictError when the form has been sent before; from now on it has."""
    if request.form.get(FIELD) != token():
        reason = gettext("Nothing was done: this form had been sent before. To do it again, open the page anew.")
        raise ConflictError(reason, field=FIELD)
    del session[FIELD]

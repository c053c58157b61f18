"""API keys: made and shown once, revoked."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from secrets import token_urlsafe
from typing import Any

from flask import request

from admin.database import session
from admin.security import derived
from admin.texts import gettext
from admin.texts import lazy_gettext as _
from admin.views.base import Page, apply, expose, go, notify
from db.models import Role, Scope
from db.queries import api_keys
from db.refusals import ConflictError
from db.rules import NAME_LENGTH

_SEED = re.compile(r"[A-Za-z0-9_-]{43}")


class ApiKeys(Page):
    """What programs use instead of a password."""

    min_role = Role.ADMIN

    def __init__(self) -> None:
        super().__init__(_("API keys"), endpoint="api_keys", url="/api-keys", menu_icon_value="key")

    @expose("/")
    def index(self) -> Any:
        """Return the list."""
        return self._page()

    @expose("/", methods=("POST",))
    def add(self) -> Any:
        """Make a key and show it, this once."""
        name = request.form.get("name", "").strip()
        scope = request.form.get("scope", "")
        if not name or len(name) > NAME_LENGTH or scope not in set(Scope):
            return self._page(problem=gettext("Please say what the key is for."), name=name[:NAME_LENGTH]), 422
        token = _token_of(request.form.get("seed", ""))
        if token is None or not api_keys.create(session(), name, Scope(scope), token):
            reason = gettext("Nothing was done: this form had been sent before. To do it again, open the page anew.")
            raise ConflictError(reason)
        session.commit()
        return self._page(token=token, token_name=name)

    @expose("/<id:key_id>/revoke", methods=("GET", "POST"))
    def revoke(self, key_id: int) -> Any:
        """Ask, and end a key."""
        key = api_keys.get(session(), key_id)
        if request.method == "GET":
            return self.render("api_key_revoke.html", key=key)
        if not api_keys.revoke(session(), key_id, datetime.now(UTC)):
            notify(gettext("This key was revoked before."), "error")
            return go("api_keys.index")
        apply(lambda: None, gettext("The key is revoked: within two seconds nobody can use it any more."))
        return go("api_keys.index")

    def _page(self, **more: Any) -> str:
        keys = api_keys.everyone(session())
        return str(self.render("api_keys.html", keys=keys, scopes=Scope, seed=token_urlsafe(32), **more))


def _token_of(seed: str) -> str | None:
    """The key that a form makes, by what is hidden in it: shown in answer to the form, it may not be made twice.

    Nothing about it can be put by in the session, a cookie that answers coming late would set back.
    """
    if not _SEED.fullmatch(seed):
        return None
    return api_keys.token_of(derived("api key", seed))

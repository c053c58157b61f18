"""API keys: made and shown once, revoked."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from flask import request

from admin import once
from admin.database import session
from admin.security import derived
from admin.texts import gettext
from admin.texts import lazy_gettext as _
from admin.views.base import Page, apply, expose, go, notify
from db.models import Role, Scope
from db.queries import api_keys
from db.rules import NAME_LENGTH


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
        # Made of the form itself: the key is shown in answer to it, and a reload sends it again.
        form_token = once.given_token()
        key = api_keys.token_of(derived("api key", form_token)) if form_token else None
        if key is None or not api_keys.create(session(), name, Scope(scope), key):
            notify(gettext("Nothing was done: this form had been sent before."), "error")
            return self._page(), 409
        session.commit()
        return self._page(token=key, token_name=name)

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
        return str(self.render("api_keys.html", keys=api_keys.everyone(session()), scopes=Scope, **more))

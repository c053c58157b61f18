"""One's own password, language, time zone and sessions."""

from __future__ import annotations

from typing import Any

from flask import request

from admin import access
from admin.database import session
from admin.refusals import explain
from admin.texts import gettext
from admin.views.base import Page, expose, go, notify
from db import passwords, rules
from db.queries import users
from db.refusals import RefusedError


class Account(Page):
    """What people can change about themselves."""

    in_menu = False

    def __init__(self) -> None:
        super().__init__("", endpoint="account", url="/account")

    @expose("/")
    def index(self) -> Any:
        """Return the page."""
        return self._page()

    @expose("/password", methods=("POST",))
    def password(self) -> Any:
        """Set a new password; every other session ends."""
        account = access.logged_in().account
        old, new = request.form.get("old", ""), request.form.get("new", "")
        if not passwords.verify(old[: passwords.LONGEST], account.password_hash):
            return self._page(problem=gettext("The current password is wrong."), problem_field="old"), 422
        try:
            changed = users.set_password(session(), account.id, new)
        except RefusedError as error:
            session.rollback()
            return self._page(problem=explain(error), problem_field="new"), 422
        session.commit()
        access.begin(changed)
        notify(gettext("Your password is changed, and your other sessions are ended."))
        return go("account.index")

    @expose("/logout-everywhere", methods=("POST",))
    def log_out_everywhere(self) -> Any:
        """End all sessions, this one too."""
        users.log_out_everywhere(session(), access.logged_in().account.id)
        session.commit()
        access.end()
        notify(gettext("You are logged out everywhere."))
        return go("login.index")

    def _page(self, **more: Any) -> str:
        account = access.logged_in().account
        zones = sorted(rules.timezones())
        return str(self.render("account.html", account=account, zones=zones, shortest=passwords.SHORTEST, **more))

"""The people who may log in."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from flask import request

from admin.access import logged_in
from admin.database import session
from admin.refusals import explain
from admin.texts import gettext
from admin.texts import lazy_gettext as _
from admin.versions import is_stale, version_of
from admin.views.base import Page, apply, expose, go, notify
from db import passwords
from db.models import Role
from db.queries import users
from db.refusals import RefusedError

_REPLACED = ("password_hash",)


class Users(Page):
    """Adding people, choosing what they may do, and showing them out."""

    min_role = Role.ADMIN

    def __init__(self) -> None:
        super().__init__(_("Users"), endpoint="users", url="/users", menu_icon_value="user")

    @expose("/")
    def index(self) -> Any:
        """Return the list."""
        return self._page()

    @expose("/", methods=("POST",))
    def add(self) -> Any:
        """Add a user with a password made here, and show it, this once."""
        email, role = request.form.get("email", "").strip(), request.form.get("role", "")
        if role not in set(Role):
            return self._page(problem=gettext("Please choose a role."), email=email), 422
        password = passwords.generate()
        try:
            user = users.create(session(), email, password, Role(role))
        except RefusedError as error:
            session.rollback()
            return self._page(problem=explain(error), email=email), 422
        session.commit()
        return self._page(password=password, password_of=user.email)

    @expose("/<id:user_id>/", methods=("GET", "POST"))
    def edit(self, user_id: int) -> Any:
        """Return one user, and save role and access."""
        user = users.get(session(), user_id)
        if request.method == "GET":
            return self.render("user.html", user=user, roles=Role, is_self=user.id == logged_in().account.id)
        role = request.form.get("role", "")
        if role in set(Role):
            now = datetime.now(UTC)
            is_disabled = request.form.get("disabled") == "on"
            apply(
                lambda: users.change(session(), user_id, now, role=Role(role), is_disabled=is_disabled),
                gettext("Your changes are saved."),
            )
        return go("users.index")

    @expose("/<id:user_id>/password", methods=("GET", "POST"))
    def reset(self, user_id: int) -> Any:
        """Ask, give a new password, shown this once, and log the user out everywhere."""
        if request.method == "GET":
            user = users.get(session(), user_id)
            return self.render("user_password.html", user=user, version=version_of(user, _REPLACED))
        # Shown in answer to its form, which a reload sends again: that must not make another one.
        if is_stale(users.lock(session(), user_id), _REPLACED):
            session.rollback()
            notify(gettext("Nothing was done: the password was replaced after the page had been opened."), "error")
            return self._page(), 409
        password = passwords.generate()
        user = users.set_password(session(), user_id, password)
        session.commit()
        return self._page(password=password, password_of=user.email)

    @expose("/<id:user_id>/logout", methods=("POST",))
    def log_out(self, user_id: int) -> Any:
        """End every session of a user."""
        apply(lambda: users.log_out_everywhere(session(), user_id), gettext("All sessions of this user are ended."))
        return go("users.index")

    def _page(self, **more: Any) -> str:
        return str(self.render("users.html", users=users.everyone(session()), roles=Role, **more))

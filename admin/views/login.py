"""Logging in and out, and how pages look."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import urlsplit

from flask import Blueprint, make_response, render_template, request, session, url_for
from werkzeug.wrappers import Response

from admin import access, written
from admin.database import database
from admin.locale import LANGUAGES
from admin.texts import gettext
from admin.views.base import go, notify
from db import rules
from db.queries import audit, users

blueprint = Blueprint("login", __name__)

_ANONYMOUS = "anonymous"


@blueprint.route("/login", methods=["GET", "POST"])
def index() -> Response:
    """Ask for e-mail address and password, and check them."""
    if access.person() is not None:
        return go("dashboard.index")
    if request.method == "GET":
        return _form()
    email, password = request.form.get("email", ""), request.form.get("password", "")
    address = request.remote_addr or "unknown"
    database_session = database.session()
    audit.act_as(database_session, _ANONYMOUS, address)
    now = datetime.now(UTC)
    attempt_id = users.begin_attempt(database_session, email, address, now)
    database_session.commit()
    if attempt_id is None:
        minutes = int(users.THROTTLE_WINDOW.total_seconds()) // 60
        text = gettext("Too many attempts. Please wait up to %(minutes)s minutes and try again.", minutes=minutes)
        return _form(text, 429, email)
    account = users.log_in(database_session, attempt_id, email, password, now)
    database_session.commit()
    if account is None:
        return _form(gettext("E-mail address or password is wrong."), 401, email)
    access.begin(account)
    if (kept := written.carried()) is not None:
        return go_on(kept)
    response = make_response("", 303)
    response.headers["Location"] = _safe_target(request.form.get("next", ""))
    return response


def _form(problem: str | None = None, status: int = 200, email: str = "") -> Response:
    return _page(written.carried(), request.values.get("next", ""), status, problem=problem, email=email)


def ask_to_go_on(kept: written.Written) -> Response:
    """The form to log in with, which keeps what was written."""
    return _page(kept, access.page_address(), 401)


def _page(kept: written.Written | None, target: str, status: int, **more: str | None) -> Response:
    has_ended = kept is not None or access.has_ended()
    return make_response(
        render_template("login.html", written=kept, target=target, has_ended=has_ended, **more), status
    )


def go_on(kept: written.Written) -> Response:
    """The page that sends once more what was written, with the token of this session."""
    return make_response(render_template("go_on.html", written=kept))


def _safe_target(target: str) -> str:
    """A page of ours; never another site, however it is spelt."""
    try:
        parts = urlsplit(target)
    except ValueError:  # Such as //[ where an IPv6 address would begin.
        return url_for("dashboard.index")
    is_ours = target.startswith("/") and not target.startswith(("//", "/\\")) and not parts.netloc and not parts.scheme
    if not is_ours or any(ord(character) < 32 or character == "\\" for character in target):
        return url_for("dashboard.index")
    return target


@blueprint.post("/logout")
def leave() -> Response:
    """End this session."""
    access.end()
    notify(gettext("You have logged out."))
    return go("login.index")


@blueprint.post("/preferences")
def preferences() -> Response:
    """Remember the language, and the time zone for those who are logged in; then back to the page."""
    language = request.form.get("language")
    someone = access.person()
    if language in LANGUAGES:
        session["language"] = language
        session.permanent = True
        if someone is not None:
            users.set_preferences(database.session(), someone.account.id, language, someone.account.timezone)
    zone = request.form.get("timezone")
    if someone is not None and zone is not None and (zone == "" or zone in rules.timezones()):
        users.set_preferences(database.session(), someone.account.id, someone.account.language, zone or None)
    database.session.commit()
    response = make_response("", 303)
    response.headers["Location"] = _safe_target(request.form.get("next", ""))
    return response

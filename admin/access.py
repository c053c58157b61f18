"""Who is at the other end: log-in sessions, their expiry, and what each role may do."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, TypeVar

import flask_login
from flask import Flask, abort, g, redirect, request, session, url_for
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.wrappers import Response

from admin import database, security
from db.models import Role, UserAccount
from db.queries import audit, users

# A session ends after so long without a page being opened, and after so long altogether.
IDLE_SECONDS = 4 * 3600
LONGEST_SECONDS = 24 * 3600
_SEEN_RESOLUTION_SECONDS = 60

_RANK = {Role.VIEWER: 0, Role.OPERATOR: 1, Role.ADMIN: 2}
OPEN_ENDPOINTS = frozenset({"static", "login.index", "login.preferences", "health.alive", "health.ready"})

View = TypeVar("View", bound=Callable[..., Any])


class Person(flask_login.UserMixin):  # type: ignore[misc]
    """The user of this request."""

    def __init__(self, account: UserAccount) -> None:
        self.account = account
        self.id = account.id
        self.email = account.email
        self.role = account.role

    def get_id(self) -> str:
        """Return what the session cookie holds: with the version, so that raising it ends the session."""
        return f"{self.account.id}:{self.account.session_version}"

    def may(self, role: Role | str) -> bool:
        """Whether this person has the role or a higher one."""
        return _RANK[self.role] >= _RANK[Role(role)]


def person() -> Person | None:
    """Whoever is logged in.

    When the database cannot tell, that is an error once; the page that says so is then made for nobody in particular.
    """
    if g.get("is_person_unknown"):
        return None
    try:
        found = flask_login.current_user
        return found._get_current_object() if found.is_authenticated else None
    except SQLAlchemyError:
        g.is_person_unknown = True
        raise


def logged_in() -> Person:
    """Whoever is logged in; to be asked only behind the guard."""
    found = person()
    if found is None:
        abort(401)
    return found


def begin(account: UserAccount) -> None:
    """Start a session of this user; nothing of the one before is kept but how pages look."""
    kept = {name: session[name] for name in ("language",) if name in session}
    session.clear()
    session.update(kept)
    session.permanent = True
    session["began"] = session["seen"] = _now()
    security.csrf_token()
    flask_login.login_user(Person(account))


def end() -> None:
    """End this session."""
    flask_login.logout_user()
    session.clear()


def requires(role: Role) -> Callable[[View], View]:
    """Let nobody below this role use the view."""

    def decorate(view: View) -> View:
        @functools.wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if not logged_in().may(role):
                abort(403)
            return view(*args, **kwargs)

        return guarded  # type: ignore[return-value]

    return decorate


def guard(app: Flask) -> None:
    """Ask everybody to log in, on every path that does not need to be open."""
    manager = flask_login.LoginManager()
    # Its own `current_user` would ask a lost database once more while the page that says so is made.
    manager.init_app(app, add_context_processor=False)
    manager.session_protection = None  # It ties a session to an address; phones change theirs all day.
    manager.user_loader(_load)

    @app.before_request
    def ask_to_log_in() -> None:
        if request.endpoint is not None and request.endpoint not in OPEN_ENDPOINTS:
            audit.act_as(database.session(), users.name_actor(logged_in().account), request.remote_addr)


def to_login() -> Response:
    """The way to the log-in page, and from there back to the page that is open."""
    target = page_address()
    return redirect(url_for("login.index", next=target if target != "/" else None))


def page_address() -> str:
    """Where the page that is open can be opened again: this address, or the one that a form was sent from."""
    if request.method == "GET":
        return request.full_path.rstrip("?")
    return (request.referrer or "/").removeprefix(request.host_url.rstrip("/"))


def has_ended() -> bool:
    """Whether nobody is logged in here any more, rather than not yet."""
    return "began" in session and person() is None


def wants_json() -> bool:
    """Whether the page's own script asks, and not a person."""
    return request.headers.get("X-Requested-With") == "fetch"


def _now() -> int:
    """Seconds since the epoch, as sessions count them."""
    return int(time.time())


def _load(identity: str) -> Person | None:
    now = _now()
    if now - session.get("seen", 0) > IDLE_SECONDS or now - session.get("began", 0) > LONGEST_SECONDS:
        return None
    # Pages refresh themselves: only what a person asks for keeps a session alive.
    if not wants_json() and now - session["seen"] > _SEEN_RESOLUTION_SECONDS:
        session["seen"] = now
    user_id, _, version = identity.partition(":")
    account = database.session.get(UserAccount, int(user_id))
    if account is None or account.disabled_at is not None or str(account.session_version) != version:
        return None
    return Person(account)

"""Errors in words: a page for people, a line for the pages' own scripts, never a stack trace."""

from __future__ import annotations

import contextlib

import sqlalchemy.exc
import structlog
from flask import Flask, Response, jsonify, make_response, render_template
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as BareResponse

from admin import written
from admin.access import person, to_login, wants_json
from admin.database import session
from admin.refusals import explain
from admin.security import CsrfError
from admin.texts import gettext
from admin.views import login
from db.engine import is_disk_full
from db.refusals import ConflictError, MissingError, RefusedError

log = structlog.get_logger()

RETRY_AFTER_SECONDS = 5


def register(app: Flask) -> None:
    """Answer for everything that can go wrong."""
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(CsrfError, _stale_page)
    app.register_error_handler(RefusedError, _refused)
    app.register_error_handler(sqlalchemy.exc.SQLAlchemyError, _database_failed)
    app.register_error_handler(Exception, _our_mistake)


def _settle_person() -> None:
    """Ask for the person, whose language every text here is in, once: the database may be away."""
    with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError):
        person()


def page(code: int, title: str, text: str) -> Response:
    """An error page; for scripts its text only."""
    if wants_json():
        return make_response(jsonify(error=text), code)
    return make_response(render_template("error.html", code=code, title=title, text=text), code)


def _http_error(error: HTTPException) -> Response | BareResponse | HTTPException:
    _settle_person()
    if error.code == 401 and not wants_json():
        kept = written.sent()
        return to_login() if kept is None else login.ask_to_go_on(kept)
    if error.code is None or error.code < 400:
        return error
    title, text = _describe(error.code)
    response = page(error.code, title, text)
    response.headers.extend((name, value) for name, value in error.get_headers() if name == "Allow")
    return response


def _describe(code: int) -> tuple[str, str]:
    described = {
        401: (gettext("Please log in"), gettext("Your session has ended. Log in again to go on.")),
        403: (gettext("Not allowed"), gettext("Your role does not include this. An admin can change it.")),
        404: (gettext("Not found"), gettext("There is nothing at this address. It may have been deleted.")),
        405: (gettext("Not possible"), gettext("This address cannot be used in this way.")),
        413: (gettext("Too large"), gettext("More was sent than this page accepts.")),
        429: (gettext("Too many attempts"), gettext("Please wait a few minutes and try again.")),
    }
    other = (gettext("This did not work"), gettext("The request could not be understood. Go back and try again."))
    return described.get(code, other)


def _stale_page(_error: CsrfError) -> BareResponse:
    kept = written.sent()
    if kept is not None and written.is_from_our_page():
        with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError):
            return login.ask_to_go_on(kept) if person() is None else login.go_on(kept)
    text = gettext(
        "The page was open for too long, or cookies are blocked. Nothing was changed. Go back and try again."
    )
    return page(400, gettext("Please try again"), text)


def _refused(error: RefusedError) -> Response:
    session.rollback()
    if isinstance(error, MissingError):
        return page(404, *_describe(404))
    code = 409 if isinstance(error, ConflictError) else 422
    return page(code, gettext("This is not possible"), explain(error))


def _database_failed(error: sqlalchemy.exc.SQLAlchemyError) -> Response:
    _forget_session()
    _settle_person()
    if isinstance(error, sqlalchemy.exc.DataError):
        log.warning("value_refused_by_database", exc_info=error)
        return page(422, *_describe(422))
    passing = isinstance(
        error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError | sqlalchemy.exc.TimeoutError
    )
    if not passing and not getattr(error, "connection_invalidated", False):
        return _our_mistake(error)
    log.warning("database_unavailable", exc_info=error)
    text = gettext("The database cannot be reached just now. Sending goes on by itself; reload this page in a moment.")
    if is_disk_full(error):
        text = gettext("The disk of the database is full. Nothing was changed; sending goes on when there is space.")
    response = page(503, gettext("One moment"), text)
    response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return response


def _our_mistake(error: Exception) -> Response:
    log.error("request_failed", exc_info=error)
    _forget_session()
    _settle_person()
    return page(500, gettext("Something went wrong"), gettext("The mistake is ours, and it was written down."))


def _forget_session() -> None:
    try:
        session.rollback()
    except sqlalchemy.exc.SQLAlchemyError:
        session.remove()

"""One error body everywhere: never HTML, never a stack trace, never a driver's message."""

from __future__ import annotations

from typing import Any

import flask_smorest
import sqlalchemy.exc
import structlog
from flask import Flask, current_app
from gunicorn.http.errors import ParseException
from marshmallow import Schema, fields
from werkzeug.exceptions import ClientDisconnected, HTTPException, UnprocessableEntity
from werkzeug.http import HTTP_STATUS_CODES
from werkzeug.sansio.response import Response

from api.fields import about
from db.engine import is_disk_full
from db.refusals import ConflictError, InvalidError, MissingError, RefusedError

log = structlog.get_logger()

RETRY_AFTER_SECONDS = 3


class ErrorSchema(Schema):
    """The body of every error."""

    code = fields.Integer(required=True, metadata=about("The HTTP status.", 422))
    status = fields.String(required=True, metadata=about("Its name.", "Unprocessable Entity"))
    message = fields.String(required=True, metadata=about("What is wrong, for people.", "some fields are not valid"))
    errors = fields.Dict(
        keys=fields.String(),
        required=True,
        metadata=about(
            "Reasons by place (`json`, `query`, `headers`) and field.",
            {"json": {"phone": ["is not a number that exists"]}},
        ),
    )


def answer(code: int, message: str, errors: dict[str, Any] | None = None) -> Response:
    """The error body as a response."""
    status = HTTP_STATUS_CODES.get(code, "Unknown Error")
    response = current_app.json.response({"code": code, "status": status, "message": message, "errors": errors or {}})
    response.status_code = code
    return response


class Api(flask_smorest.Api):  # type: ignore[misc]
    """flask-smorest with our error body, and without its catch-all documentation of errors."""

    ERROR_SCHEMA = ErrorSchema
    DEFAULT_ERROR_RESPONSE_NAME = None

    def _register_pagination_header(self) -> None:
        """Ours is documented where it is sent."""

    def _register_etag_headers(self) -> None:
        """There are none."""

    def handle_http_exception(self, error: HTTPException) -> Response:
        """Answer for `abort` and for Flask's own errors, with their headers (Allow, WWW-Authenticate, Retry-After)."""
        given: dict[str, Any] = getattr(error, "data", None) or {}
        errors = given.get("errors") or given.get("messages")
        default = "some fields are not valid" if isinstance(error, UnprocessableEntity) else error.description
        response = answer(error.code or 500, given.get("message") or default or "", errors)
        kept = [(name, value) for name, value in error.get_headers() if name.lower() != "content-type"]
        response.headers.extend([*kept, *(given.get("headers") or {}).items()])
        return response


def register(app: Flask) -> None:
    """Turn the errors that are not HTTP's own into answers."""
    app.register_error_handler(RefusedError, _refused)
    app.register_error_handler(ClientDisconnected, _broken_off)
    app.register_error_handler(ParseException, _broken_off)
    app.register_error_handler(sqlalchemy.exc.DBAPIError, _database_failed)
    app.register_error_handler(sqlalchemy.exc.TimeoutError, _database_failed)


def _refused(error: RefusedError) -> Response:
    code = {MissingError: 404, ConflictError: 409, InvalidError: 422}[type(error)]
    if error.field is None:
        return answer(code, error.reason)
    place = "headers" if error.field == "Idempotency-Key" else "json"
    message = f"{error.field}: {error.reason}" if isinstance(error, InvalidError) else error.reason
    return answer(code, message, {place: {error.field: [error.reason]}})


def _broken_off(_error: ClientDisconnected | ParseException) -> Response:
    """The body came in chunks, and the last one is missing or one is damaged."""
    return answer(400, "the body broke off on the way")


def _database_failed(error: sqlalchemy.exc.DBAPIError | sqlalchemy.exc.TimeoutError) -> Response:
    """503 when trying again can help; else it is our own mistake, and 500."""
    if isinstance(error, sqlalchemy.exc.DataError):
        log.warning("value_refused_by_database", exc_info=error)
        return answer(422, "a value is outside the range that can be stored")
    passing = (
        isinstance(error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError | sqlalchemy.exc.TimeoutError)
        or error.connection_invalidated
    )
    if not passing:
        log.error("request_failed", exc_info=error)
        return answer(500, "something went wrong on our side")
    log.warning("database_unavailable", exc_info=error)
    message = "the database cannot be reached or is overloaded; try again"
    if is_disk_full(error):
        message = "the disk of the database is full: nothing was changed; try again when there is space"
    response = answer(503, message)
    response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return response

"""The application: wired here, and only here."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import orjson
import structlog
from flask import Flask, Response, g, request
from flask.json.provider import JSONProvider
from werkzeug.routing import IntegerConverter

from api import (
    auth,
    clients,
    docs,
    errors,
    gateway,
    health,
    imports,
    mailings,
    messages,
    metrics,
    previews,
    receipts,
    statistics,
)
from api.database import database, engine_options
from api.fields import BIGINT_MAX
from common.settings import Settings
from db.engine import normalise_url

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = structlog.get_logger()

JSON_BYTES = 1024 * 1024
# What of a caller's own request id we repeat into logs and headers.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
# They keep browsers from guessing, showing in frames and storing; a view may have set one of its own.
_HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Cache-Control", "no-store"),
)


class _Application(Flask):
    """Flask that spares every request what would come out the same each time."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return it as it is: Flask would look for a coroutine behind every function that it calls."""
        return func

    def make_default_options_response(self) -> Response:
        """Tell the methods; there is no body that had a type."""
        response = super().make_default_options_response()
        del response.headers["Content-Type"]
        return response

    def wsgi_app(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Complete the path, and add the headers that every answer has.

        Here, as werkzeug would check each of these constants every time.
        """

        # Every route there ends with a slash. Without one werkzeug finds it, but not what is wrong with the method.
        path = environ["PATH_INFO"]
        if path.startswith("/api/v1/") and not path.endswith(("/", ".json")):
            environ["PATH_INFO"] = f"{path}/"

        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            given = {name for name, _ in headers}
            return start_response(status, [*headers, *(each for each in _HEADERS if each[0] not in given)], *more)

        return super().wsgi_app(environ, start)


class _Json(JSONProvider):
    """orjson: aware times as `…Z`."""

    def dumps(self, obj: Any, **_options: Any) -> str:
        return self._bytes(obj).decode()

    def loads(self, s: str | bytes, **_options: Any) -> Any:
        return orjson.loads(s)

    def response(self, *args: Any, **kwargs: Any) -> Response:
        body = self._bytes(self._prepare_response_obj(args, kwargs))
        return Response(body, mimetype="application/json")

    @staticmethod
    def _bytes(obj: Any) -> bytes:
        return orjson.dumps(obj, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS)


class _IdConverter(IntegerConverter):
    """An id in a path: ASCII digits that PostgreSQL can hold; all else is not found."""

    regex = r"[0-9]{1,19}"

    def __init__(self, url_map: Any) -> None:
        super().__init__(url_map, min=1, max=BIGINT_MAX)


def create_app(settings: Settings, threads: int = 8) -> Flask:
    """The API on this database; nothing is connected to before the first request."""
    settings.require("database_url")
    app = _Application("api", static_folder=None)
    app.config.update(
        SQLALCHEMY_DATABASE_URI=normalise_url(settings.database_url or ""),
        SQLALCHEMY_ENGINE_OPTIONS=engine_options(threads),
        MAX_CONTENT_LENGTH=JSON_BYTES,
        DEFAULT_TIMEZONE=settings.default_timezone,
        PROPAGATE_EXCEPTIONS=False,
        **docs.OPENAPI,
    )
    app.json = _Json(app)
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False  # It would redirect, in HTML.
    app.url_map.converters["id"] = _IdConverter
    database.init_app(app)
    _observe(app)
    auth.protect(app)
    api = errors.Api(app)
    errors.register(app)
    for resource in (clients, imports, mailings, previews, statistics, messages, receipts, gateway):
        api.register_blueprint(resource.blueprint)
    app.register_blueprint(health.blueprint)
    app.register_blueprint(docs.make_blueprint(api))
    return app


def _observe(app: Flask) -> None:
    """An id, a log line and a place in the metrics for every request."""

    @app.before_request
    def begin() -> None:
        g.began = time.perf_counter()
        given = request.headers.get("X-Request-ID", "")
        g.request_id = given if _REQUEST_ID.match(given) else uuid.uuid4().hex
        structlog.contextvars.bind_contextvars(request_id=g.request_id)

    @app.after_request
    def finish(response: Response) -> Response:
        seconds = time.perf_counter() - g.began
        # The route, not the path: paths hold ids at most, but query strings hold phones.
        route = request.url_rule.rule if request.url_rule else None
        caller = g.get("caller")
        response.headers["X-Request-ID"] = g.request_id
        metrics.count(request.method, route, response.status_code, seconds)
        log.info(
            "request",
            method=request.method,
            route=route,
            **(request.view_args or {}),
            status=response.status_code,
            milliseconds=round(seconds * 1000, 1),
            key_id=caller.key_id if caller else None,
        )
        structlog.contextvars.unbind_contextvars("request_id")
        return response

"""The application: wired here, and only here."""

from __future__ import annotations

import re
import time
import uuid
from datetime import timedelta
from typing import Any

import structlog
from flask import Flask, Response, g, request
from flask_admin import Admin
from flask_admin.theme import Bootstrap4Theme
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import IntegerConverter

from admin import access, charts, errors, health, labels, locale, once, refusals, security
from admin.database import database, engine_options
from admin.views import all_views, dashboard, login
from common.settings import Settings
from db.engine import normalise_url

log = structlog.get_logger()

BIGINT_MAX = 2**63 - 1
FORM_BYTES = 1024 * 1024
STATIC_SECONDS = 3600
# What of a caller's own request id we repeat into logs and headers.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")


class _IdConverter(IntegerConverter):
    """An id in a path: ASCII digits that PostgreSQL can hold; all else is not found."""

    regex = r"[0-9]{1,19}"

    def __init__(self, url_map: Any) -> None:
        super().__init__(url_map, min=1, max=BIGINT_MAX)


def create_app(settings: Settings, threads: int = 8) -> Flask:
    """The admin UI on this database; nothing is connected to before the first request."""
    settings.require("database_url", "secret_key")
    app = Flask("admin", root_path=__file__.rpartition("/")[0])
    app.config.update(
        SECRET_KEY=settings.secret_key,
        SQLALCHEMY_DATABASE_URI=normalise_url(settings.database_url or ""),
        SQLALCHEMY_ENGINE_OPTIONS=engine_options(threads),
        MAX_CONTENT_LENGTH=FORM_BYTES,
        DEFAULT_TIMEZONE=settings.default_timezone,
        SESSION_COOKIE_NAME="mailings_admin",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        PERMANENT_SESSION_LIFETIME=timedelta(seconds=access.LONGEST_SECONDS),
        SEND_FILE_MAX_AGE_DEFAULT=STATIC_SECONDS,
    )
    if settings.trusted_proxies:
        hops = settings.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops)  # type: ignore[method-assign]
    app.url_map.converters["id"] = _IdConverter
    database.init_app(app)
    _log_requests(app)
    security.protect(app)
    access.guard(app)
    for module in (locale, labels, refusals, charts):
        module.init(app)
    errors.register(app)
    app.register_blueprint(health.blueprint)
    app.register_blueprint(login.blueprint)
    _add_views(app)
    app.jinja_env.globals.update(
        csrf_token=security.csrf_token,
        upload_token=security.upload_token,
        once_token=once.new_token,
        person=access.person,
        page_address=access.page_address,
    )
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    return app


def _add_views(app: Flask) -> None:
    admin = Admin(
        app,
        name="Mailings",
        url="/",
        index_view=dashboard.Dashboard(),
        theme=Bootstrap4Theme(base_template="layout.html"),
        # Flask-Admin's own scripts and styles are not used: nothing of them is served.
        static_url_path="/static/admin",
    )
    for view in all_views():
        admin.add_view(view)
    app.jinja_env.globals["menu"] = admin.menu


def _log_requests(app: Flask) -> None:
    @app.before_request
    def begin() -> None:
        g.began = time.perf_counter()
        given = request.headers.get("X-Request-ID", "")
        g.request_id = given if _REQUEST_ID.match(given) else uuid.uuid4().hex
        structlog.contextvars.bind_contextvars(request_id=g.request_id)

    @app.after_request
    def finish(response: Response) -> Response:
        response.headers["X-Request-ID"] = g.request_id
        if request.endpoint not in ("static", "health.alive", "health.ready"):
            # The route, not the path or its query: those hold phones.
            log.info(
                "request",
                method=request.method,
                route=request.url_rule.rule if request.url_rule else None,
                status=response.status_code,
                milliseconds=round((time.perf_counter() - g.began) * 1000, 1),
            )
        structlog.contextvars.unbind_contextvars("request_id")
        return response

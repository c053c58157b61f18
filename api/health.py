"""Alive, ready, and the numbers for Prometheus."""

from __future__ import annotations

from functools import cache
from typing import Any

import sqlalchemy as sa
from flask import Blueprint, Response, current_app
from werkzeug.sansio.response import Response as BareResponse

from api.database import session
from api.errors import answer
from api.metrics import exposition
from db.migrate import head_revision

blueprint = Blueprint("health", __name__)

_head = cache(head_revision)


@blueprint.get("/healthz")
def alive() -> BareResponse:
    """The process answers."""
    return _json({"status": "ok"})


@blueprint.get("/readyz")
def ready() -> BareResponse:
    """The database answers and has the schema that this code was written for."""
    try:
        revision = session.scalar(sa.text("SELECT version_num FROM alembic_version"))
    except sa.exc.ProgrammingError:
        revision = None
    if revision != _head():
        return answer(503, f"the database is at revision {revision}, {_head()} is needed: run migrations")
    return _json({"status": "ready", "revision": revision})


@blueprint.get("/metrics")
def metrics() -> Response:
    """What Prometheus scrapes."""
    body, content_type = exposition()
    return Response(body, content_type=content_type)


def _json(body: dict[str, Any]) -> BareResponse:
    return current_app.json.response(body)

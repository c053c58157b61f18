"""Alive, and ready."""

from __future__ import annotations

from functools import cache

import sqlalchemy as sa
from flask import Blueprint, Response, jsonify

from admin.database import session
from db.migrate import head_revision

blueprint = Blueprint("health", __name__)

_head = cache(head_revision)


@blueprint.get("/healthz")
def alive() -> Response:
    """The process answers."""
    return jsonify(status="ok")


@blueprint.get("/readyz")
def ready() -> tuple[Response, int]:
    """The database answers and has the schema that this code was written for."""
    try:
        revision = session.scalar(sa.text("SELECT version_num FROM alembic_version"))
    except sa.exc.SQLAlchemyError:
        return jsonify(status="the database cannot be reached, or is empty"), 503
    if revision != _head():
        return jsonify(status=f"the database is at revision {revision}, {_head()} is needed"), 503
    return jsonify(status="ready"), 200

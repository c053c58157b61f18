"""Bring a database to the newest schema."""

from __future__ import annotations

from pathlib import Path

import flask_migrate
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.pool import NullPool

from db.engine import connect_arguments, normalise_url
from db.models import Base

MIGRATIONS = Path(__file__).parent / "migrations"


def create_app(database_url: str) -> Flask:
    """A Flask application that knows nothing but the database, as Flask-Migrate wants one."""
    app = Flask("db")
    app.config["SQLALCHEMY_DATABASE_URI"] = normalise_url(database_url)
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {
        "connect_args": connect_arguments("mailings migrate", 600),
        "poolclass": NullPool,  # No connection is left behind when the work is done.
    }
    database = SQLAlchemy(app, metadata=Base.metadata)
    flask_migrate.Migrate(app, database, directory=str(MIGRATIONS))
    return app


def upgrade(database_url: str) -> None:
    """Apply what is missing; safe while several processes do the same."""
    with create_app(database_url).app_context():
        flask_migrate.upgrade()


def head_revision() -> str:
    """The newest revision that this code knows; a database at another one is not ready for it."""
    from alembic.script import ScriptDirectory

    return str(ScriptDirectory(str(MIGRATIONS)).get_current_head())

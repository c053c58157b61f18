"""Databases of the tests' PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from db.engine import make_engine


@contextmanager
def fresh_database(server: sa.URL, template: str = "template1") -> Iterator[str]:
    """The URL of a copy of this database, empty by default; dropped at the end."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    _administer(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        _administer(server, f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def connected(url: str) -> Iterator[sa.Engine]:
    """Connections to a database, enough for tests about races."""
    engine = make_engine(url, "mailings tests", pool_size=10)
    try:
        yield engine
    finally:
        engine.dispose()


def _administer(server: sa.URL, statement: str) -> None:
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text(statement))

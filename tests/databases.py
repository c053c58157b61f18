"""Databases of the tests' PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from db.engine import make_engine

_REFUSE_WHEN_FULL = """
    CREATE TABLE disk (is_full boolean NOT NULL);
    INSERT INTO disk VALUES (false);
    CREATE FUNCTION refuse_when_full() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF (SELECT is_full FROM disk) THEN
            RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full';
        END IF;
        RETURN NULL;
    END $$;
"""


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


def can_be_full(*tables: str) -> str:
    """Statements after which `UPDATE disk SET is_full = true` has PostgreSQL refuse all changes of these tables."""
    triggers = (
        f"CREATE TRIGGER refuse_when_full BEFORE INSERT OR UPDATE OR DELETE ON {table}"
        " EXECUTE FUNCTION refuse_when_full();"
        for table in tables
    )
    return _REFUSE_WHEN_FULL + "".join(triggers)


def _administer(server: sa.URL, statement: str) -> None:
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text(statement))

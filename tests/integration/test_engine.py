"""What the errors of the database mean."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from db.engine import is_passing, make_engine


@pytest.mark.parametrize(
    ("code", "passing"),
    [
        ("08006", True),  # connection failure
        ("25P03", True),  # idle in a transaction for too long
        ("40P01", True),  # deadlock
        ("53100", True),  # disk full
        ("55P03", True),  # lock not available
        ("57014", True),  # time limit of a statement
        ("57P01", True),  # shutdown
        ("58030", True),  # input or output failed
        ("54000", False),  # a row too large for an index: an operational error for the driver, too
        ("22001", False),
        ("23505", False),
        ("42P01", False),
        ("XX001", False),  # damaged data
    ],
)
def test_what_the_server_says_is_passing_or_not(shared_engine: sa.Engine, code: str, passing: bool) -> None:
    with pytest.raises(SQLAlchemyError) as error, shared_engine.begin() as connection:
        connection.execute(sa.text(f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$"))

    assert is_passing(error.value) is passing


def test_a_connection_that_breaks_is_passing(shared_engine: sa.Engine) -> None:
    with pytest.raises(SQLAlchemyError) as error, shared_engine.connect() as connection:
        connection.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))

    assert is_passing(error.value)


def test_a_server_that_is_not_there_is_passing(shared_database_url: str) -> None:
    engine = make_engine(sa.make_url(shared_database_url).set(port=1).render_as_string(False), "mailings tests")

    with pytest.raises(SQLAlchemyError) as error:
        engine.connect()

    assert is_passing(error.value)


def test_a_pool_without_a_free_connection_is_passing(shared_database_url: str) -> None:
    engine = sa.create_engine(shared_database_url, pool_size=1, max_overflow=0, pool_timeout=0)

    with engine.connect(), pytest.raises(SQLAlchemyError) as error:
        engine.connect()

    engine.dispose()
    assert is_passing(error.value)


def test_our_own_mistake_is_not_passing(shared_engine: sa.Engine) -> None:
    with pytest.raises(SQLAlchemyError) as error, shared_engine.connect() as connection:
        connection.execute(sa.text("SELECT :one"), {"one": object()})

    assert not is_passing(error.value)

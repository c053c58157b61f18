"""Migrations on a database that is in use: rows written by the release before."""

from __future__ import annotations

from collections.abc import Iterator

import flask_migrate
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from flask import Flask

from db.migrate import create_app
from db.models import Base
from db.queries import audience
from tests.databases import fresh_database
from tests.factories import make_client, make_mailing

Indexes = set[str]

OLD_INDEXES = {"ix_message_mailing_status", "ix_message_failed_reason"}
NEW_INDEXES = {"ix_message_trouble", "ix_message_reason"}
ROWS = """
    INSERT INTO message (mailing_id, client_id, status, next_attempt_at, sent_at, last_error) VALUES
    (1, 1, 'pending', now(), NULL, NULL), (1, 2, 'sent', NULL, now(), NULL), (1, 3, 'failed', NULL, NULL, 'http_400'),
    (1, 4, 'failed', NULL, NULL, NULL), (1, 5, 'expired', NULL, NULL, NULL), (1, 6, 'cancelled', NULL, NULL, NULL)
"""


@pytest.fixture
def database_url(postgresql_url: sa.URL) -> Iterator[str]:
    """A database without a table; `engine` is connected to it, too."""
    with fresh_database(postgresql_url) as url:
        yield url


@pytest.fixture
def app(database_url: str) -> Iterator[Flask]:
    """What Flask-Migrate works in."""
    made = create_app(database_url)
    with made.app_context():
        yield made


def indexes(engine: sa.Engine) -> Indexes:
    return {str(index["name"]) for index in sa.inspect(engine).get_indexes("message")}


def rows(engine: sa.Engine) -> list[tuple[str, str | None]]:
    with engine.connect() as connection:
        found = connection.execute(sa.text("SELECT status, last_error FROM message ORDER BY client_id"))
        return [(row[0], row[1]) for row in found]


def counts(engine: sa.Engine) -> list[tuple[str, int]]:
    with engine.connect() as connection:
        found = connection.execute(sa.text("SELECT status, sum(amount) FROM status_count GROUP BY 1 ORDER BY 1"))
        return [(row[0], int(row[1])) for row in found]


@pytest.mark.usefixtures("app")
def test_old_failures_get_a_reason_and_the_counters_stay(engine: sa.Engine) -> None:
    flask_migrate.upgrade(revision="0003")
    with engine.begin() as connection:
        connection.execute(sa.text(ROWS))
    before = counts(engine)

    flask_migrate.upgrade(revision="0004")

    assert rows(engine) == [
        ("pending", None),
        ("sent", None),
        ("failed", "http_400"),
        ("failed", "unknown"),
        ("expired", "ended"),
        ("cancelled", "cancelled"),
    ]
    assert counts(engine) == before
    assert indexes(engine) & (OLD_INDEXES | NEW_INDEXES) == NEW_INDEXES
    with pytest.raises(sa.exc.IntegrityError, match="trouble_has_reason"), engine.begin() as connection:
        connection.execute(sa.text("UPDATE message SET last_error = NULL"))


@pytest.mark.usefixtures("app")
def test_the_way_back_keeps_every_message(engine: sa.Engine) -> None:
    flask_migrate.upgrade(revision="0004")
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO message (mailing_id, client_id, status, last_error)"
                                   " VALUES (1, 1, 'failed', 'http_400')"))  # fmt: skip

    flask_migrate.downgrade(revision="0003")

    assert indexes(engine) & (OLD_INDEXES | NEW_INDEXES) == OLD_INDEXES
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE message SET last_error = NULL"))
    assert rows(engine) == [("failed", None)]
    flask_migrate.upgrade()
    assert rows(engine) == [("failed", "unknown")]


@pytest.mark.usefixtures("app")
def test_the_way_back_from_planned_batches_has_each_message_wait_by_itself(engine: sa.Engine) -> None:
    flask_migrate.upgrade()
    with sa.orm.Session(engine) as session:
        for _ in range(3):
            make_client(session)
        assert not audience.materialise_chunk(session, make_mailing(session).id)
        session.commit()
    before = counts(engine)

    flask_migrate.downgrade(revision="0005")

    assert rows(engine) == [("pending", None)] * 3
    assert [amount for amount in counts(engine) if amount[1]] == [amount for amount in before if amount[1]]
    with engine.connect() as connection:
        due = sa.text("SELECT count(*) FROM message WHERE next_attempt_at <= now() AND batch_id IS NULL")
        assert connection.scalar(due) == 3


@pytest.mark.usefixtures("app")
def test_the_migrations_make_what_the_models_declare(engine: sa.Engine) -> None:
    flask_migrate.upgrade()

    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": False})
        differences = compare_metadata(context, Base.metadata)

    assert [difference for difference in differences if "alembic_version" not in str(difference)] == []

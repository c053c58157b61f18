"""A private PostgreSQL for the whole run, and a database of its own for every test that asks for one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from db.engine import normalise_url
from db.migrate import upgrade
from db.models import Base
from tests.databases import connected, fresh_database
from tests.system import Servers, System
from tools.servers import PostgreSQL

SystemMaker = Callable[..., System]


@pytest.fixture(scope="session", autouse=True)
def plain_logs() -> None:
    """Log in plain lines: structlog's default draws every local variable of a traceback, for seconds."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["level", "event"], drop_missing=True),
        ]
    )


@pytest.fixture(scope="session")
def postgresql_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.URL]:
    """A server where tests may create databases: TEST_DATABASE_URL, or one of our own without disk writes."""
    if given := os.environ.get("TEST_DATABASE_URL"):
        yield normalise_url(given)
        return
    with PostgreSQL(tmp_path_factory.mktemp("postgresql"), without_disks=True) as server:
        yield normalise_url(server.url("postgres"))
        server.stop()
        server.remove()


@pytest.fixture(scope="session")
def template_database(postgresql_url: sa.URL) -> Iterator[str]:
    """The name of a migrated, empty database to copy."""
    with fresh_database(postgresql_url) as url:
        upgrade(url)
        name = sa.make_url(url).database
        assert name
        yield name


@pytest.fixture
def database_url(postgresql_url: sa.URL, template_database: str) -> Iterator[str]:
    """An empty database that only this test sees."""
    with fresh_database(postgresql_url, template_database) as url:
        yield url


@pytest.fixture(scope="session")
def shared_database_url(postgresql_url: sa.URL, template_database: str) -> Iterator[str]:
    """A database for tests that clean up by themselves and would be slowed by one each."""
    with fresh_database(postgresql_url, template_database) as url:
        yield url


@pytest.fixture(scope="module")
def module_database_url(postgresql_url: sa.URL, template_database: str) -> Iterator[str]:
    """An empty database for the tests of one module."""
    with fresh_database(postgresql_url, template_database) as url:
        yield url


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    """Connections to the test's database, enough for tests about races."""
    with connected(database_url) as made:
        yield made


@pytest.fixture
def session(engine: sa.Engine) -> Iterator[Session]:
    """A session on the test's database; the test commits."""
    with Session(engine) as opened:
        yield opened


@pytest.fixture(scope="session")
def shared_engine(shared_database_url: str) -> Iterator[sa.Engine]:
    """Connections to the shared database."""
    with connected(shared_database_url) as made:
        yield made


@pytest.fixture(scope="module")
def module_engine(module_database_url: str) -> Iterator[sa.Engine]:
    """Connections to the module's database."""
    with connected(module_database_url) as made:
        yield made


@pytest.fixture
def emptied_engine(shared_engine: sa.Engine) -> sa.Engine:
    """The shared database, empty when the test begins: ten times as fast as one of its own."""
    empty(shared_engine)
    return shared_engine


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Servers to kill: they are brought back for the next scenario."""
    with Servers(tmp_path_factory.mktemp("servers")) as started:
        yield started


@pytest.fixture
def make_system(tmp_path: Path, servers: Servers) -> SystemMaker:
    """Make a system, to be used in a `with` statement."""

    def make(**options: Any) -> System:
        return System(tmp_path, servers, **options)

    return make


def empty(engine: sa.Engine) -> None:
    """Empty all tables but the keys that tests call the API with, and give the gateway its first state."""
    tables = ", ".join(table for table in Base.metadata.tables if table not in ("gateway", "api_key"))
    with engine.begin() as connection:
        connection.execute(sa.text(f"TRUNCATE {tables} RESTART IDENTITY"))
        connection.execute(sa.text("UPDATE gateway SET state = 'closed', reason = NULL, pace = NULL, probe_at = NULL"))

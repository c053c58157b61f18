"""The API in this process, on one database that is emptied before every test; an operator's admin pages."""

from __future__ import annotations

import contextlib
import select
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from werkzeug.test import TestResponse

from admin.app import create_app as create_admin
from api.app import create_app
from db import passwords
from db.engine import make_engine
from db.models import Role, Scope
from db.queries import api_keys, users
from tests.conftest import empty
from tests.factories import settings_for
from tests.integration.test_admin_access import PASSWORD, send

FULL_KEY = "test-full-key"
RECEIPTS_KEY = "test-receipts-key"


class Api:
    """Calls with a key; paths are relative to `/api/v1`."""

    def __init__(self, http: FlaskClient, key: str | None) -> None:
        self.http = http
        self.key = key

    def call(self, method: str, path: str, **options: Any) -> TestResponse:
        """One request."""
        headers = dict(options.pop("headers", {}))
        if self.key is not None:
            headers.setdefault("Authorization", f"Bearer {self.key}")
        return self.http.open(f"/api/v1{path}", method=method, headers=headers, **options)

    def get(self, path: str, **options: Any) -> TestResponse:
        """GET."""
        return self.call("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> TestResponse:
        """POST, as JSON when there is a body."""
        return self.call("POST", path, **({} if body is None else {"json": body}), **options)

    def put(self, path: str, body: Any) -> TestResponse:
        """PUT."""
        return self.call("PUT", path, json=body)

    def patch(self, path: str, body: Any) -> TestResponse:
        """PATCH."""
        return self.call("PATCH", path, json=body)

    def delete(self, path: str) -> TestResponse:
        """DELETE."""
        return self.call("DELETE", path)


def losing_an_answer(engine: sa.Engine) -> tuple[sa.Engine, threading.Event]:
    """An engine whose next commit reaches PostgreSQL and whose answer to that is lost; and whether it has been."""
    losing, is_lost = engine.execution_options(), threading.Event()

    def lose(connection: sa.Connection) -> None:
        connection.connection.commit()
        is_lost.set()
        raise OperationalError("COMMIT", {}, psycopg2.OperationalError("server closed the connection unexpectedly"))

    sa.event.listen(losing, "commit", lose, once=True)
    return losing, is_lost


@contextlib.contextmanager
def listening(engine: sa.Engine, channel: str) -> Iterator[Callable[[int], list[str]]]:
    """Listen on a channel; call what you get to wait for so many notifications and have their payloads."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text(f"LISTEN {channel}"))
        driver: Any = connection.connection.driver_connection

        def wait_for(count: int) -> list[str]:
            give_up_at = time.monotonic() + 10
            while len(driver.notifies) < count and time.monotonic() < give_up_at:
                select.select([driver], [], [], 0.1)
                driver.poll()
            return [note.payload for note in driver.notifies]

        yield wait_for
        connection.invalidate()


@pytest.fixture(scope="module", autouse=True)
def cheap_passwords() -> Iterator[None]:
    """Nobody guesses at those of tests; `tests/unit/test_passwords.py` has what they really cost."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "_LOG_N", 4)
        yield


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `cert.pem` for this machine, which only its own copy vouches for, and `key.pem`."""
    folder = tmp_path_factory.mktemp("tls")
    request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([*request.split(), *names, *files], check=True, capture_output=True)
    return folder


@pytest.fixture
def tls(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """What a server needs that the client trusts, as localhost."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    return context


@pytest.fixture(scope="session")
def api_engine(shared_database_url: str) -> Iterator[sa.Engine]:
    """The API's database, seen from beside it."""
    engine = make_engine(shared_database_url, "mailings tests", pool_size=10)
    with Session(engine) as session, session.begin():
        api_keys.create(session, "full", Scope.FULL, FULL_KEY)
        api_keys.create(session, "receipts", Scope.RECEIPTS, RECEIPTS_KEY)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def app(shared_database_url: str, api_engine: sa.Engine) -> Flask:  # noqa: ARG001  # The keys have to be there.
    """The application."""
    return create_app(settings_for(shared_database_url))


@pytest.fixture
def api_session(api_engine: sa.Engine) -> Iterator[Session]:
    """A session on the API's database, which is empty when the test begins."""
    empty(api_engine)
    with Session(api_engine, expire_on_commit=False) as session:
        yield session


@pytest.fixture
def api(app: Flask, api_session: Session) -> Api:  # noqa: ARG001  # It empties the database.
    """The API, called with a key that may do everything."""
    return Api(app.test_client(), FULL_KEY)


@pytest.fixture
def browser(database_url: str, session: Session) -> FlaskClient:
    """An operator's, logged in."""
    email = "operator@example.com"
    users.create(session, email, PASSWORD, Role.OPERATOR)
    session.commit()
    client = create_admin(settings_for(database_url, secret_key="test secret")).test_client()
    assert send(client, "/login", email=email, password=PASSWORD).status_code == 303
    return client

"""Keys, errors and odd requests: one body, never HTML, never a stack trace."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import Session
from werkzeug.test import TestResponse

from api import auth
from api.app import create_app
from api.database import database
from db.models import ApiKey, Scope
from db.queries import api_keys
from tests.factories import settings_for
from tests.integration.conftest import FULL_KEY, RECEIPTS_KEY, Api


def _is_error(answer: TestResponse, code: int) -> bool:
    body = answer.get_json()
    return (
        answer.status_code == code
        and answer.mimetype == "application/json"
        and set(body) == {"code", "status", "message", "errors"}
        and body["code"] == code
        and bool(body["message"])
    )


def test_every_path_but_the_open_ones_needs_a_key(app: Flask) -> None:
    http = app.test_client()
    for rule in app.url_map.iter_rules():
        path = rule.build(dict.fromkeys(rule.arguments, 1), append_unknown=False)
        assert path is not None
        if rule.arguments and rule.endpoint == "docs.static":
            continue
        for method in (rule.methods or set()) - {"HEAD"}:
            answer = http.open(path[1], method=method)
            if rule.endpoint in auth.OPEN_ENDPOINTS:
                assert answer.status_code != 401
            else:
                assert _is_error(answer, 401), (method, path)
                assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_the_open_paths_are_those_of_the_contract(app: Flask) -> None:
    paths = {rule.rule for rule in app.url_map.iter_rules() if rule.endpoint in auth.OPEN_ENDPOINTS}

    assert paths == {
        "/docs/",
        "/docs/static/<path:filename>",
        "/api/v1/swagger/",
        "/api/v1/openapi.json",
        "/healthz",
        "/readyz",
    }


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Basic {FULL_KEY}",
        FULL_KEY,
        f"Bearer {FULL_KEY}x",
        "Bearer " + "k" * 5000,
        "Bearer ключ",
    ],
)
def test_a_key_that_is_none_is_refused(app: Flask, header: str) -> None:
    headers = {"Authorization": header.encode().decode("latin1")}

    assert _is_error(app.test_client().get("/api/v1/client/", headers=headers), 401)


def test_a_revoked_key_stops_working(
    api: Api, app: Flask, api_session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "CACHE_SECONDS", 0.0)
    api_keys.create(api_session, "temporary", Scope.FULL, "temporary-key")
    api_session.commit()
    caller = Api(app.test_client(), "temporary-key")
    assert caller.get("/client/").status_code == 200
    key = api_session.scalars(sa.select(ApiKey).where(ApiKey.name == "temporary")).one()

    assert api_keys.revoke(api_session, key.id, datetime.now(UTC))
    api_session.commit()

    assert caller.get("/client/").status_code == 401
    assert api.get("/client/").status_code == 200
    api_session.delete(key)
    api_session.commit()


def test_the_use_of_a_key_is_remembered(api: Api, api_session: Session) -> None:
    api.get("/client/")

    used_at = api_session.scalar(sa.select(ApiKey.last_used_at).where(ApiKey.name == "full"))
    assert used_at is not None
    assert used_at <= datetime.now(UTC)


def test_a_receipts_key_opens_nothing_else(api: Api, app: Flask) -> None:
    caller = Api(app.test_client(), RECEIPTS_KEY)

    assert caller.post("/receipt/", {"id": 1, "status": "delivered"}).status_code == 404
    for path in ("/client/", "/mailing/", "/message/"):
        assert _is_error(caller.get(path), 403)
    assert api.get("/client/").status_code == 200


@pytest.mark.parametrize(
    ("body", "content_type", "code"),
    [
        (b"{", "application/json", 422),
        (b"", "application/json", 422),
        (b"null", "application/json", 422),
        (b"[]", "application/json", 422),
        (b'"text"', "application/json", 422),
        (b"\xff\xfe", "application/json", 422),
        (b'{"phone": "\\ud800"}', "application/json", 422),
        (b'{"phone": "+79161234567", "attributes": {"a": NaN}}', "application/json", 422),
        (b'{"phone": "+79161234567", "attributes": {"a": 1e999}}', "application/json", 422),
        (b"[" * 100_000, "application/json", 422),
        (b"1" * 5000, "application/json", 422),
        (b"{}", "text/plain", 415),
        (b"{}", "application/x-www-form-urlencoded", 415),
        (b"{}", None, 415),
        (b" " * (1024 * 1024 + 1), "application/json", 413),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(api: Api, body: bytes, content_type: str | None, code: int) -> None:
    assert _is_error(api.post("/client/", data=body, content_type=content_type), code)


@pytest.mark.parametrize("path", ["/client/", "/client"])
@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "TRACE", "BREW"])
def test_a_method_that_a_path_does_not_have_is_refused_with_those_it_has(api: Api, method: str, path: str) -> None:
    answer = api.call(method, path)

    assert _is_error(answer, 405)
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS", "POST"}


@pytest.mark.parametrize("path", ["/client/", "/client"])
def test_options_tells_the_methods_of_a_path_and_has_no_body(api: Api, path: str) -> None:
    answer = api.call("OPTIONS", path)

    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS", "POST"}
    assert (answer.data, answer.headers.get("Content-Type")) == (b"", None)


@pytest.mark.parametrize("path", ["/nothing/", "//client/", "/client/1/x", "/../client/"])
def test_a_path_that_does_not_exist_is_not_found(api: Api, path: str) -> None:
    assert _is_error(api.get(path), 404)


@pytest.mark.parametrize("path", ["/client", "/client/", "/mailing", "/mailing/mailingsStatisticsOverall", "/message"])
def test_paths_work_with_and_without_the_slash(api: Api, path: str) -> None:
    for spelling in (path, path.rstrip("/") + "/"):
        assert api.get(spelling).status_code == 200


def test_a_mistake_of_our_own_is_told_without_details(api: Api, api_engine: sa.Engine) -> None:
    with api_engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE mailing RENAME COLUMN name TO title"))
    try:
        answer = api.get("/mailing/")
    finally:
        with api_engine.begin() as connection:
            connection.execute(sa.text("ALTER TABLE mailing RENAME COLUMN title TO name"))

    assert _is_error(answer, 500)
    assert "SELECT" not in answer.text


def test_a_database_that_is_away_is_told_as_such() -> None:
    app = create_app(settings_for("postgresql://nobody@127.0.0.1:1/nothing"))
    http = app.test_client()

    answer = http.get("/api/v1/client/", headers={"Authorization": "Bearer key"})

    assert _is_error(answer, 503)
    assert int(answer.headers["Retry-After"]) > 0
    assert http.get("/healthz").status_code == 200
    assert _is_error(http.get("/readyz"), 503)


def test_a_row_that_somebody_holds_too_long_is_told_as_overload(
    api: Api, api_engine: sa.Engine, shared_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.database.STATEMENT_TIMEOUT_SECONDS", 0.2)
    api.post("/client/", {"phone": "+79161234567"})
    impatient = Api(create_app(settings_for(shared_database_url)).test_client(), FULL_KEY)
    with api_engine.begin() as connection:
        connection.execute(sa.text("SELECT FROM client FOR UPDATE"))

        answer = impatient.patch("/client/1/", {"tags": ["vip"]})

    assert _is_error(answer, 503)


def test_numbers_that_cannot_be_read_leave_no_transaction_open(api: Api, api_engine: sa.Engine) -> None:
    with api_engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE status_count RENAME TO renamed"))
    try:
        answer = api.get("/mailing/mailingsStatisticsOverall/")
    finally:
        with api_engine.begin() as connection:
            connection.execute(sa.text("ALTER TABLE renamed RENAME TO status_count"))

    assert _is_error(answer, 500)
    assert api.post("/client/", {"phone": "+79161234567"}).status_code == 201
    assert len(api.get("/client/").get_json()) == 1
    busy = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mailings api' AND state LIKE '%transaction%'"
    )
    with api_engine.begin() as connection:
        assert connection.scalar(sa.text(busy)) == 0


def test_a_connection_that_breaks_between_two_numbers_is_told_as_such(
    api: Api, api_engine: sa.Engine, app: Flask, request: pytest.FixtureRequest
) -> None:
    def cut(connection: sa.Connection, _cursor: object, statement: str, *_rest: object) -> None:
        if "status_count" in statement:
            driver: Any = connection.connection.driver_connection
            with api_engine.begin() as other:
                other.execute(sa.text(f"SELECT pg_terminate_backend({driver.info.backend_pid}, 10000)"))

    with app.app_context():
        engine = database.engine
    sa.event.listen(engine, "before_cursor_execute", cut)
    request.addfinalizer(lambda: sa.event.remove(engine, "before_cursor_execute", cut))

    assert _is_error(api.get("/mailing/mailingsStatisticsOverall/"), 503)


def test_a_broken_connection_is_replaced_silently(api: Api, api_engine: sa.Engine) -> None:
    api.get("/client/")
    with api_engine.begin() as connection:
        ended = connection.scalars(
            sa.text(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'mailings api'"
            )
        ).all()
    assert ended
    assert all(ended)

    assert api.get("/client/").status_code == 200


def test_a_database_at_another_revision_is_not_ready(app: Flask, api_engine: sa.Engine) -> None:
    http = app.test_client()
    assert http.get("/readyz").status_code == 200
    with api_engine.begin() as connection:
        revision = connection.scalar(sa.text("UPDATE alembic_version SET version_num = 'old' RETURNING 'kept'"))
    assert revision == "kept"

    answer = http.get("/readyz")

    with api_engine.begin() as connection:
        from db.migrate import head_revision

        connection.execute(sa.text("UPDATE alembic_version SET version_num = :head"), {"head": head_revision()})
    assert _is_error(answer, 503)
    assert http.get("/readyz").status_code == 200


def test_answers_carry_a_request_id_and_keep_browsers_from_guessing(app: Flask) -> None:
    http = app.test_client()

    answers: list[Any] = [
        http.get("/healthz", headers={"X-Request-ID": given}) for given in ("order-1.a", "a b", "x" * 65)
    ]

    assert answers[0].headers["X-Request-ID"] == "order-1.a"
    assert all(len(answer.headers["X-Request-ID"]) == 32 for answer in answers[1:])
    for answer in answers:
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


def test_metrics_count_requests_by_route_and_tell_the_state_of_the_mailings(api: Api) -> None:
    api.get("/client/123/")
    api.get("/nothing/")

    text = api.http.get("/metrics", headers={"Authorization": f"Bearer {FULL_KEY}"}).text

    assert 'mailing_api_requests_total{method="GET",route="/api/v1/client/<id:client_id>/",status="404"}' in text
    assert 'mailing_api_request_seconds_count{route="/api/v1/client/<id:client_id>/"}' in text
    assert 'route="none",status="404"' in text
    assert 'mailing_messages{status="pending"} 0.0' in text
    assert 'mailing_gateway_state{state="closed"} 1.0' in text
    assert "mailing_batches_waiting 0.0" in text

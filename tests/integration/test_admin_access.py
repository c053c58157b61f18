"""Who gets to what in the admin UI, asked of every route there is."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy.orm import Session
from werkzeug.test import TestResponse

from admin import access
from admin.app import create_app
from db.models import LoginAttempt, Mailing, Role, UserAccount
from db.queries import users
from tests.factories import settings_for
from tests.forms import form_with
from tools.sample import fill

PASSWORD = "correct horse battery"
EMAILS = {role: f"{role.value}@example.com" for role in Role}
OPEN = {"/login", "/healthz", "/readyz", "/preferences"}
ADMINS_ONLY = ("/api-keys/", "/users/", "/audit/", "/system/")
# GET addresses that lead to a change, and are of no use to those who only look.
OPERATORS_ONLY = (
    "/mailings/new/",
    "/mailings/new/1/",
    "/mailings/1/confirm/delete",
    "/clients/new",
    "/clients/1/edit",
    "/clients/1/delete",
    "/clients/export.csv",
)
LARGE = "9223372036854775807"


@pytest.fixture(scope="module")
def app(module_database_url: str) -> Flask:
    """The admin UI in this process, on a database with a bit of everything."""
    return create_app(settings_for(module_database_url, secret_key="test secret"))


@pytest.fixture(scope="module")
def filled(module_database_url: str) -> sa.Engine:
    """Users of all roles, and the sample data."""
    engine = sa.create_engine(module_database_url, poolclass=sa.NullPool)
    with Session(engine) as session, session.begin():
        for role, email in EMAILS.items():
            users.create(session, email, PASSWORD, role)
        fill(session, datetime.now(UTC))
    return engine


@pytest.fixture
def log_in(app: Flask, filled: sa.Engine) -> Callable[[Role], FlaskClient]:  # noqa: ARG001
    """A client of its own for somebody of this role."""

    def enter(role: Role) -> FlaskClient:
        client = app.test_client()
        answer = send(client, "/login", email=EMAILS[role], password=PASSWORD)
        assert answer.status_code == 303
        return client

    return enter


def token_of(client: FlaskClient) -> str:
    page = client.get("/account/", follow_redirects=True).get_data(as_text=True)
    found = re.search(r'name="csrf-token" content="([^"]+)"', page)
    assert found
    return found[1]


def send(client: FlaskClient, path: str, **form: Sequence[str]) -> TestResponse:
    return client.post(path, data={"csrf_token": token_of(client), **form})


def user_id_of(session: Session, role: Role) -> int:
    return session.scalars(sa.select(UserAccount.id).where(UserAccount.email == EMAILS[role])).one()


def routes(app: Flask, method: str) -> list[str]:
    """An address for every route with this method."""
    found = {
        re.sub(r"<id:\w+>", "1", rule.rule).replace("<action>", "pause")
        for rule in app.url_map.iter_rules()
        if method in (rule.methods or ()) and not rule.rule.startswith("/static")
    }
    return sorted(found)


def test_nobody_sees_anything_without_a_login(app: Flask) -> None:
    client = app.test_client()
    asked = [path for path in routes(app, "GET") if path not in OPEN]
    assert len(asked) > 30
    for path in asked:
        answer = client.get(path)
        assert (answer.status_code, answer.headers["Location"].partition("?")[0]) == (302, "/login"), path
        assert client.get(path, headers={"X-Requested-With": "fetch"}).status_code == 401, path


def test_nobody_changes_anything_without_a_login(app: Flask, filled: sa.Engine) -> None:
    client = app.test_client()
    token = token_of(client)
    for path in routes(app, "POST"):
        if path not in OPEN:
            answer = client.post(path, data={"csrf_token": token})
            # The token of an upload is in its address, and wrong here.
            assert answer.status_code in (302, 400, 401), path
            assert answer.headers.get("Location", "/login") == "/login", path
    with Session(filled) as session:
        assert session.scalar(sa.select(Mailing.state).where(Mailing.id == 2)) == "running"


@pytest.mark.parametrize("role", list(Role))
def test_every_change_needs_the_token_of_the_session(
    app: Flask, log_in: Callable[[Role], FlaskClient], role: Role
) -> None:
    client = log_in(role)
    other = token_of(app.test_client())
    for path in routes(app, "POST"):
        for form in ({}, {"csrf_token": other}, {"csrf_token": ""}):
            assert client.post(path, data=form).status_code == 400, path


def test_viewer_is_refused_every_change(app: Flask, log_in: Callable[[Role], FlaskClient], filled: sa.Engine) -> None:
    client = log_in(Role.VIEWER)
    own = {"/login", "/logout", "/preferences", "/account/password", "/account/logout-everywhere"}
    with Session(filled) as session:
        before = _everything(session)
    for path in [path for path in routes(app, "POST") if path not in own and path != "/imports/upload"]:
        assert send(client, path).status_code == 403, path
    with Session(filled) as session:
        assert _everything(session) == before


@pytest.mark.parametrize("path", OPERATORS_ONLY)
def test_viewer_is_refused_pages_for_operators(log_in: Callable[[Role], FlaskClient], path: str) -> None:
    assert log_in(Role.VIEWER).get(path).status_code == 403
    assert log_in(Role.OPERATOR).get(path).status_code == 200


@pytest.mark.parametrize("path", ADMINS_ONLY)
def test_only_admins_get_to_users_keys_log_and_system(log_in: Callable[[Role], FlaskClient], path: str) -> None:
    assert [log_in(role).get(path).status_code for role in Role] == [403, 403, 200]
    assert path not in log_in(Role.OPERATOR).get("/").get_data(as_text=True)


def test_upload_is_refused_to_viewers_and_without_its_own_token(log_in: Callable[[Role], FlaskClient]) -> None:
    viewer, operator = log_in(Role.VIEWER), log_in(Role.OPERATOR)
    page = operator.get("/imports/").get_data(as_text=True)
    address = re.search(r'action="(/imports/upload\?token=[0-9a-f]{64})"', page)
    assert address
    options = {"data": b"phone\n+79160000000\n", "content_type": "text/csv"}
    assert viewer.post(address[1], **options).status_code == 400
    assert operator.post("/imports/upload", **options).status_code == 400
    assert operator.post(address[1], **options).status_code == 303


@pytest.mark.parametrize("malformed", ["abc", "0", "-1", "1e3", "٣", LARGE + "0", "%00", "1%0a", "'", "%F0%9F%92%A9"])
def test_malformed_ids_are_not_found(app: Flask, log_in: Callable[[Role], FlaskClient], malformed: str) -> None:
    client = log_in(Role.ADMIN)
    for rule in app.url_map.iter_rules():
        if "<id:" in rule.rule and "GET" in (rule.methods or ()):
            path = re.sub(r"<id:\w+>", malformed, rule.rule).replace("<action>", "delete")
            assert client.get(path).status_code == 404, path


def test_unknown_ids_are_not_found(app: Flask, log_in: Callable[[Role], FlaskClient]) -> None:
    client = log_in(Role.ADMIN)
    for rule in app.url_map.iter_rules():
        if "<id:" in rule.rule and "GET" in (rule.methods or ()):
            path = re.sub(r"<id:\w+>", LARGE, rule.rule).replace("<action>", "delete")
            assert client.get(path).status_code == 404, path


ODD = [
    "",
    "zzz",
    "-1",
    LARGE,
    LARGE + "0",
    "1.5",
    "'; DROP TABLE client; --",
    "<script>",
    "\ud83d\ude00",
    "٣",
    "0001-01-01",
]


@pytest.mark.parametrize("value", ODD)
def test_odd_filters_get_a_page(log_in: Callable[[Role], FlaskClient], value: str) -> None:
    client = log_in(Role.ADMIN)
    names = {
        "/mailings/": ("state", "from", "to", "kind", "before", "after"),
        "/mailings/live": ("state", "from", "to", "before"),
        "/mailings/new/": ("copy",),
        "/messages/": ("mailing", "status", "reason", "phone", "before", "after"),
        "/clients/": ("phone", "tag", "opted_out", "from", "before", "after"),
        "/imports/": ("before", "after"),
        "/audit/": ("actor", "action", "subject", "before"),
        "/login": ("next",),
    }
    text = value.encode("utf-16", "surrogatepass").decode("utf-16")
    for path, arguments in names.items():
        for argument in arguments:
            answer = client.get(path, query_string={argument: text})
            assert answer.status_code in (200, 303, 404), (path, argument)
            assert "<script>" not in answer.get_data(as_text=True).replace("<script type", "")


@pytest.mark.parametrize("argument", ["endpoint=x", "_method=POST", "_scheme=x", "_external=1", "_anchor=x", "self=x"])
def test_arguments_that_mean_something_to_flask_mean_nothing_to_pages(
    log_in: Callable[[Role], FlaskClient], argument: str
) -> None:
    client = log_in(Role.ADMIN)
    for path in ("/mailings/", "/messages/", "/clients/", "/imports/", "/audit/", "/mailings/new/"):
        assert client.get(f"{path}?{argument}").status_code == 200, path


def test_the_list_of_mailings_refreshes_what_it_shows(log_in: Callable[[Role], FlaskClient]) -> None:
    asked = {"state": "draft", "from": "2026-01-01", "to": "2099-01-01", "kind": "test", "before": "77", "after": "5"}
    page = log_in(Role.VIEWER).get("/mailings/", query_string=asked).get_data(as_text=True)

    found = re.search(r'data-live-url="([^"]+)"', page)

    assert found
    path, _, query = html.unescape(found[1]).partition("?")
    assert (path, dict(parse_qsl(query))) == ("/mailings/live", asked)


def test_nul_characters_are_refused_everywhere(log_in: Callable[[Role], FlaskClient]) -> None:
    client = log_in(Role.OPERATOR)
    assert client.get("/clients/?tag=%00").status_code == 400
    assert client.get("/clients/?tag=a&tag=%00").status_code == 400
    assert send(client, "/mailings/new/preview", tags=["a", "b\x00"]).status_code == 400
    assert send(client, "/clients/new", phone="+79160000001\x00").status_code == 400


@pytest.mark.parametrize(
    "target",
    [
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "javascript:alert(1)",
        "/a\r\nX: y",
        "evil",
        "//[",
        "http://[",
    ],
)
def test_login_leads_to_no_other_site(app: Flask, filled: sa.Engine, target: str) -> None:  # noqa: ARG001
    client = app.test_client()
    answer = send(client, "/login", email=EMAILS[Role.VIEWER], password=PASSWORD, next=target)
    assert answer.headers["Location"] == "/"
    assert send(client, "/preferences", next=target).headers["Location"] == "/"


def test_account_is_closed_for_a_while_after_too_many_wrong_passwords(app: Flask, filled: sa.Engine) -> None:
    def attempt(password: str, email: str = "victim@example.com", address: str = "192.0.2.1") -> int:
        client = app.test_client()
        token = token_of(client)
        data = {"csrf_token": token, "email": email, "password": password}
        return client.post("/login", data=data, environ_base={"REMOTE_ADDR": address}).status_code

    with Session(filled) as session, session.begin():
        users.create(session, "victim@example.com", PASSWORD, Role.VIEWER)
    answers = [attempt("wrong", address=f"192.0.2.{n}") for n in range(users.ACCOUNT_ATTEMPTS)]
    assert set(answers) == {401}
    assert attempt(PASSWORD) == 429
    assert attempt(PASSWORD, email="VICTIM@example.com ") == 429
    # Others are not disturbed, and the time heals it.
    assert attempt(PASSWORD, email=EMAILS[Role.VIEWER], address="192.0.2.200") == 303
    with filled.begin() as connection:
        connection.execute(sa.update(LoginAttempt).values(at=LoginAttempt.at - users.THROTTLE_WINDOW))
    assert attempt(PASSWORD) == 303


def test_address_is_closed_for_a_while_whatever_account_it_tries(app: Flask, filled: sa.Engine) -> None:
    now = datetime.now(UTC)
    with Session(filled) as session, session.begin():
        for number in range(users.ADDRESS_ATTEMPTS):
            assert users.begin_attempt(session, f"nobody{number}@example.com", "203.0.113.5", now) is not None
        assert users.begin_attempt(session, EMAILS[Role.ADMIN], "203.0.113.5", now) is None
        assert users.begin_attempt(session, EMAILS[Role.ADMIN], "203.0.113.6", now) is not None
    client = app.test_client()
    data = {"csrf_token": token_of(client), "email": EMAILS[Role.ADMIN], "password": PASSWORD}
    answer = client.post("/login", data=data, environ_base={"REMOTE_ADDR": "203.0.113.5"})
    assert answer.status_code == 429
    assert "Too many attempts" in answer.get_data(as_text=True)


def test_session_ends_when_nobody_opens_a_page_for_hours(
    log_in: Callable[[Role], FlaskClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = log_in(Role.VIEWER)
    began = datetime.now(UTC).timestamp()
    monkeypatch.setattr(access, "_now", lambda: began + access.IDLE_SECONDS - 10)
    # What a page asks by itself keeps no session alive.
    assert client.get("/live/dashboard", headers={"X-Requested-With": "fetch"}).status_code == 200
    monkeypatch.setattr(access, "_now", lambda: began + access.IDLE_SECONDS + 10)
    assert client.get("/").status_code == 302


def test_session_ends_after_a_day_however_busy_it_is(
    log_in: Callable[[Role], FlaskClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = log_in(Role.VIEWER)
    began = datetime.now(UTC).timestamp()
    for hours in range(3, 24, 3):
        monkeypatch.setattr(access, "_now", lambda hours=hours: began + timedelta(hours=hours).total_seconds())
        assert client.get("/").status_code == 200
    monkeypatch.setattr(access, "_now", lambda: began + access.LONGEST_SECONDS + 10)
    assert client.get("/").status_code == 302


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_who_comes_after_the_session_has_ended_is_told_and_led_back(
    log_in: Callable[[Role], FlaskClient], filled: sa.Engine, method: str
) -> None:
    client = log_in(Role.OPERATOR)
    page = "/mailings/new/?copy=1"
    # A form goes to another address than the one that the page can be opened at.
    address = {"GET": page, "POST": "/mailings/1/pause"}[method]
    form = {"csrf_token": token_of(client)}
    with Session(filled) as session, session.begin():
        users.log_out_everywhere(session, user_id_of(session, Role.OPERATOR))

    refused = client.open(address, method=method, data=form, headers={"Referer": f"http://localhost{page}"})
    login = client.get(refused.headers["Location"]).get_data(as_text=True)

    assert "Your session has ended. Log in again to go on." in login
    entered = client.post(
        "/login", data={**form_with("email", login), "email": EMAILS[Role.OPERATOR], "password": PASSWORD}
    )
    assert entered.headers["Location"] == page


WRITTEN = {
    "name": "Written for an hour",
    "text": 'Dear {name|friend},\r\n\r\n"it\'s" <b>late</b> – ещё',
    "tags": ["vip", "a&b"],
    "when": "draft",
    "ends_at": "2038-01-01T12:00",
    "step": "save",
}


def go_on(client: FlaskClient, page: TestResponse) -> TestResponse:
    """Press the button of the page that has kept what was written."""
    text = page.get_data(as_text=True)
    assert "Nothing was saved or sent yet." in text
    action = re.search(r'<form method="post" action="(/mailings/new/)">', text)
    assert action
    return client.post(action[1], data=form_with("step", text))


def written_mailings(engine: sa.Engine) -> list[tuple[str, list[str]]]:
    with Session(engine) as session, session.begin():
        found = session.scalars(sa.select(Mailing).where(Mailing.name == WRITTEN["name"])).all()
        for mailing in found:
            session.delete(mailing)
        return [(mailing.text, mailing.tags) for mailing in found]


@pytest.mark.parametrize("cookie", ["kept", "lost"])
def test_what_was_written_is_kept_through_the_log_in(
    app: Flask, log_in: Callable[[Role], FlaskClient], filled: sa.Engine, cookie: str
) -> None:
    client = log_in(Role.OPERATOR)
    form = {"csrf_token": token_of(client), **WRITTEN}
    with Session(filled) as session, session.begin():
        users.log_out_everywhere(session, user_id_of(session, Role.OPERATOR))
    if cookie == "lost":  # The browser forgets it after a day.
        client = app.test_client()

    refused = client.post("/mailings/new/", data=form, headers={"Sec-Fetch-Site": "same-origin"})
    page = refused.get_data(as_text=True)
    assert refused.status_code == 401
    assert "Your session has ended. Log in again to go on. What you had written is kept." in page
    mistyped = client.post("/login", data={**form_with("email", page), "email": EMAILS[Role.OPERATOR], "password": "?"})
    page = mistyped.get_data(as_text=True)
    assert mistyped.status_code == 401
    entered = client.post(
        "/login", data={**form_with("email", page), "email": EMAILS[Role.OPERATOR], "password": PASSWORD}
    )
    assert written_mailings(filled) == []
    # A reload sends the log-in again, whose token was that of no session.
    entered = client.post(
        "/login",
        data={**form_with("email", page), "email": EMAILS[Role.OPERATOR], "password": PASSWORD},
        headers={"Sec-Fetch-Site": "same-origin"},
    )

    assert go_on(client, entered).status_code == 303
    assert written_mailings(filled) == [(str(WRITTEN["text"]).replace("\r\n", "\n"), WRITTEN["tags"])]


def test_what_was_written_before_another_log_in_is_kept(
    log_in: Callable[[Role], FlaskClient], filled: sa.Engine
) -> None:
    client = log_in(Role.OPERATOR)
    form = {"csrf_token": token_of(client), **WRITTEN}
    send(client, "/logout")
    send(client, "/login", email=EMAILS[Role.OPERATOR], password=PASSWORD)

    for site in ("cross-site", "same-site", "none", ""):
        refused = client.post("/mailings/new/", data=form, headers={"Sec-Fetch-Site": site})
        assert refused.status_code == 400
        assert str(WRITTEN["name"]) not in refused.get_data(as_text=True)
    kept = client.post("/mailings/new/", data=form, headers={"Sec-Fetch-Site": "same-origin"})
    assert written_mailings(filled) == []

    assert go_on(client, kept).status_code == 303
    assert len(written_mailings(filled)) == 1


@pytest.mark.parametrize(
    "carried",
    [
        "",
        "[",
        "{}",
        "5",
        '["/clients/new"]',
        '["/clients/new", [1]]',
        '["/clients/new", {"a": 1}]',
        '["/users/", [["email", "eve@example.com"]]]',
        '["//example.com/clients/new", []]',
        '["https://example.com/clients/new", []]',
        '["/no/such/page", []]',
        '["/mailings/new", []]',
        "[5, []]",
    ],
)
@pytest.mark.usefixtures("filled")
def test_log_in_carries_nothing_but_forms_on_which_people_write(app: Flask, carried: str) -> None:
    client = app.test_client()
    answer = send(client, "/login", email=EMAILS[Role.ADMIN], password=PASSWORD, written=carried)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")


def test_who_was_not_logged_in_is_told_of_no_session(app: Flask, log_in: Callable[[Role], FlaskClient]) -> None:
    logged_out = log_in(Role.VIEWER)
    send(logged_out, "/logout")
    for client in (app.test_client(), logged_out):
        assert (
            "Your session has ended"
            not in client.get("/", follow_redirects=True).get_data(as_text=True).partition("<main")[2]
        )


def test_sessions_of_a_user_who_is_locked_out_end_at_once(
    log_in: Callable[[Role], FlaskClient], filled: sa.Engine
) -> None:
    client, admin = log_in(Role.VIEWER), log_in(Role.ADMIN)
    with Session(filled) as session:
        user_id = user_id_of(session, Role.VIEWER)
    assert send(admin, f"/users/{user_id}/", role="viewer", disabled="on").status_code == 303
    assert client.get("/").status_code == 302
    assert send(admin, f"/users/{user_id}/", role="viewer").status_code == 303
    assert client.get("/").status_code == 302
    assert log_in(Role.VIEWER).get("/").status_code == 200


def test_last_admin_can_neither_step_down_nor_be_locked_out(
    log_in: Callable[[Role], FlaskClient], filled: sa.Engine
) -> None:
    admin = log_in(Role.ADMIN)
    with Session(filled) as session:
        user_id = user_id_of(session, Role.ADMIN)
    for form in ({"role": "viewer"}, {"role": "admin", "disabled": "on"}):
        send(admin, f"/users/{user_id}/", **form)
        assert "last admin" in admin.get("/users/").get_data(as_text=True)


def test_cookies_and_headers_are_strict(app: Flask, log_in: Callable[[Role], FlaskClient]) -> None:
    client = log_in(Role.VIEWER)
    answer = client.get("/", base_url="https://localhost")
    assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert answer.headers["Cache-Control"] == "no-store"
    cookie = app.test_client().get("/login", base_url="https://localhost").headers["Set-Cookie"]
    assert all(word in cookie for word in ("Secure", "HttpOnly", "SameSite=Lax"))
    assert "Secure" not in app.test_client().get("/login").headers["Set-Cookie"]


@pytest.mark.parametrize("path", ["/", "/mailings/1/", "/live/dashboard", "/login"])
def test_lost_database_is_told_in_words(log_in: Callable[[Role], FlaskClient], path: str) -> None:
    cookie = log_in(Role.VIEWER).get_cookie("mailings_admin")
    assert cookie
    settings = settings_for("postgresql://nobody@127.0.0.1:1/none", secret_key="test secret")
    client = create_app(settings).test_client()
    client.set_cookie("mailings_admin", cookie.value)
    answer = client.get(path, headers={"Accept-Language": "ru"})
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "5"
    assert "База данных сейчас недоступна" in answer.get_data(as_text=True)
    assert "Traceback" not in answer.get_data(as_text=True)
    assert client.get("/nowhere").status_code == 404


def _everything(session: Session) -> list[tuple[object, ...]]:
    tables = ("mailing", "client", "api_key", "user_account", "import_job", "audit_entry")
    return [session.execute(sa.text(f"SELECT count(*), sum(hashtext(t::text)) FROM {name} t")).one() for name in tables]

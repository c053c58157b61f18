"""How the API speaks to its database."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from tests.databases import can_be_full
from tests.factories import make_client
from tests.integration.conftest import Api

MAILING = {"name": "May", "text": "Hello", "ends_at": "2126-01-01T00:00:00Z"}


def _last_statement(session: Session) -> str:
    query = sa.text(
        "SELECT query FROM pg_stat_activity WHERE application_name = 'mailings api' AND datname = current_database()"
        " ORDER BY query_start DESC LIMIT 1"
    )
    return str(session.scalar(query))


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/client/{}/", None),
        ("POST", "/client/", {"phone": "+79161234567"}),
        ("POST", "/mailing/", MAILING),
    ],
)
def test_what_takes_one_statement_is_sent_without_begin_and_commit(
    api: Api, api_session: Session, method: str, path: str, body: dict[str, str] | None
) -> None:
    client = make_client(api_session)
    api_session.commit()

    answer = api.call(method, path.format(client.id), **({} if body is None else {"json": body}))

    assert answer.status_code in {200, 201}
    last = _last_statement(api_session)
    assert last.startswith(("SELECT", "WITH")), last


def test_a_change_of_several_statements_is_one_transaction(api: Api, api_session: Session) -> None:
    client = make_client(api_session)
    api_session.commit()

    assert api.patch(f"/client/{client.id}/", {"tags": ["vip"]}).status_code == 200

    last = _last_statement(api_session)
    assert last == "COMMIT"


def test_a_full_disk_is_named_and_changes_nothing(api: Api, api_session: Session) -> None:
    api_session.execute(sa.text(can_be_full("client")))
    api_session.execute(sa.text("UPDATE disk SET is_full = true"))
    api_session.commit()
    try:
        answer = api.post("/client/", {"phone": "+79161234567"})
    finally:
        api_session.execute(sa.text("DROP FUNCTION refuse_when_full() CASCADE; DROP TABLE disk"))
        api_session.commit()

    assert answer.status_code == 503
    assert "disk of the database is full" in answer.text
    assert answer.headers["Retry-After"]
    assert api.get("/client/").json == []

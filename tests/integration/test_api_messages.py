"""Messages and statistics over the API."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import Session

from api.database import database
from db.models import Attempt, MailingState, MessageStatus
from tests.factories import make_client, make_mailing, make_message
from tests.integration.conftest import Api

PENDING, SENDING, SENT, DELIVERED, FAILED, EXPIRED, CANCELLED = MessageStatus
NONE: dict[str, int] = {status.value: 0 for status in MessageStatus}


def _ids(api: Api, query: str) -> list[int]:
    """Every id that the list has, page by page."""
    ids: list[int] = []
    after: int | None = 0
    while after is not None:
        page = api.get(f"/message/?{query}&after={after}").get_json()
        ids += [message["id"] for message in page["items"]]
        after = page["next"]
    return ids


def test_a_message_tells_what_became_of_it(api: Api, api_session: Session) -> None:
    client = make_client(api_session, phone="+79161234567")
    sent_at = datetime(2026, 11, 23, 9, 0, 1, tzinfo=UTC)
    message = make_message(
        api_session, make_mailing(api_session), client, status=SENT, attempts=2, sent_at=sent_at, created_at=sent_at
    )
    times = [datetime(2026, 11, 23, 8, minute, tzinfo=UTC) for minute in (1, 2)]
    for number, at in enumerate(times, start=1):
        api_session.add(
            Attempt(
                message_id=message.id,
                at=at,
                attempt=number,
                outcome="retry" if number == 1 else "sent",
                reason="timeout" if number == 1 else None,
                http_status=None if number == 1 else 200,
                milliseconds=10003,
            )
        )
    api_session.commit()

    body = api.get("/message/1/").get_json()

    assert body == {
        "id": 1,
        "mailing_id": 1,
        "client_id": 1,
        "phone": "+79161234567",
        "status": "sent",
        "attempts": 2,
        "created_at": "2026-11-23T09:00:01Z",
        "next_attempt_at": None,
        "sent_at": "2026-11-23T09:00:01Z",
        "last_error": None,
        "history": [
            {
                "at": "2026-11-23T08:01:00Z",
                "attempt": 1,
                "outcome": "retry",
                "reason": "timeout",
                "http_status": None,
                "milliseconds": 10003,
            },
            {
                "at": "2026-11-23T08:02:00Z",
                "attempt": 2,
                "outcome": "sent",
                "reason": None,
                "http_status": 200,
                "milliseconds": 10003,
            },
        ],
    }
    del body["history"]
    assert api.get("/message/").get_json() == {"items": [body], "next": None}


@pytest.mark.parametrize("limit", [1, 2, 500])
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [1, 2, 3, 4, 5, 6]),
        ("mailing_id=1", [1, 2, 3]),
        ("mailing_id=9", []),
        ("client_id=2", [2, 5]),
        ("client_id=9", []),
        ("status=failed", [2, 4, 6]),
        ("status=expired", []),
        ("mailing_id=2&status=failed", [4, 6]),
        ("mailing_id=2&client_id=2", [5]),
        ("client_id=2&status=failed", [2]),
        ("mailing_id=1&client_id=2&status=sent", []),
    ],
)
def test_the_list_is_filtered_and_paged_by_key(
    api: Api, api_session: Session, query: str, expected: list[int], limit: int
) -> None:
    clients = [make_client(api_session) for _ in range(3)]
    first, second, deleted = (make_mailing(api_session) for _ in range(3))
    for client, status in zip(clients, [SENT, FAILED, PENDING], strict=True):
        make_message(api_session, first, client, status=status)
    for client, status in zip(clients, [FAILED, SENT, FAILED], strict=True):
        make_message(api_session, second, client, status=status)
    for client in clients:
        make_message(api_session, deleted, client, status=FAILED)
    api.delete(f"/mailing/{deleted.id}/")

    assert _ids(api, f"{query}&limit={limit}") == expected


@pytest.mark.parametrize(
    "query",
    ["after=-1", "limit=0", "limit=501", "mailing_id=0", "client_id=9223372036854775808", "status=lost", "after=x"],
)
def test_a_filter_that_makes_no_sense_is_refused(api: Api, query: str) -> None:
    assert api.get(f"/message/?{query}").status_code == 422


def test_a_message_that_is_not_there_is_not_found(api: Api, api_session: Session) -> None:
    make_message(api_session, make_mailing(api_session), make_client(api_session))
    api.delete("/mailing/1/")

    assert api.get("/message/1/").status_code == 404
    assert api.get("/message/2/").status_code == 404


def test_a_mailing_is_shown_in_detail(api: Api, api_session: Session) -> None:
    mailing = make_mailing(api_session)
    for status in (SENT, SENT, FAILED):
        make_message(api_session, mailing, make_client(api_session), status=status)
    make_message(api_session, make_mailing(api_session), make_client(api_session))

    body = api.get("/message/1/retrieveMessagesForMailing/?limit=2").get_json()

    assert body["mailing"] == api.get("/mailing/1/").get_json()
    assert body["messages"] == 3
    assert body["by_status"] == {**NONE, "sent": 2, "failed": 1}
    assert [item["id"] for item in body["items"]] == [1, 2]
    rest = api.get(f"/message/1/retrieveMessagesForMailing/?limit=2&after={body['next']}").get_json()
    assert ([item["id"] for item in rest["items"]], rest["next"]) == ([3], None)
    assert api.get("/message/9/retrieveMessagesForMailing/").status_code == 404


def test_the_statistics_add_up(api: Api, api_session: Session) -> None:
    for statuses in ([SENT, SENT, FAILED], [PENDING], [], [SENT]):
        mailing = make_mailing(api_session, name=f"of {len(statuses)}")
        for status in statuses:
            make_message(api_session, mailing, make_client(api_session), status=status)
    api.delete("/mailing/4/")

    answer = api.get("/mailing/mailingsStatisticsOverall/?page_size=2")

    body = answer.get_json()
    assert body["totals"] == {
        "mailings": 3,
        "messages": 4,
        "by_status": {**NONE, "sent": 2, "failed": 1, "pending": 1},
    }
    assert [(row["id"], row["messages"]) for row in body["mailings"]] == [(1, 3), (2, 1)]
    assert body["mailings"][0]["by_status"] == {**NONE, "sent": 2, "failed": 1}
    assert set(body["mailings"][0]) == {"id", "name", "state", "starts_at", "ends_at", "messages", "by_status"}
    assert json.loads(answer.headers["X-Pagination"])["total"] == 3


def test_the_statistics_follow_every_change_whoever_makes_it(
    api: Api, api_session: Session, api_engine: sa.Engine
) -> None:
    mailing = make_mailing(api_session, state=MailingState.RUNNING)
    for _ in range(3):
        make_message(api_session, mailing, make_client(api_session), status=SENT)
    with api_engine.begin() as connection:
        connection.execute(sa.text("UPDATE message SET status = 'delivered' WHERE id < 3"))
        connection.execute(sa.text("DELETE FROM message WHERE id = 1"))

    totals = api.get("/mailing/mailingsStatisticsOverall/").get_json()["totals"]

    assert totals["by_status"] == {**NONE, "delivered": 1, "sent": 1}


def test_the_totals_are_the_sum_of_the_mailings_also_while_they_grow(
    api: Api, api_session: Session, app: Flask, request: pytest.FixtureRequest
) -> None:
    mailing = make_mailing(api_session)
    read: list[str] = []

    def send_another(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if "status_count" in statement:
            read.append(statement)
            make_message(api_session, mailing, make_client(api_session))

    with app.app_context():
        engine = database.engine
    sa.event.listen(engine, "after_cursor_execute", send_another)
    request.addfinalizer(lambda: sa.event.remove(engine, "after_cursor_execute", send_another))

    body = api.get("/mailing/mailingsStatisticsOverall/").get_json()

    assert len(read) == 2
    assert body["totals"]["by_status"] == body["mailings"][0]["by_status"]
    assert api.get("/mailing/mailingsStatisticsOverall/").get_json()["totals"]["messages"] == 2

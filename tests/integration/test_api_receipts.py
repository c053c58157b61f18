"""Delivery receipts over the API."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import Session

from db.models import Attempt, Message, MessageStatus, Receipt
from tests.factories import make_client, make_mailing, make_message
from tests.integration.conftest import RECEIPTS_KEY, Api

PENDING, SENDING, SENT, DELIVERED, FAILED, EXPIRED, CANCELLED = MessageStatus


def _message(session: Session, status: MessageStatus, attempts: int = 1) -> Message:
    return make_message(session, make_mailing(session), make_client(session), status=status, attempts=attempts)


def test_a_sent_message_is_delivered(api: Api, api_session: Session) -> None:
    _message(api_session, SENT)

    answer = api.post("/receipt/", {"id": 1, "status": "delivered"})

    assert (answer.status_code, answer.get_json()) == (200, {"id": 1, "status": "delivered"})
    body = api.get("/message/1/").get_json()
    assert (body["status"], body["last_error"], body["history"]) == ("delivered", None, [])


@pytest.mark.parametrize(("reason", "stored"), [("absent", "absent"), (None, "receipt"), ("", "receipt")])
def test_a_sent_message_fails_with_the_reason(api: Api, api_session: Session, reason: str | None, stored: str) -> None:
    _message(api_session, SENT)

    answer = api.post("/receipt/", {"id": 1, "status": "failed", "reason": reason})

    assert answer.get_json()["status"] == "failed"
    body = api.get("/message/1/").get_json()
    assert (body["status"], body["last_error"]) == ("failed", stored)
    assert [(row["outcome"], row["reason"]) for row in body["history"]] == [("receipt", stored)]


@pytest.mark.parametrize("final", [DELIVERED, FAILED, EXPIRED, CANCELLED])
@pytest.mark.parametrize("told", ["delivered", "failed"])
def test_a_final_status_stands(api: Api, api_session: Session, final: MessageStatus, told: str) -> None:
    _message(api_session, final)

    answer = api.post("/receipt/", {"id": 1, "status": told})

    assert (answer.status_code, answer.get_json()["status"]) == (200, final)
    assert api.get("/message/1/").get_json()["status"] == final
    assert api_session.scalars(sa.select(Attempt)).all() == []


def test_an_early_receipt_is_kept_and_the_first_one_counts(api: Api, api_session: Session) -> None:
    _message(api_session, SENDING)

    answers = [
        api.post("/receipt/", {"id": 1, "status": status, "reason": "absent"}) for status in ("failed", "delivered")
    ]

    assert [answer.get_json()["status"] for answer in answers] == ["sending", "sending"]
    kept = api_session.scalars(sa.select(Receipt)).one()
    assert (kept.message_id, kept.status, kept.reason) == (1, FAILED, "absent")


def test_a_receipt_settles_a_message_whose_answer_never_came(api: Api, api_session: Session) -> None:
    _message(api_session, PENDING, attempts=1)

    answer = api.post("/receipt/", {"id": 1, "status": "delivered"})

    assert answer.get_json()["status"] == "delivered"
    body = api.get("/message/1/").get_json()
    assert body["next_attempt_at"] is None
    assert body["sent_at"] is not None


@pytest.mark.parametrize("status", [PENDING, EXPIRED, CANCELLED])
def test_a_message_that_was_never_sent_takes_no_receipt(api: Api, api_session: Session, status: MessageStatus) -> None:
    _message(api_session, status, attempts=0)

    answer = api.post("/receipt/", {"id": 1, "status": "delivered"})

    assert answer.status_code == 409
    assert api.get("/message/1/").get_json()["status"] == status


def _history(session: Session, message: Message, outcome: str, milliseconds: int | None) -> None:
    session.add(
        Attempt(message_id=message.id, at=datetime.now(UTC), attempt=1, outcome=outcome, milliseconds=milliseconds)
    )
    session.commit()


@pytest.mark.parametrize(
    ("outcome", "milliseconds"),
    [
        ("retry", 10_003),  # a probe whose answer never came: not counted as an attempt
        ("lost", None),
        ("receipt", None),  # accepted, then reported as failed, and put back by `retry-failed`
    ],
)
def test_the_history_tells_of_attempts_that_are_not_counted(
    api: Api, api_session: Session, outcome: str, milliseconds: int | None
) -> None:
    _history(api_session, _message(api_session, PENDING, attempts=0), outcome, milliseconds)

    answers = [api.post("/receipt/", {"id": 1, "status": status}) for status in ("delivered", "failed")]

    assert [(answer.status_code, answer.get_json()["status"]) for answer in answers] == [(200, "delivered")] * 2


def test_a_final_message_whose_attempts_are_not_counted_stays_so(api: Api, api_session: Session) -> None:
    _history(api_session, _message(api_session, EXPIRED, attempts=0), "retry", 10_003)

    answer = api.post("/receipt/", {"id": 1, "status": "delivered"})

    assert (answer.status_code, answer.get_json()["status"]) == (200, "expired")


def test_a_text_that_could_not_be_filled_in_was_no_attempt(api: Api, api_session: Session) -> None:
    _history(api_session, _message(api_session, PENDING, attempts=0), "failed", None)

    assert api.post("/receipt/", {"id": 1, "status": "delivered"}).status_code == 409


def test_an_unknown_message_is_not_found(api: Api, api_session: Session) -> None:
    _message(api_session, SENT)
    api.delete("/mailing/1/")

    for message_id in (1, 2, 2**63 - 1):
        assert api.post("/receipt/", {"id": message_id, "status": "delivered"}).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"id": 1},
        {"status": "delivered"},
        {"id": "1", "status": "delivered"},
        {"id": True, "status": "delivered"},
        {"id": 1.5, "status": "delivered"},
        {"id": 0, "status": "delivered"},
        {"id": 2**63, "status": "delivered"},
        {"id": 1, "status": "sent"},
        {"id": 1, "status": "failed", "reason": "x" * 201},
        {"id": 1, "status": "failed", "reason": "a\x00"},
        {"id": 1, "status": "failed", "why": "absent"},
    ],
)
def test_a_receipt_that_makes_no_sense_is_refused(api: Api, api_session: Session, body: dict[str, object]) -> None:
    _message(api_session, SENT)

    assert api.post("/receipt/", body).status_code == 422
    assert api.get("/message/1/").get_json()["status"] == "sent"


def test_of_contradicting_receipts_at_the_same_time_one_counts(api: Api, api_session: Session, app: Flask) -> None:
    _message(api_session, SENT)

    def tell(turn: int) -> str:
        caller = Api(app.test_client(), RECEIPTS_KEY)
        answer = caller.post("/receipt/", {"id": 1, "status": ("delivered", "failed")[turn % 2]})
        return str(answer.get_json()["status"])

    with ThreadPoolExecutor(8) as threads:
        told = set(threads.map(tell, range(16)))

    assert told == {api.get("/message/1/").get_json()["status"]}

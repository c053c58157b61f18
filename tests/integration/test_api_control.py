"""Start, pause, resume, cancel and retry-failed over the API."""

from __future__ import annotations

import contextlib
import time as clock
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, time, timedelta

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import Session
from werkzeug.test import TestResponse

from db.engine import make_engine
from db.models import Mailing, MailingState, Message, MessageStatus
from db.queries import audience
from tests.factories import make_client, make_mailing, make_message
from tests.integration.conftest import FULL_KEY, Api, listening

DRAFT, SCHEDULED, RUNNING, PAUSED, COMPLETED, CANCELLED = MailingState
_SENT = {"status": MessageStatus.SENT, "sent_at": sa.func.now(), "next_attempt_at": None}


@pytest.mark.parametrize(
    ("action", "before", "after"),
    [
        ("start", DRAFT, SCHEDULED),
        ("pause", SCHEDULED, PAUSED),
        ("pause", RUNNING, PAUSED),
        ("resume", PAUSED, RUNNING),
        ("cancel", DRAFT, CANCELLED),
        ("cancel", SCHEDULED, CANCELLED),
        ("cancel", RUNNING, CANCELLED),
        ("cancel", PAUSED, CANCELLED),
    ],
)
def test_an_action_moves_the_mailing_and_tells_its_counts(
    api: Api, api_session: Session, action: str, before: MailingState, after: MailingState
) -> None:
    mailing = make_mailing(api_session, state=before)
    make_message(api_session, mailing, make_client(api_session), status=MessageStatus.SENT)

    answer = api.post(f"/mailing/1/{action}/")

    assert answer.status_code == 200
    body = answer.get_json()
    assert (body["state"], body["messages"], body["by_status"]["sent"]) == (after, 1, 1)
    assert set(body["by_status"]) == set(MessageStatus)
    assert api.get("/mailing/1/").get_json()["state"] == after


@pytest.mark.parametrize(
    ("action", "states"),
    [
        ("start", [SCHEDULED, RUNNING, PAUSED, COMPLETED, CANCELLED]),
        ("pause", [DRAFT, PAUSED, COMPLETED, CANCELLED]),
        ("resume", [DRAFT, SCHEDULED, RUNNING, COMPLETED, CANCELLED]),
        ("cancel", [COMPLETED, CANCELLED]),
    ],
)
def test_an_action_that_does_not_fit_is_refused_with_the_reason(
    api: Api, api_session: Session, action: str, states: list[MailingState]
) -> None:
    for state in states:
        mailing = make_mailing(api_session, state=state)

        answer = api.post(f"/mailing/{mailing.id}/{action}/")

        assert answer.status_code == 409
        assert answer.get_json()["message"].startswith(f"a {state} mailing cannot be ")
        assert api.get(f"/mailing/{mailing.id}/").get_json()["state"] == state


def test_a_mailing_paused_before_its_start_is_scheduled_again(api: Api, api_session: Session) -> None:
    make_mailing(api_session, state=SCHEDULED)

    api.post("/mailing/1/pause/")

    assert api.post("/mailing/1/resume/").get_json()["state"] == "scheduled"


def test_a_draft_whose_end_has_passed_cannot_be_started(api: Api, api_session: Session) -> None:
    now = datetime.now(UTC)
    make_mailing(api_session, state=DRAFT, starts_at=now - timedelta(days=2), ends_at=now - timedelta(days=1))

    answer = api.post("/mailing/1/start/")

    assert answer.status_code == 409
    assert "end time" in answer.get_json()["message"]


@pytest.mark.parametrize("action", ["start", "pause", "resume", "cancel", "retry-failed"])
def test_what_is_not_there_is_not_found(api: Api, action: str) -> None:
    assert api.post(f"/mailing/1/{action}/").status_code == 404


def test_every_action_wakes_the_dispatcher(api: Api, api_session: Session, api_engine: sa.Engine) -> None:
    make_mailing(api_session, state=DRAFT)
    with listening(api_engine, "work") as wait_for:
        for action in ("start", "pause", "resume", "cancel"):
            assert api.post(f"/mailing/1/{action}/").status_code == 200
        api.delete("/mailing/1/")

        assert wait_for(5) == [""] * 5


def _failed(session: Session, mailing: Mailing, *reasons: str) -> list[Message]:
    return [
        make_message(session, mailing, make_client(session), status=MessageStatus.FAILED, attempts=7, last_error=reason)
        for reason in reasons
    ]


def test_retry_failed_puts_failed_messages_back(api: Api, api_session: Session) -> None:
    mailing = make_mailing(api_session, state=COMPLETED)
    messages = _failed(api_session, mailing, "http_400", "timeout")
    make_message(api_session, mailing, make_client(api_session), status=MessageStatus.SENT)

    answer = api.post("/mailing/1/retry-failed/")

    assert answer.status_code == 200
    body = answer.get_json()
    assert body["retried"] == 2
    assert body["mailing"]["state"] == "running"
    assert (body["mailing"]["by_status"]["pending"], body["mailing"]["by_status"]["sent"]) == (2, 1)
    for message in messages:
        api_session.refresh(message)
        assert (message.status, message.attempts) == (MessageStatus.PENDING, 0)
    api_session.refresh(mailing)
    assert mailing.finished_at is None


def test_retry_failed_takes_only_the_reasons_given(api: Api, api_session: Session) -> None:
    _failed(api_session, make_mailing(api_session), "http_400", "timeout", "timeout")

    answer = api.post("/mailing/1/retry-failed/", {"reasons": ["timeout", "refused"]})

    assert answer.get_json()["retried"] == 2
    assert answer.get_json()["mailing"]["by_status"]["failed"] == 1


def test_retry_failed_of_nothing_leaves_a_completed_mailing_completed(api: Api, api_session: Session) -> None:
    _failed(api_session, make_mailing(api_session, state=COMPLETED), "http_400")

    answer = api.post("/mailing/1/retry-failed/", {"reasons": ["timeout"]})

    assert (answer.get_json()["retried"], answer.get_json()["mailing"]["state"]) == (0, "completed")


def test_an_empty_list_of_reasons_takes_none(api: Api, api_session: Session) -> None:
    _failed(api_session, make_mailing(api_session), "http_400")

    assert api.post("/mailing/1/retry-failed/", {"reasons": []}).get_json()["retried"] == 0


def test_retry_failed_leaves_alone_who_does_not_want_it(api: Api, api_session: Session) -> None:
    mailing = make_mailing(api_session)
    gone, opted_out = make_client(api_session), make_client(api_session, opted_out_at=datetime.now(UTC))
    for client in (gone, opted_out):
        make_message(api_session, mailing, client, status=MessageStatus.FAILED)
    api.delete(f"/client/{gone.id}/")

    assert api.post("/mailing/1/retry-failed/").get_json()["retried"] == 0


def test_retried_messages_wait_for_their_window(api: Api, api_session: Session) -> None:
    mailing = make_mailing(api_session, window_from=time(9), window_to=time(21))
    _failed(api_session, mailing, "timeout")

    api.post("/mailing/1/retry-failed/")

    api_session.refresh(mailing)
    assert mailing.rescheduled_through == 0


@pytest.mark.parametrize("state", [DRAFT, SCHEDULED, CANCELLED])
def test_retry_failed_is_refused_in_other_states(api: Api, api_session: Session, state: MailingState) -> None:
    make_mailing(api_session, state=state)

    assert api.post("/mailing/1/retry-failed/").status_code == 409


def test_retry_failed_is_refused_after_the_end(api: Api, api_session: Session) -> None:
    now = datetime.now(UTC)
    mailing = make_mailing(
        api_session, state=COMPLETED, starts_at=now - timedelta(days=2), ends_at=now - timedelta(seconds=1)
    )
    _failed(api_session, mailing, "timeout")

    answer = api.post("/mailing/1/retry-failed/")

    assert answer.status_code == 409
    assert "end time" in answer.get_json()["message"]


@pytest.mark.parametrize("body", [{"reasons": "timeout"}, {"reasons": [1]}, {"reason": ["timeout"]}, []])
def test_retry_failed_refuses_a_body_that_makes_no_sense(api: Api, api_session: Session, body: object) -> None:
    make_mailing(api_session)

    assert api.post("/mailing/1/retry-failed/", body).status_code == 422


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_retry_failed_takes_no_body_that_it_cannot_read_for_none(api: Api, api_session: Session, encoding: str) -> None:
    _failed(api_session, make_mailing(api_session), "timeout")

    body = '{"reasons": ["caf\xe9"]}'.encode(encoding)
    answer = api.call("POST", "/mailing/1/retry-failed/", data=body, content_type="application/json")

    assert (answer.status_code, answer.get_json()["message"]) == (422, "the body is not valid JSON")
    assert set(api_session.scalars(sa.select(Message.status))) == {MessageStatus.FAILED}


@contextlib.contextmanager
def _retrying(app: Flask, engine: sa.Engine) -> Iterator[Future[TestResponse]]:
    """`retry-failed` of mailing 1, at work for as long as this goes on."""
    with ThreadPoolExecutor(1) as thread:
        with engine.begin() as holder:
            holder.execute(sa.text("SELECT FROM message WHERE status = 'failed' LIMIT 1 FOR UPDATE"))
            answer = thread.submit(Api(app.test_client(), FULL_KEY).post, "/mailing/1/retry-failed/")
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as looking:
                give_up_at = clock.monotonic() + 10
                while not looking.scalar(sa.text("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")):
                    assert clock.monotonic() < give_up_at
            yield answer
        answer.result(10)


@pytest.fixture
def impatient(shared_database_url: str) -> Iterator[Session]:
    """A dispatcher's session that does not wait for locks for long."""
    engine = make_engine(shared_database_url, "mailings tests", statement_timeout_seconds=2)
    with Session(engine) as session:
        yield session
    engine.dispose()


def test_a_mailing_can_be_held_and_edited_while_failed_messages_are_put_back(
    api: Api, api_session: Session, api_engine: sa.Engine, app: Flask
) -> None:
    _failed(api_session, make_mailing(api_session), "timeout", "timeout")

    with _retrying(app, api_engine) as retry:
        assert api.post("/mailing/1/pause/").get_json()["state"] == "paused"
        assert api.patch("/mailing/1/", {"send_window": {"from": "09:00", "to": "21:00"}}).status_code == 200

    body = retry.result().get_json()
    assert (body["retried"], body["mailing"]["state"]) == (2, "paused")
    assert body["mailing"]["send_window"] == {"from": "09:00", "to": "21:00"}
    assert api_session.scalar(sa.select(Mailing.rescheduled_through)) == 0


@pytest.mark.parametrize(("method", "path", "refusal"), [("POST", "cancel/", 409), ("DELETE", "", 404)])
def test_a_mailing_that_is_ended_while_failed_messages_are_put_back_stays_so(
    api: Api, api_session: Session, api_engine: sa.Engine, app: Flask, method: str, path: str, refusal: int
) -> None:
    _failed(api_session, make_mailing(api_session), "timeout", "timeout")

    with _retrying(app, api_engine) as retry:
        assert api.call(method, f"/mailing/1/{path}").status_code in (200, 204)

    assert retry.result().status_code == refusal
    assert set(api_session.scalars(sa.select(Message.status))) == {MessageStatus.FAILED}
    assert api_session.scalar(sa.select(Mailing.state)) is CANCELLED


def test_the_dispatcher_goes_on_while_failed_messages_are_put_back(
    api: Api, api_session: Session, api_engine: sa.Engine, app: Flask, impatient: Session
) -> None:
    _failed(api_session, make_mailing(api_session), "timeout", "timeout")
    make_client(api_session)

    with _retrying(app, api_engine) as retry:
        assert audience.materialise_chunk(impatient, 1) is False
        impatient.commit()
        api.patch("/mailing/1/", {"send_window": {"from": "09:00", "to": "21:00"}})
        assert audience.reschedule_chunk(impatient) is True
        impatient.execute(sa.update(Message).where(Message.status == MessageStatus.PENDING).values(**_SENT))
        impatient.commit()
        # Nothing of it is open, as far as anybody else can see: it is about to be.
        assert audience.complete(impatient) == []

    assert retry.result().get_json()["mailing"]["by_status"]["pending"] == 2
    impatient.commit()
    assert audience.complete(impatient) == []

"""Mailings over the API: made and edited."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, time, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import Session

from db.models import Mailing, MailingState
from tests.factories import make_mailing
from tests.integration.conftest import Api, listening

MAILING = {"name": "Sale", "text": "Hello", "ends_at": "2099-01-01T00:00:00Z"}


def test_a_mailing_is_scheduled_for_now_and_everyone(api: Api) -> None:
    before = datetime.now(UTC)

    answer = api.post("/mailing/", MAILING)

    assert answer.status_code == 201
    made = answer.get_json()
    assert before <= datetime.fromisoformat(made.pop("starts_at")) <= datetime.now(UTC)
    created_at = made.pop("created_at")
    assert made == {
        **MAILING,
        "id": 1,
        "filter": {"operator_codes": [], "tags": []},
        "send_window": None,
        "state": "scheduled",
        "updated_at": created_at,
    }


def test_every_field_given_comes_back(api: Api) -> None:
    given = {
        "name": "Распродажа",
        "text": "Hello, {name|there}! 🎉",
        "starts_at": "2098-01-01T10:00:00+03:00",
        "ends_at": "2099-01-01T00:00:00-05:00",
        "filter": {"operator_codes": ["916", "925"], "tags": ["vip"]},
        "send_window": {"from": "22:00", "to": "06:30"},
        "state": "draft",
    }

    made = api.post("/mailing/", given).get_json()

    in_utc = {"starts_at": "2098-01-01T07:00:00Z", "ends_at": "2099-01-01T05:00:00Z"}
    assert {name: made[name] for name in given} == {**given, **in_utc}
    assert api.get("/mailing/1").get_json() == made
    assert api.get("/mailing/").get_json() == [made]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "   "),
        ("name", "n" * 201),
        ("name", None),
        ("text", ""),
        ("text", "\n"),
        ("text", "t" * 2001),
        ("text", "a\x00b"),
        ("text", "{" + "n" * 65 + "}"),  # No attribute has such a long name.
        ("starts_at", "2026-11-23T09:00:00"),
        ("starts_at", "2026-11-23"),
        ("starts_at", "2026-02-30T09:00:00Z"),
        ("starts_at", None),
        ("starts_at", "2099-01-01T00:00:00Z"),  # not before ends_at
        ("ends_at", "2020-01-01T00:00:00Z"),
        ("ends_at", "9999-12-31T23:59:59-01:00"),
        ("ends_at", "9999-12-31T23:59:59Z"),
        ("ends_at", "9999-01-01T00:00:00Z"),
        ("starts_at", "1970-01-01T00:00:00+00:01"),
        ("ends_at", "soon"),
        ("filter", None),
        ("filter", []),
        ("filter", {"tag": ["vip"]}),
        ("filter", {"operator_codes": "916"}),
        ("filter", {"operator_codes": ["９１６"]}),
        ("send_window", {"from": "09:00"}),
        ("send_window", {"from": "09:00", "to": "09:00"}),
        ("send_window", {"from": "9:00", "to": "21:00"}),
        ("send_window", {"from": "09:00", "to": "24:00"}),
        ("send_window", {"from": "09:00+03:00", "to": "21:00"}),
        ("send_window", "09:00-21:00"),
        ("state", "running"),
        ("id", 5),
        ("colour", "red"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(api: Api, field: str, value: object) -> None:
    answer = api.post("/mailing/", {**MAILING, field: value})

    assert answer.status_code == 422
    named = list(answer.get_json()["errors"]["json"])
    # Which of two times is wrong is a matter of taste.
    assert named == ["ends_at"] if field == "starts_at" and value == MAILING["ends_at"] else named == [field]
    assert api.get("/mailing/").get_json() == []


def test_a_time_outside_the_years_we_know_is_refused_with_the_rule(api: Api) -> None:
    answer = api.post("/mailing/", {**MAILING, "ends_at": "9999-12-31T23:59:59Z"})

    assert answer.get_json()["errors"]["json"] == {"ends_at": ["must be in the years 1970 to 9998 (UTC)"]}
    furthest = {"starts_at": "1970-01-01T00:00:00Z", "ends_at": "9998-12-31T23:59:59Z"}
    assert api.post("/mailing/", {**MAILING, **furthest}).status_code == 201


@pytest.mark.parametrize("field", ["name", "text", "ends_at"])
def test_what_has_no_default_is_required(api: Api, field: str) -> None:
    answer = api.post("/mailing/", {name: value for name, value in MAILING.items() if name != field})

    assert answer.status_code == 422
    assert list(answer.get_json()["errors"]["json"]) == [field]


def test_the_dispatcher_is_woken(api: Api, api_engine: sa.Engine) -> None:
    with listening(api_engine, "work") as wait_for:
        api.post("/mailing/", MAILING)

        assert wait_for(1) == [""]


def test_the_same_idempotency_key_and_body_answer_the_first_mailing_again(api: Api) -> None:
    headers = {"Idempotency-Key": "order-1"}
    first = api.post("/mailing/", MAILING, headers=headers)
    reordered = '{ "ends_at":"2099-01-01T00:00:00Z",\n "text":"Hello", "name":"Sale" }'

    again = api.post("/mailing/", headers=headers, data=reordered, content_type="application/json")

    assert (again.status_code, again.get_json()) == (201, first.get_json())
    assert len(api.get("/mailing/").get_json()) == 1


def test_the_same_idempotency_key_with_another_body_is_a_conflict(api: Api) -> None:
    api.post("/mailing/", MAILING, headers={"Idempotency-Key": "order-1"})

    answer = api.post("/mailing/", {**MAILING, "text": "Bye"}, headers={"Idempotency-Key": "order-1"})

    assert answer.status_code == 409
    assert len(api.get("/mailing/").get_json()) == 1


def test_other_idempotency_keys_and_none_make_mailings_of_their_own(api: Api) -> None:
    for headers in ({"Idempotency-Key": "a"}, {"Idempotency-Key": "b"}, {}, {}):
        assert api.post("/mailing/", MAILING, headers=headers).status_code == 201

    assert len(api.get("/mailing/").get_json()) == 4


def test_an_idempotency_key_used_at_the_same_time_makes_one_mailing(api: Api, app: Flask) -> None:
    def make(_turn: int) -> tuple[int, Any]:
        caller = Api(app.test_client(), api.key)
        answer = caller.post("/mailing/", MAILING, headers={"Idempotency-Key": "order-1"})
        return answer.status_code, answer.get_json()["id"]

    with ThreadPoolExecutor(8) as threads:
        answers = set(threads.map(make, range(24)))

    assert len(answers) == 1
    assert answers.pop()[0] == 201
    assert len(api.get("/mailing/").get_json()) == 1


def test_a_deleted_mailing_is_not_made_again_by_a_late_repeat(api: Api) -> None:
    api.post("/mailing/", MAILING, headers={"Idempotency-Key": "order-1"})
    api.delete("/mailing/1/")

    answer = api.post("/mailing/", MAILING, headers={"Idempotency-Key": "order-1"})

    assert answer.status_code == 409


@pytest.mark.parametrize("key", ["", "k" * 256, "ключ".encode().decode("latin1"), "a b"])
def test_an_idempotency_key_that_is_none_is_refused(api: Api, key: str) -> None:
    answer = api.post("/mailing/", MAILING, headers={"Idempotency-Key": key})

    assert answer.status_code == 422
    assert list(answer.get_json()["errors"]) == ["headers"]


def test_the_list_is_filtered_by_state(api: Api, api_session: Session) -> None:
    make_mailing(api_session, state=MailingState.DRAFT)
    paused = make_mailing(api_session, state=MailingState.PAUSED)

    answer = api.get("/mailing/?state=paused")

    assert [mailing["id"] for mailing in answer.get_json()] == [paused.id]
    assert api.get("/mailing/?state=asleep").status_code == 422


BEFORE_START = [MailingState.DRAFT, MailingState.SCHEDULED]
AFTER_START = [MailingState.RUNNING, MailingState.PAUSED]
OVER = [MailingState.COMPLETED, MailingState.CANCELLED]
CHANGES: dict[str, Any] = {
    "name": "Other",
    "text": "Other",
    "starts_at": "2098-01-01T00:00:00Z",
    "ends_at": "2099-01-01T00:00:00Z",
    "filter": {"operator_codes": ["916"], "tags": []},
    "send_window": {"from": "10:00", "to": "20:00"},
}


@pytest.mark.parametrize("state", BEFORE_START)
def test_before_the_start_everything_can_be_changed(api: Api, api_session: Session, state: MailingState) -> None:
    make_mailing(api_session, state=state)

    answer = api.patch("/mailing/1/", CHANGES)

    assert answer.status_code == 200
    assert {name: answer.get_json()[name] for name in CHANGES} == CHANGES


@pytest.mark.parametrize(
    ("state", "allowed"),
    [(state, {"name", "ends_at", "send_window"}) for state in AFTER_START] + [(state, {"name"}) for state in OVER],
)
def test_later_only_what_is_safe_can_be_changed(
    api: Api, api_session: Session, state: MailingState, allowed: set[str]
) -> None:
    make_mailing(api_session, state=state)
    before = api.get("/mailing/1/").get_json()

    for field, value in CHANGES.items():
        answer = api.patch("/mailing/1/", {field: value})

        if field in allowed:
            assert (answer.status_code, answer.get_json()[field]) == (200, value)
        else:
            assert answer.status_code == 409
            assert answer.get_json()["message"].startswith(f"{field} cannot be changed")
    kept = {name: value for name, value in before.items() if name not in allowed | {"updated_at"}}
    assert kept.items() <= api.get("/mailing/1/").get_json().items()


@pytest.mark.parametrize("state", AFTER_START)
def test_after_its_end_a_mailing_can_only_be_renamed_also_while_its_last_calls_are_on_the_wire(
    api: Api, api_session: Session, state: MailingState
) -> None:
    now = datetime.now(UTC)
    make_mailing(api_session, state=state, starts_at=now - timedelta(hours=1), ends_at=now - timedelta(seconds=1))

    for field, value in CHANGES.items():
        answer = api.patch("/mailing/1/", {field: value})

        assert answer.status_code == (200 if field == "name" else 409), field


def test_a_draft_whose_end_has_passed_can_be_given_another(api: Api, api_session: Session) -> None:
    now = datetime.now(UTC)
    past = {"starts_at": now - timedelta(hours=2), "ends_at": now - timedelta(hours=1)}
    make_mailing(api_session, state=MailingState.DRAFT, **past)

    assert api.patch("/mailing/1/", {"ends_at": "2099-01-01T00:00:00Z"}).status_code == 200


def test_put_may_repeat_what_cannot_be_changed(api: Api, api_session: Session) -> None:
    make_mailing(api_session, operator_codes=["916"], window_from=time(9), window_to=time(21))
    before = api.get("/mailing/1/").get_json()
    body = {name: before[name] for name in (*CHANGES, "state")}

    answer = api.put("/mailing/1/", {**body, "name": "Other"})

    assert (answer.status_code, answer.get_json()["name"]) == (200, "Other")
    # Leaving the filter out means everyone, and that is another filter.
    del body["filter"]
    assert api.put("/mailing/1/", body).status_code == 409


def test_put_before_the_start_resets_what_is_left_out(api: Api, api_session: Session) -> None:
    made = make_mailing(
        api_session, state=MailingState.DRAFT, operator_codes=["916"], window_from=time(9), window_to=time(21)
    )

    answer = api.put("/mailing/1/", MAILING)

    assert answer.get_json()["filter"] == {"operator_codes": [], "tags": []}
    assert answer.get_json()["send_window"] is None
    assert answer.get_json()["state"] == "draft"
    assert datetime.fromisoformat(answer.get_json()["starts_at"]) == made.starts_at


def test_the_state_is_not_changed_by_an_edit(api: Api, api_session: Session) -> None:
    make_mailing(api_session)

    assert api.patch("/mailing/1/", {"state": "running"}).status_code == 200
    assert api.patch("/mailing/1/", {"state": "paused"}).status_code == 409


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ends_at": "2020-01-01T00:00:00Z"}, "must be after starts_at"),
        ({"starts_at": "2019-01-01T00:00:00Z", "ends_at": "2020-01-01T00:00:00Z"}, "must be in the future"),
        ({"starts_at": "2100-01-01T00:00:00Z"}, "must be after starts_at"),
    ],
)
def test_edited_times_have_to_make_sense(api: Api, api_session: Session, change: dict[str, str], reason: str) -> None:
    make_mailing(api_session, state=MailingState.SCHEDULED)

    answer = api.patch("/mailing/1/", change)

    assert answer.status_code == 422
    assert answer.get_json()["errors"] == {"json": {"ends_at": [reason]}}


def test_a_window_edited_after_the_start_moves_the_waiting_messages(api: Api, api_session: Session) -> None:
    make_mailing(api_session)

    api.patch("/mailing/1/", {"send_window": {"from": "10:00", "to": "20:00"}})

    assert api_session.scalar(sa.select(Mailing.rescheduled_through)) == 0


def test_a_deleted_mailing_is_gone_from_everywhere_at_once(api: Api, api_session: Session) -> None:
    mailing = make_mailing(api_session)

    assert api.delete("/mailing/1/").status_code == 204

    for path in ("/mailing/1/", "/message/1/retrieveMessagesForMailing/"):
        assert api.get(path).status_code == 404
    assert api.patch("/mailing/1/", {"name": "Other"}).status_code == 404
    assert api.post("/mailing/1/pause/").status_code == 404
    assert api.delete("/mailing/1/").status_code == 404
    assert api.get("/mailing/").get_json() == []
    api_session.refresh(mailing)
    assert (mailing.state, mailing.deleted_at) == (MailingState.CANCELLED, mailing.finished_at)


def test_deleting_keeps_what_a_completed_mailing_was(api: Api, api_session: Session) -> None:
    finished_at = datetime.now(UTC) - timedelta(hours=1)
    mailing = make_mailing(api_session, state=MailingState.COMPLETED, finished_at=finished_at)

    api.delete("/mailing/1/")

    api_session.refresh(mailing)
    assert (mailing.state, mailing.finished_at) == (MailingState.COMPLETED, finished_at)


def test_an_edit_that_meets_the_start_waits_for_it_and_is_refused(
    api: Api, app: Flask, api_session: Session, api_engine: sa.Engine
) -> None:
    make_mailing(api_session, state=MailingState.SCHEDULED)
    with ThreadPoolExecutor(1) as threads, api_engine.connect() as dispatcher:
        dispatcher.execute(sa.text("UPDATE mailing SET state = 'running', started_at = now()"))
        edit = threads.submit(lambda: Api(app.test_client(), api.key).patch("/mailing/1/", {"text": "Other"}))
        _wait_for_a_blocked_statement(api_session)
        dispatcher.commit()

        answer = edit.result(timeout=10)

    assert answer.status_code == 409
    assert api.get("/mailing/1/").get_json()["text"] == "Hello"


def _wait_for_a_blocked_statement(session: Session) -> None:
    give_up_at = datetime.now(UTC) + timedelta(seconds=10)
    blocked = sa.text("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
    while not session.scalar(blocked):
        session.rollback()
        assert datetime.now(UTC) < give_up_at

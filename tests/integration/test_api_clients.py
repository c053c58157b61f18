"""The directory of clients over the API."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from db.models import Client, MailingState, Message, MessageStatus
from tests.factories import make_client, make_mailing, make_message
from tests.integration.conftest import Api, listening


def test_a_client_is_added_with_defaults(api: Api) -> None:
    answer = api.post("/client/", {"phone": "8 (916) 123-45-67"})

    assert answer.status_code == 201
    made = answer.get_json()
    created_at = made.pop("created_at")
    assert made == {
        "id": 1,
        "phone": "+79161234567",
        "operator_code": "916",
        "tags": [],
        "timezone": "Europe/Moscow",
        "attributes": {},
        "opted_out_at": None,
        "updated_at": created_at,
    }
    assert created_at.endswith("Z")


def test_every_field_given_comes_back(api: Api) -> None:
    given = {
        "phone": "+79161234567",
        "operator_code": "999",
        "tags": ["vip", "новый"],
        "timezone": "Asia/Kathmandu",
        "attributes": {"name": "Анна", "age": 41, "share": 0.5, "huge": 1e308, "vip": True, "note": None},
        "opted_out_at": "2026-01-01T03:00:00+03:00",
    }

    made = api.post("/client/", given).get_json()

    assert {name: made[name] for name in given} == {**given, "opted_out_at": "2026-01-01T00:00:00Z"}
    assert api.get(f"/client/{made['id']}").get_json() == made


def test_tags_are_trimmed_and_count_once(api: Api) -> None:
    answer = api.post("/client/", {"phone": "+79161234567", "tags": ["vip", " vip", "new"]})

    assert answer.get_json()["tags"] == ["vip", "new"]


def test_a_known_phone_is_a_conflict_in_any_spelling(api: Api) -> None:
    api.post("/client/", {"phone": "+79161234567"})

    answer = api.post("/client/", {"phone": "8 916 123 45 67"})

    assert answer.status_code == 409
    assert "phone" in answer.get_json()["errors"]["json"]


def test_the_same_phone_at_the_same_time_makes_one_client(api: Api, app: object) -> None:
    def add(_turn: int) -> int:
        return Api(app.test_client(), api.key).post("/client/", {"phone": "+79161234567"}).status_code  # type: ignore[attr-defined]

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(add, range(8))) == [201] + [409] * 7


def test_a_number_of_another_country_needs_its_operator_code(api: Api) -> None:
    assert api.post("/client/", {"phone": "+375291234567"}).status_code == 422

    answer = api.post("/client/", {"phone": "+375291234567", "operator_code": "29"})

    assert answer.status_code == 201


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("phone", "+7916123456"),  # one digit short
        ("phone", "+79161234567\n"),
        ("phone", "+7９１６1234567"),  # full-width digits
        ("phone", "+79161234567 ext. 5"),
        ("phone", ""),
        ("phone", None),
        ("phone", 79161234567),
        ("operator_code", "91a"),
        ("operator_code", "916\n"),
        ("operator_code", "٩١٦"),
        ("tags", "vip"),
        ("tags", [""]),
        ("tags", ["  "]),
        ("tags", ["a" * 65]),
        ("tags", ["a\x00"]),
        ("tags", [str(number) for number in range(101)]),
        ("tags", [1]),
        ("timezone", "Europe/Atlantis"),
        ("timezone", "../../etc/passwd"),
        ("timezone", "europe/moscow"),
        ("attributes", {"": "empty name"}),
        ("attributes", {"a\x00": 1}),
        ("attributes", {"a": "\x00"}),
        ("attributes", {"a": ["nested"]}),
        ("attributes", {"a": {}}),
        ("attributes", {str(number): 1 for number in range(101)}),
        ("attributes", {"a": "x" * 17_000}),
        ("opted_out_at", "2026-01-01T00:00:00"),
        ("opted_out_at", "0001-01-01T00:00:00+23:59"),
        ("opted_out_at", "0001-01-01T00:00:00Z"),
        ("opted_out_at", "9999-12-31T23:59:59Z"),
        ("opted_out_at", "2026-W01-1T00:00:00Z"),
        ("opted_out_at", "2026-01-01T00:00:00Z\n"),
        ("opted_out_at", 1767225600),
        ("colour", "red"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(api: Api, field: str, value: object) -> None:
    answer = api.post("/client/", {"phone": "+79161234567", field: value})

    assert answer.status_code == 422
    assert list(answer.get_json()["errors"]["json"]) == [field]
    assert api.get("/client/").get_json() == []


def test_pages_tell_where_they_are(api: Api, api_session: Session) -> None:
    ids = [make_client(api_session).id for _ in range(5)]

    answer = api.get("/client/?page=2&page_size=2")

    assert [client["id"] for client in answer.get_json()] == ids[2:4]
    assert json.loads(answer.headers["X-Pagination"]) == {
        "total": 5,
        "total_pages": 3,
        "first_page": 1,
        "last_page": 3,
        "page": 2,
        "previous_page": 1,
        "next_page": 3,
    }


def test_a_page_behind_the_last_is_empty(api: Api, api_session: Session) -> None:
    make_client(api_session)

    answer = api.get("/client/?page=1000000000&page_size=500")

    assert (answer.status_code, answer.get_json()) == (200, [])
    assert json.loads(answer.headers["X-Pagination"])["total"] == 1


@pytest.mark.parametrize(
    "query",
    ["page=0", "page=-1", "page_size=501", "page_size=0", "page=x", "page=１", "page=99999999999999999999", "page=1.0"],
)
def test_a_page_that_cannot_be_is_refused(api: Api, query: str) -> None:
    answer = api.get(f"/client/?{query}")

    assert answer.status_code == 422
    assert list(answer.get_json()["errors"]) == ["query"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("phone=8(916)123-45-67", [1]),
        ("phone=%2B79161234567", [1]),
        ("operator_code=916", [1]),
        ("operator_code=925", [2, 3]),
        ("tag=vip", [1, 3]),
        ("tag=vip&operator_code=925", [3]),
        ("tag=none", []),
    ],
)
def test_the_list_is_filtered(api: Api, api_session: Session, query: str, expected: list[int]) -> None:
    make_client(api_session, phone="+79161234567", tags=["vip"])
    make_client(api_session, phone="+79251234567")
    make_client(api_session, phone="+79251234568", tags=["new", "vip"])

    answer = api.get(f"/client/?{query}")

    assert [client["id"] for client in answer.get_json()] == expected


def test_patch_changes_what_is_given_and_nothing_else(api: Api) -> None:
    before = api.post("/client/", {"phone": "+79161234567", "tags": ["vip"], "attributes": {"name": "Anna"}}).get_json()

    after = api.patch("/client/1/", {"timezone": "Asia/Omsk"}).get_json()

    assert after["updated_at"] > before["updated_at"]
    assert {**after, "updated_at": None} == {**before, "timezone": "Asia/Omsk", "updated_at": None}


def test_put_gives_what_is_left_out_its_default_but_keeps_an_opt_out(api: Api) -> None:
    opted_out_at = "2026-01-01T00:00:00Z"
    api.post(
        "/client/",
        {
            "phone": "+79161234567",
            "operator_code": "999",
            "tags": ["vip"],
            "attributes": {"a": 1},
            "opted_out_at": opted_out_at,
        },
    )

    after = api.put("/client/1/", {"phone": "+79251234567"}).get_json()

    assert (after["operator_code"], after["tags"], after["attributes"]) == ("925", [], {})
    assert after["opted_out_at"] == opted_out_at


def test_a_new_phone_brings_its_operator_code_unless_the_old_was_set_by_hand(api: Api) -> None:
    api.post("/client/", {"phone": "+79161234567"})
    api.post("/client/", {"phone": "+79161234568", "operator_code": "999"})

    codes = [api.patch(f"/client/{number}/", {"phone": f"+7925123456{number}"}).get_json() for number in (1, 2)]

    assert [client["operator_code"] for client in codes] == ["925", "999"]


@pytest.mark.parametrize("method", ["put", "patch"])
def test_another_clients_phone_is_a_conflict(api: Api, api_session: Session, method: str) -> None:
    make_client(api_session, phone="+79161234567")
    make_client(api_session, phone="+79161234568")

    answer = getattr(api, method)("/client/2/", {"phone": "+79161234567"})

    assert answer.status_code == 409
    assert api.get("/client/2/").get_json()["phone"] == "+79161234568"


def test_an_opt_out_can_be_taken_back(api: Api) -> None:
    api.post("/client/", {"phone": "+79161234567", "opted_out_at": "2026-01-01T00:00:00Z"})

    after = api.patch("/client/1/", {"opted_out_at": None}).get_json()

    assert after["opted_out_at"] is None


@pytest.mark.parametrize(
    "path", ["/client/1/", "/client/0/", "/client/9223372036854775808/", "/client/١/", "/client/x/"]
)
def test_what_is_not_there_is_not_found(api: Api, path: str) -> None:
    for answer in (api.get(path), api.put(path, {"phone": "+79161234567"}), api.patch(path, {}), api.delete(path)):
        assert answer.status_code == 404
        assert answer.get_json()["code"] == 404


@pytest.mark.parametrize(("method", "reason"), [("delete", "client_deleted"), ("opt out", "opted_out")])
def test_who_leaves_takes_the_waiting_messages_along(api: Api, api_session: Session, method: str, reason: str) -> None:
    client, other = make_client(api_session), make_client(api_session)
    running, paused, over = (
        make_mailing(api_session, state=state)
        for state in (MailingState.RUNNING, MailingState.PAUSED, MailingState.COMPLETED)
    )
    waiting = [
        make_message(api_session, mailing, client, status=MessageStatus.PENDING).id for mailing in (running, paused)
    ]
    make_message(api_session, over, client, status=MessageStatus.SENT)
    make_message(api_session, running, other, status=MessageStatus.PENDING)

    if method == "delete":
        assert api.delete(f"/client/{client.id}/").status_code == 204
    else:
        assert api.patch(f"/client/{client.id}/", {"opted_out_at": "2026-11-23T00:00:00Z"}).status_code == 200

    api_session.expire_all()
    cancelled = api_session.scalars(
        sa.select(Message).where(Message.status == MessageStatus.CANCELLED).order_by(Message.id)
    ).all()
    assert [message.id for message in cancelled] == waiting
    assert {message.last_error for message in cancelled} == {reason}
    assert len(api_session.scalars(sa.select(Message)).all()) == 4


def test_an_erased_clients_messages_lose_the_number(api: Api, api_session: Session) -> None:
    client = make_client(api_session)
    message = make_message(api_session, make_mailing(api_session), client)

    api.delete(f"/client/{client.id}/")

    assert api.get(f"/client/{client.id}/").status_code == 404
    assert api.get(f"/message/{message.id}/").get_json()["phone"] is None
    assert api_session.scalar(sa.select(sa.func.count()).select_from(Client)) == 0


def test_the_workers_are_told_who_left(api: Api, api_session: Session, api_engine: sa.Engine) -> None:
    client = make_client(api_session)
    with listening(api_engine, "withdrawn") as wait_for:
        api.delete(f"/client/{client.id}/")

        assert wait_for(1) == [str(client.id)]

"""A mailing looked at before it is made, over the API."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy.orm import Session

from tests.factories import make_client
from tests.integration.conftest import Api


def test_a_preview_tells_who_would_get_what(api: Api, api_session: Session) -> None:
    make_client(api_session, phone="+79161234567", tags=["vip"], attributes={"name": "Anna"})
    make_client(api_session, tags=["vip"])
    make_client(api_session, tags=["vip"], opted_out_at=datetime.now(UTC))
    make_client(api_session)

    body = api.post("/mailing/preview/", {"text": "Hello, {name|there}!", "filter": {"tags": ["vip"]}}).get_json()

    assert body == {
        "clients": 2,
        "is_exact": True,
        "encoding": "GSM-7",
        "forced_by": [],
        "characters": 12,
        "parts": 1,
        "total_parts": 2,
        "sample": {"client_id": 1, "phone": "+79161234567", "text": "Hello, Anna!", "missing": None},
    }
    assert api.get("/mailing/").get_json() == []


@pytest.mark.parametrize(
    ("text", "encoding", "parts"),
    [
        ("a" * 160, "GSM-7", 1),
        ("a" * 161, "GSM-7", 2),
        ("€" * 80, "GSM-7", 1),  # two septets each
        ("€" * 81, "GSM-7", 2),
        ("Я" * 70, "UCS-2", 1),
        ("Я" * 71, "UCS-2", 2),
    ],
)
def test_a_preview_measures_the_text_even_without_an_audience(api: Api, text: str, encoding: str, parts: int) -> None:
    body = api.post("/mailing/preview/", {"text": text}).get_json()

    assert (body["encoding"], body["parts"], body["clients"], body["sample"]) == (encoding, parts, 0, None)


def test_a_preview_tells_what_a_client_lacks(api: Api, api_session: Session) -> None:
    make_client(api_session)

    sample = api.post("/mailing/preview/", {"text": "Hello, {name}!"}).get_json()["sample"]

    assert (sample["text"], sample["missing"]) == (None, "name")


def test_a_whole_mailing_can_be_previewed(api: Api) -> None:
    whole = {
        "name": "Sale",
        "text": "Hello",
        "starts_at": "2098-01-01T00:00:00Z",
        "ends_at": "2099-01-01T00:00:00Z",
        "filter": {},
        "send_window": {"from": "09:00", "to": "21:00"},
        "state": "draft",
    }

    assert api.post("/mailing/preview/", whole).status_code == 200
    assert api.post("/mailing/preview/", {"filter": {}}).status_code == 422


def test_a_text_that_nobody_could_get_is_refused(api: Api) -> None:
    answer = api.post("/mailing/preview/", {"text": "{" + "n" * 65 + "}"})

    assert answer.status_code == 422
    assert "64 characters" in answer.get_json()["errors"]["json"]["text"][0]

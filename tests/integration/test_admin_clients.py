"""The form and the list of clients: what is not touched stays as it is, and what is shown is what there is."""

from __future__ import annotations

import html
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient
from sqlalchemy.orm import Session

from admin.views.base import PAGE_SIZE
from db.models import Client
from db.queries import clients
from tests.factories import make_client
from tests.forms import Fields, form_with
from tests.integration.test_admin_access import send
from tools.processes import wait_until


def fields_of(browser: FlaskClient, address: str) -> Fields:
    """What a browser would send if the form at this address were left as it is."""
    return form_with("operator_code", browser.get(address).get_data(as_text=True))


def test_who_saves_second_is_told_and_overwrites_nothing(browser: FlaskClient, session: Session) -> None:
    client = make_client(session, tags=["new"])
    address = f"/clients/{client.id}/edit"
    first, second = (fields_of(browser, address) for _ in range(2))

    assert send(browser, address, **{**first, "timezone": "Asia/Tokyo"}).status_code == 303
    refused = send(browser, address, **{**second, "operator_code": "926"})
    shown = refused.get_data(as_text=True)
    again = send(browser, address, **form_with("operator_code", shown))

    assert [refused.status_code, again.status_code] == [409, 409]
    assert "Nothing was saved" in shown
    assert f'<a href="{address}" target="_blank">' in shown
    assert form_with("operator_code", shown)["operator_code"] == ["926"]
    session.refresh(client)
    assert (client.operator_code, client.timezone) == ("916", "Asia/Tokyo")


def test_what_is_not_in_the_form_may_change_while_it_is_open(browser: FlaskClient, session: Session) -> None:
    client = make_client(session)
    address = f"/clients/{client.id}/edit"
    form = {**fields_of(browser, address), "operator_code": "926"}
    clients.edit(session, client.id, {"opted_out_at": datetime.now(UTC)}, datetime.now(UTC))
    session.commit()

    # The second click of a pair finds everything as it wants it.
    assert [send(browser, address, **form).status_code for _ in range(2)] == [303, 303]


def test_a_save_waits_for_one_that_is_under_way(browser: FlaskClient, session: Session, engine: sa.Engine) -> None:
    client = make_client(session)
    address = f"/clients/{client.id}/edit"
    form = {**fields_of(browser, address), "operator_code": "926"}
    clients.edit(session, client.id, {"timezone": "Asia/Tokyo"}, datetime.now(UTC))

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(send, browser, address, **form)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as watching:
            blocked = sa.text("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
            assert wait_until(lambda: watching.execute(blocked).scalar_one(), 30)
        session.commit()

    assert answer.result().status_code == 409
    session.refresh(client)
    assert (client.operator_code, client.timezone) == ("916", "Asia/Tokyo")


# As the API takes them: not all of it can be typed into the form.
TAGS = ["a,b", "c;d|e", "new\nline", "vip"]
ATTRIBUTES = {
    "name": None,
    "age": 30,
    "vip": True,
    "height": 1.5,
    "code": "007",
    "empty": "",
    "spaces": "  x ",
    "addr": "x\ny\r\nz",
    "a=b": "c",
    "a = b": "c",
    "a": "b = c",
    "two\nlines": "⏎",
    " padded ": "null",
}


@pytest.mark.parametrize("attributes", [{"name": None, "age": 30, "vip": True}, ATTRIBUTES], ids=["plain", "odd"])
def test_what_is_not_touched_in_the_form_of_a_client_stays_what_it_was(
    browser: FlaskClient, session: Session, attributes: dict[str, Any]
) -> None:
    client = make_client(session, tags=TAGS, attributes=attributes)
    address = f"/clients/{client.id}/edit"

    assert send(browser, address, **{**fields_of(browser, address), "operator_code": "926"}).status_code == 303

    session.refresh(client)
    assert (client.operator_code, client.tags, client.attributes) == ("926", TAGS, attributes)


def test_one_changed_line_changes_one_attribute(browser: FlaskClient, session: Session) -> None:
    client = make_client(session, attributes=ATTRIBUTES)
    address = f"/clients/{client.id}/edit"
    form = fields_of(browser, address)
    (lines,) = form["attributes"]
    for was, will_be in (("age = 30", "age = 31"), ("addr = x⏎y⏎z", "addr = x⏎you"), ("vip = true\r\n", "")):
        assert was in lines
        lines = lines.replace(was, will_be)

    assert send(browser, address, **{**form, "attributes": f"{lines}\r\nnick = Bob"}).status_code == 303

    session.refresh(client)
    expected = {**ATTRIBUTES, "age": "31", "addr": "x\nyou", "nick": "Bob"}
    del expected["vip"]
    assert client.attributes == expected


def test_tags_are_taken_away_and_added_one_by_one(browser: FlaskClient, session: Session) -> None:
    client = make_client(session, tags=TAGS)
    address = f"/clients/{client.id}/edit"
    form = fields_of(browser, address)
    form["tags"].remove("vip")

    answer = send(browser, address, **{**form, "other_tags": "one, two, a,b"})

    assert answer.status_code == 303
    session.refresh(client)
    assert client.tags == ["a,b", "c;d|e", "new\nline", "one", "two", "a", "b"]


def test_a_form_that_is_refused_keeps_what_was_typed(browser: FlaskClient, session: Session) -> None:
    client = make_client(session, tags=["vip", "new"])
    address = f"/clients/{client.id}/edit"
    typed = {"tags": ["vip"], "other_tags": "old", "attributes": "name = Anna\r\nnonsense"}

    refused = send(browser, address, **{**fields_of(browser, address), **typed})

    assert refused.status_code == 422
    shown = form_with("operator_code", refused.get_data(as_text=True))
    assert (shown["tags"], shown["other_tags"], shown["attributes"]) == (["vip"], ["old"], [typed["attributes"]])


def test_an_export_of_what_is_no_number_is_refused_as_the_page_refuses_it(
    browser: FlaskClient, session: Session
) -> None:
    make_client(session, phone="+79161234567")

    page = browser.get("/clients/?phone=Anna")
    answer = browser.get("/clients/export.csv?phone=Anna")

    for each in (page, answer):
        assert "This is no beginning of a phone number" in each.get_data(as_text=True)
        assert "+79161234567" not in each.get_data(as_text=True)
    assert answer.status_code == 422
    assert "export.csv" not in page.get_data(as_text=True)
    assert "export.csv?phone=916" in browser.get("/clients/?phone=916").get_data(as_text=True)


def test_every_row_of_the_list_tells_what_is_known(browser: FlaskClient, session: Session) -> None:
    for number in range(6):
        make_client(session, attributes={name: f"known {name}{number}" for name in "abcd"})

    page = browser.get("/clients/").get_data(as_text=True)

    known = sorted(re.findall(r"known ([a-d][0-5])", page))
    assert known == [f"{name}{number}" for name in "abc" for number in range(6)]


def numbers_found(browser: FlaskClient, address: str) -> list[list[str]]:
    """The numbers on this page of the list and on all that its link to further ones leads to."""
    page = browser.get(address).get_data(as_text=True)
    found = re.findall(r'<a href="/clients/[0-9]+/">(\S+)</a>', page)
    further = re.search(r'href="(\?[^"]+)">Further numbers', page)
    return [found, *(numbers_found(browser, f"/clients/{html.unescape(further[1])}") if further else [])]


@pytest.mark.parametrize(("many", "sizes"), [(PAGE_SIZE, [PAGE_SIZE]), (PAGE_SIZE + 1, [PAGE_SIZE, 1])])
def test_further_numbers_are_offered_where_there_are_some(
    browser: FlaskClient, session: Session, many: int, sizes: list[int]
) -> None:
    numbers = [f"+7926{number:07}" for number in range(many)]
    session.add_all(Client(phone=phone, operator_code="926", timezone="Europe/Moscow") for phone in numbers)
    session.commit()

    pages = numbers_found(browser, "/clients/?phone=926")

    assert [len(page) for page in pages] == sizes
    assert [phone for page in pages for phone in page] == numbers

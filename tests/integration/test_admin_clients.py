"""The form and the list of clients: what is not touched stays as it is, and what is shown is what there is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import sqlalchemy as sa
from flask.testing import FlaskClient
from sqlalchemy.orm import Session

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

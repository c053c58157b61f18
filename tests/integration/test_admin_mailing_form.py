"""The form of a mailing: sent once, whatever people do with the button, and saved as the page shows it."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient
from sqlalchemy.orm import Session

from db.models import Mailing, MailingState
from db.queries import mailings
from tests.factories import make_client, make_mailing
from tests.forms import Fields, form_with
from tests.integration.test_admin_access import send
from tools.processes import wait_until

FORM = {"name": "Sale", "text": "Hello", "when": "now", "ends_at": "2099-12-31T23:59"}


def look(browser: FlaskClient, **changes: str) -> str:
    """The last look at a mailing."""
    page = send(browser, "/mailings/new/", **{**FORM, **changes}, step="review").get_data(as_text=True)
    assert "Is everything right?" in page
    return page


def last_look(browser: FlaskClient) -> dict[str, str]:
    """What the button of the last look sends."""
    found = re.search(r'name="once" value="([0-9a-f]+)"', look(browser))
    return {**FORM, "step": "confirm", "once": found[1] if found else ""}


def fields_of(browser: FlaskClient, address: str) -> Fields:
    """What a browser would send if the form at this address were left as it is."""
    return form_with("name", browser.get(address).get_data(as_text=True))


def count(session: Session) -> int:
    session.rollback()
    return session.scalars(sa.select(sa.func.count()).select_from(Mailing)).one()


def test_a_second_click_leads_to_the_mailing_of_the_first(browser: FlaskClient, session: Session) -> None:
    form = last_look(browser)

    answers = [send(browser, "/mailings/new/", **form) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [303, 303]
    assert answers[0].headers["Location"] == answers[1].headers["Location"]
    assert count(session) == 1


def test_the_same_mailing_can_be_wanted_again(browser: FlaskClient, session: Session) -> None:
    for _ in range(2):
        assert send(browser, "/mailings/new/", **last_look(browser)).status_code == 303

    assert count(session) == 2


def test_a_click_on_an_old_page_does_not_bring_back_what_was_deleted(browser: FlaskClient, session: Session) -> None:
    form = last_look(browser)
    made = send(browser, "/mailings/new/", **form).headers["Location"]
    assert send(browser, f"{made}delete").status_code == 303

    again = send(browser, "/mailings/new/", **form)

    assert again.status_code == 422
    assert "This mailing was made already, and deleted since" in again.get_data(as_text=True)
    assert count(session) == 1


def test_a_mailing_that_starts_later_is_scheduled_and_not_on_its_way(browser: FlaskClient, session: Session) -> None:
    make_client(session)
    later = {"when": "later", "starts_at": "2099-12-01T10:00"}

    assert "Send to 1 recipient<" in look(browser)
    assert "Schedule for 1 recipient<" in look(browser, **later)
    for when, said in (({}, "The mailing is on its way."), (later, "The mailing is scheduled.")):
        made = send(browser, "/mailings/new/", **{**FORM, **when}, step="confirm")
        assert said in browser.get(made.headers["Location"]).get_data(as_text=True)


@pytest.mark.parametrize("step", ["review", "confirm", "test"])
def test_a_text_that_nobody_could_get_is_refused(browser: FlaskClient, session: Session, step: str) -> None:
    form = {**FORM, "text": "{" + "n" * 65 + "}", "phone": "+79161234567", "step": step}

    answer = send(browser, "/mailings/new/", **form)

    assert answer.status_code == 422
    assert "The name in a placeholder may have at most 64 characters" in answer.get_data(as_text=True)
    assert count(session) == 0


@pytest.mark.parametrize("chosen", [["rare"], [f"rare {number:03}" for number in range(60)]], ids=["one", "sixty"])
def test_an_edited_or_copied_mailing_keeps_the_tags_that_are_rare(
    browser: FlaskClient, session: Session, chosen: list[str]
) -> None:
    # More than the form offers, and all of them more common than the one that both have.
    for marks in (*([f"common {number:03}" for number in range(45)],) * 2, chosen[:1]):
        make_client(session, tags=marks)
    mailing = make_mailing(session, state=MailingState.DRAFT, tags=chosen)
    edited = fields_of(browser, f"/mailings/new/{mailing.id}/")
    copied = fields_of(browser, f"/mailings/new/?copy={mailing.id}")

    answer = send(browser, f"/mailings/new/{mailing.id}/", **{**edited, "name": "Another name", "step": "save"})
    send(browser, "/mailings/new/", **{**copied, "name": "A copy", "when": "draft", "step": "review"})

    assert answer.status_code == 303
    session.rollback()
    found = session.scalars(sa.select(Mailing))
    assert {each.name: sorted(each.tags) for each in found} == {"Another name": chosen, "A copy": chosen}


def test_more_tags_than_a_filter_may_have_are_refused(browser: FlaskClient, session: Session) -> None:
    form = {**FORM, "tags": [f"tag {number}" for number in range(101)], "step": "review"}

    answer = send(browser, "/mailings/new/", **form)

    assert answer.status_code == 422
    assert "At most 100, please." in answer.get_data(as_text=True)
    assert count(session) == 0


def test_a_test_from_the_page_of_a_mailing_leads_back_to_that_page(browser: FlaskClient, session: Session) -> None:
    mailing = make_mailing(session, state=MailingState.DRAFT)
    address = f"/mailings/new/{mailing.id}/"
    form = {**fields_of(browser, address), "step": "test"}

    for phone, status in (("+79161234567", 200), ("none", 422)):
        page = send(browser, address, **{**form, "phone": phone})
        assert page.status_code == status
        assert "<h1>Edit mailing</h1>" in page.get_data(as_text=True)

    page = send(browser, address, **{**form, "text": ""})
    assert "<h1>Edit mailing</h1>" in page.get_data(as_text=True)


def begin(session: Session, mailing: Mailing) -> None:
    """As the dispatcher does it."""
    mailing.state, mailing.started_at = MailingState.RUNNING, datetime.now(UTC)
    session.commit()


def test_a_text_typed_before_the_start_and_saved_after_it_is_refused_and_kept(
    browser: FlaskClient, session: Session
) -> None:
    mailing = make_mailing(session, state=MailingState.SCHEDULED, text="Helo", tags=["vip"])
    address = f"/mailings/new/{mailing.id}/"
    form = {**fields_of(browser, address), "name": "Another name", "text": "Hello\r\nthere", "step": "save"}
    begin(session, mailing)

    page = send(browser, address, **form)
    again = send(browser, address, **{**form_with("name", page.get_data(as_text=True)), "step": "save"})

    for answer in (page, again):
        assert answer.status_code == 409
        shown = answer.get_data(as_text=True)
        assert "This cannot be changed after the start: text." in shown
        assert f'<a href="{address}" target="_blank">' in shown
        assert form_with("name", shown)["text"] == ["Hello\r\nthere"]
    session.refresh(mailing)
    assert (mailing.name, mailing.text) == ("Sale", "Helo")


def test_tags_taken_away_before_the_start_and_saved_after_it_are_refused(
    browser: FlaskClient, session: Session
) -> None:
    mailing = make_mailing(session, state=MailingState.SCHEDULED, tags=["vip"])
    address = f"/mailings/new/{mailing.id}/"
    form = {**fields_of(browser, address), "tags": [], "step": "save"}
    begin(session, mailing)

    page = send(browser, address, **form)

    assert page.status_code == 409
    assert "This cannot be changed after the start: recipients." in page.get_data(as_text=True)


def test_a_test_from_a_page_opened_before_the_start_keeps_what_was_typed(
    browser: FlaskClient, session: Session
) -> None:
    mailing = make_mailing(session, state=MailingState.SCHEDULED)
    address = f"/mailings/new/{mailing.id}/"
    form = {**fields_of(browser, address), "text": "Hello there", "phone": "+79161234567", "step": "test"}
    begin(session, mailing)

    page = send(browser, address, **form)
    saved = send(browser, address, **{**form_with("name", page.get_data(as_text=True)), "step": "save"})

    assert saved.status_code == 409


@pytest.mark.parametrize("text", ["Hello", "\nHello\r\nthere\r"])
def test_a_page_opened_before_the_start_saves_what_may_change_after_it(
    browser: FlaskClient, session: Session, text: str
) -> None:
    mailing = make_mailing(session, state=MailingState.SCHEDULED, text=text, tags=["vip"], operator_codes=["916"])
    address = f"/mailings/new/{mailing.id}/"
    opened_before = {**fields_of(browser, address), "name": "Opened before", "step": "save"}
    begin(session, mailing)

    assert send(browser, address, **opened_before).status_code == 303
    opened_after = {**fields_of(browser, address), "name": "Opened after", "step": "save"}
    assert "text" not in opened_after
    assert send(browser, address, **opened_after).status_code == 303

    session.refresh(mailing)
    assert (mailing.name, mailing.text, mailing.tags, mailing.operator_codes) == (
        *("Opened after", text),
        *(["vip"], ["916"]),
    )


def test_who_saves_second_is_told_and_overwrites_nothing(browser: FlaskClient, session: Session) -> None:
    mailing = make_mailing(session, state=MailingState.DRAFT)
    address = f"/mailings/new/{mailing.id}/"
    first, second = (fields_of(browser, address) for _ in range(2))

    assert send(browser, address, **{**first, "text": "The first", "step": "save"}).status_code == 303
    refused = send(browser, address, **{**second, "name": "The second", "step": "save"})
    shown = refused.get_data(as_text=True)
    again = send(browser, address, **{**form_with("name", shown), "step": "save"})

    assert [refused.status_code, again.status_code] == [409, 409]
    assert "Nothing was saved" in shown
    assert f'<a href="{address}" target="_blank">' in shown
    assert form_with("name", shown)["name"] == ["The second"]
    session.refresh(mailing)
    assert (mailing.name, mailing.text) == ("Sale", "The first")


def test_what_is_not_in_the_form_may_change_while_it_is_open(browser: FlaskClient, session: Session) -> None:
    mailing = make_mailing(session, state=MailingState.SCHEDULED)
    address = f"/mailings/new/{mailing.id}/"
    form = {**fields_of(browser, address), "name": "Another name", "step": "save"}
    mailings.control(session, mailing.id, "pause", datetime.now(UTC) + timedelta(seconds=1))
    session.commit()

    # The second click of a pair finds everything as it wants it.
    assert [send(browser, address, **form).status_code for _ in range(2)] == [303, 303]


def test_a_save_waits_for_one_that_is_under_way(browser: FlaskClient, session: Session, engine: sa.Engine) -> None:
    mailing = make_mailing(session, state=MailingState.DRAFT)
    address = f"/mailings/new/{mailing.id}/"
    form = {**fields_of(browser, address), "name": "The second", "step": "save"}
    mailings.edit(session, mailing.id, {"text": "The first"}, datetime.now(UTC))

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(send, browser, address, **form)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as watching:
            blocked = sa.text("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
            assert wait_until(lambda: watching.execute(blocked).scalar_one(), 30)
        session.commit()

    assert answer.result().status_code == 409
    session.refresh(mailing)
    assert (mailing.name, mailing.text) == ("Sale", "The first")


def summary_of(page: str) -> list[tuple[str, str]]:
    """Where each line of the summary of mistakes leads to, and what it says."""
    lines = re.findall(r'<li><a href="#([a-z_]+)">(.*?)</a></li>', page)
    assert all(f'id="{place}"' in page for place, _ in lines)
    return lines


def test_every_mistake_is_named_with_its_field(browser: FlaskClient) -> None:
    form = {**FORM, "when": "later", "starts_at": "", "ends_at": "", "text": " ", "step": "review"}

    page = send(browser, "/mailings/new/", **form).get_data(as_text=True)

    assert summary_of(page) == [
        ("text", "Text: Please fill this in."),
        ("starts_at", "Starts at: Please give a date and a time."),
        ("ends_at", "Ends at: Please give a date and a time."),
    ]


@pytest.mark.parametrize(("in_use", "label"), [(["vip"], "Other tags"), ([], "With any of these tags")])
def test_a_mistake_in_a_tag_stands_where_it_was_typed(
    browser: FlaskClient, session: Session, in_use: list[str], label: str
) -> None:
    make_client(session, tags=in_use)

    page = send(browser, "/mailings/new/", **FORM, other_tags="x" * 65, step="review").get_data(as_text=True)

    assert summary_of(page) == [("other_tags", f"{label}: “{'x' * 20}…” is too long for a tag.")]
    assert re.search(r'<input id="other_tags" [^>]*aria-describedby="[^"]*other_tags-error" aria-invalid="true"', page)


def test_every_look_says_how_many_of_the_recipients_would_get_nothing(browser: FlaskClient, session: Session) -> None:
    for _ in range(2):
        make_client(session)
    text = {"text": "Dear {name}"}
    draft = make_mailing(session, state=MailingState.DRAFT, **text)
    preview = send(browser, "/mailings/new/preview", **{**FORM, **text}).get_json()["fragments"]["preview"]
    start = browser.get(f"/mailings/{draft.id}/confirm/start").get_data(as_text=True)

    for page in (preview, look(browser, **text), start):
        assert "2 of the first 2 recipients would get nothing" in page
    for page in (preview, look(browser, **text)):
        assert "0 SMS" in page


@pytest.mark.parametrize("wrong", [{"operator_codes": "9x6"}, {"other_tags": "t" * 200}], ids=["codes", "tags"])
def test_a_filter_that_cannot_be_read_leaves_nobody_to_preview(
    browser: FlaskClient, session: Session, wrong: dict[str, str]
) -> None:
    make_client(session, attributes={"name": "Anna"})
    make_client(session)

    form = {**FORM, "text": "Dear {name}", **wrong}
    shown = send(browser, "/mailings/new/preview", **form).get_json()["fragments"]["preview"]

    assert "The recipients cannot be read yet." in shown
    assert "Dear {name}" in shown
    for claim in ("will read", "Anna", "Altogether", "More recipients", "would get nothing", "matches now"):
        assert claim not in shown

"""People run a mailing from a browser, through the real processes: from a file of clients to the last message."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from db.models import Role
from tests.browser import PHONE, AdminSite, Visitor
from tests.system import Servers, System

PEOPLE = "phone,tags,name\n" + "".join(f"+7925{n:07d},party,Guest {n}\n" for n in range(200))
BROKEN_ROW = "12345,party,Nobody\n"
# A few messages a second: half a minute or so in which people can press a button.
SLOW = {"kind": "latency", "milliseconds": 1000}
QUICK = {"kind": "latency", "milliseconds": 5}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, servers: Servers) -> Iterator[System]:
    """Everything that sends; slowly enough to be stopped."""
    with System(tmp_path_factory.mktemp("system"), servers, faults=(SLOW,), gateway_concurrency=5) as running:
        yield running


@pytest.fixture(autouse=True)
def slow_gateway(system: System) -> None:
    """Whatever the test before made of it."""
    system.simulator.calm()


@pytest.fixture(scope="module")
def site(system: System, browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdminSite]:
    """The admin pages of the same system, which greet who comes before there is anything."""
    admin = AdminSite(system.servers.postgresql.url(system.database), tmp_path_factory.mktemp("admin"))
    admin.start()
    newcomer = Visitor(browser, admin).log_in(Role.OPERATOR)
    expect(newcomer.page.locator("h1")).to_have_text("Welcome to Mailings")
    newcomer.follow("text=Import clients >> nth=0")
    expect(newcomer.page.locator("#upload")).to_be_visible()
    newcomer.close()
    yield admin
    admin.process.stop()


@pytest.mark.timeout(300)
def test_mailing_from_a_file_of_clients_to_the_last_message(
    visit: Callable[..., Visitor], site: AdminSite, system: System, tmp_path: Path
) -> None:
    visitor = visit(site).log_in(Role.OPERATOR)
    page = visitor.page
    file = tmp_path / "clients.csv"
    file.write_text(PEOPLE + BROKEN_ROW)

    # The file.
    page.goto("/imports/")
    page.set_input_files("#file", file)
    page.click("#upload button")
    page.wait_for_url("**/imports/1/")
    visitor.wait_for(lambda: "Completed" in page.inner_text("main"))
    visitor.wait_for(lambda: page.inner_text('[data-count="rejected"]') == "1")
    assert "“12345”" in page.inner_text("main")
    rejected = visitor.context.request.get("/imports/1/rejected.csv").text()
    assert [row[0] for row in csv.reader(io.StringIO(rejected.lstrip("\ufeff")))] == ["line", "202"]

    # The text, with a preview that follows.
    page.click("text=New mailing")
    page.fill("#name", "Party")
    page.fill("#text", "Dear {name}, come at 8!")
    page.check('input[name="tags"][value="party"]', force=True)
    visitor.wait_for(lambda: page.inner_text("#audience-count") == "200")
    visitor.wait_for(lambda: "Dear Guest 0, come at 8!" in page.inner_text(".bubble"))
    assert "GSM-7" in page.inner_text(".preview")
    page.fill("#text", "Дорогой {name}, приходите в 8!")
    visitor.wait_for(lambda: "UCS-2" in page.inner_text(".preview"))
    page.uncheck('input[name="window"]')

    # A test to one number goes by itself, and is no part of the mailing.
    page.fill("#phone", "8 926 000-00-00")
    visitor.follow("text=Send the test")
    assert "The test is on its way" in page.inner_text("main")
    visitor.wait_for(lambda: any(seen["phone"] == 79260000000 for seen in system.simulator.ids()))
    test = next(seen for seen in system.simulator.ids() if seen["phone"] == 79260000000)
    assert test["text"] == "Дорогой Guest 0, приходите в 8!"
    assert page.input_value("#name") == "Party"

    # The last look says how many, and so does its button.
    page.click("text=Check and send")
    assert page.inner_text(".audience strong") == "200"
    visitor.follow("text=Send to 200 recipients")
    mailing_id = int(page.url.rstrip("/").rsplit("/", 1)[1])

    # It is held in the middle, and nothing more goes.
    visitor.wait_for(lambda: int(page.inner_text('[data-count="sent"]')) > 5)
    page.click("#do-pause")
    visitor.wait_for(lambda: page.locator("#do-resume").count() == 1)
    visitor.wait_for(lambda: page.locator('[data-count="sending"]').count() == 0)
    held_at = page.inner_text('[data-count="sent"]')
    page.wait_for_timeout(3000)
    assert page.inner_text('[data-count="sent"]') == held_at
    assert 5 < int(held_at) < 200

    # It goes on to its end, without a reload.
    system.simulator.control(QUICK)
    page.click("#do-resume")
    visitor.wait_for(lambda: page.inner_text('[data-count="sent"]') == "200")
    visitor.wait_for(lambda: "Completed" in page.inner_text('[data-live="head"]'))
    history = page.inner_text('[data-live="history"]')
    for action in ("created the mailing", "paused the mailing", "resumed the mailing"):
        assert f"operator@example.com {action}" in history
    assert system.rows("SELECT count(*) FROM message WHERE mailing_id = :id AND status = 'sent'", id=mailing_id) == [
        (200,)
    ]

    # Its messages, one of them, and all of them as a file.
    page.click('[data-live="progress"] a:has-text("Sent")')
    expect(page.locator("tbody tr")).to_have_count(50, timeout=30_000)
    page.click("tbody th a >> nth=0")
    assert "Accepted by the gateway" in page.inner_text("main")
    results = visitor.context.request.get(f"/mailings/{mailing_id}/results.csv").text()
    rows = list(csv.DictReader(io.StringIO(results.lstrip("\ufeff"))))
    assert len(rows) == 200
    assert {row["status"] for row in rows} == {"sent"}


@pytest.mark.timeout(180)
def test_mailing_is_cancelled_on_a_phone_and_in_russian(
    visit: Callable[..., Visitor], site: AdminSite, system: System
) -> None:
    system.add_clients(300, "931")
    visitor = visit(site, size=PHONE, language="ru-RU").log_in(Role.OPERATOR)
    page = visitor.page
    page.goto("/mailings/new/")
    page.fill("#name", "Ошибка")
    page.fill("#text", "Не то")
    page.fill("#operator_codes", "931")
    page.uncheck('input[name="window"]')
    page.click("text=Проверить и отправить")
    page.click("text=Отправить 300 получателям")
    page.click("#do-cancel")
    assert "Отменить эту рассылку?" in page.inner_text("h1")
    page.click("button.danger-fill")
    visitor.wait_for(lambda: "Отменена" in page.inner_text('[data-live="head"]'))
    visitor.wait_for(lambda: page.locator('[data-count="cancelled"]').count() == 1)
    visitor.wait_for(lambda: page.inner_text('[data-count="pending"]') == "0")


@pytest.mark.timeout(300)
def test_draft_waits_until_it_is_started_from_its_page(
    visit: Callable[..., Visitor], site: AdminSite, system: System
) -> None:
    system.add_clients(3, "932")
    visitor = visit(site).log_in(Role.OPERATOR)
    page = visitor.page
    page.goto("/mailings/new/")
    page.fill("#name", "Later")
    page.fill("#text", "Hello")
    page.fill("#operator_codes", "932")
    page.check('input[value="draft"]')
    page.uncheck('input[name="window"]')
    page.click("text=Save the draft")
    assert "Draft" in page.inner_text('[data-live="head"]')
    page.click("#do-start")
    assert page.inner_text(".audience strong") == "3"
    page.click("text=Send to 3 recipients")
    visitor.wait_for(lambda: "Completed" in page.inner_text('[data-live="head"]'))
    assert page.inner_text('[data-count="sent"]') == "3"

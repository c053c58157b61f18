"""Every page in a real browser: accessible, not too wide for a phone, without script errors, in both languages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from admin.views.mailing import CONFIRMED
from db import rules
from db.models import ApiKey, Base, Client, Mailing, MailingState, MessageStatus, Role
from db.queries import audit
from tests.browser import DESKTOP, PASSWORD, PEOPLE, PHONE, AdminSite, Visitor
from tests.factories import make_client, make_mailing, make_message
from tools.sample import fill

PAGES = (
    "/",
    "/mailings/",
    "/mailings/?state=draft&from=2026-01-01",
    "/mailings/?kind=test",
    "/mailings/new/",
    "/mailings/new/?copy=1",
    "/mailings/new/1/",
    "/mailings/1/",
    "/mailings/2/",
    "/mailings/3/",
    "/mailings/1/confirm/delete",
    "/mailings/2/confirm/cancel",
    "/mailings/4/confirm/start",
    "/messages/",
    "/messages/?mailing=1&status=failed",
    "/messages/?phone=12",
    "/messages/1/",
    "/clients/",
    "/clients/?phone=916&tag=vip",
    "/clients/new",
    "/clients/1/",
    "/clients/1/edit",
    "/clients/1/delete",
    "/imports/",
    "/imports/1/",
    "/api-keys/",
    "/api-keys/1/revoke",
    "/users/",
    "/users/1/",
    "/users/1/password",
    "/audit/",
    "/system/",
    "/account/",
    "/nowhere",
)


@pytest.fixture(scope="module")
def site(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdminSite]:
    """The pages on a database with something on each of them."""
    admin = AdminSite(module_database_url, tmp_path_factory.mktemp("admin"))
    with admin.session() as session:
        fill(session, datetime.now(UTC))
    admin.start()
    yield admin
    admin.process.stop()


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("language", "size", "dark"),
    [("en-US", DESKTOP, False), ("ru-RU", PHONE, True)],
    ids=["english-desktop-light", "russian-phone-dark"],
)
def test_pages_have_no_faults(
    visit: Callable[..., Visitor],
    site: AdminSite,
    language: str,
    size: tuple[int, int],
    dark: bool,
) -> None:
    visitor = visit(site, language=language, size=size, dark=dark)
    visitor.page.goto("/login")
    found = {"/login": visitor.faults()}
    visitor.log_in()
    for path in PAGES:
        visitor.page.goto(path)
        found[path] = visitor.faults()
        if visitor.is_too_wide():
            found[path].append("too wide")
        if visitor.page.locator("main h1").count() != 1:
            found[path].append("needs exactly one h1")
    assert {path: faults for path, faults in found.items() if faults} == {}


@pytest.mark.timeout(240)
def test_russian_pages_hold_no_english(visit: Callable[..., Visitor], site: AdminSite) -> None:
    # Names: abbreviations, the product, a language, a tag, a column of a file, a variable and its file.
    names = latin_words("API CSV EN GSM HTTP RU SMS UCS Mailings English test timezone DEFAULT_TIMEZONE .env")
    visitor = visit(site, language="ru-RU").log_in()
    found: dict[str, set[str]] = {}
    for path in PAGES:
        visitor.page.goto(path)
        found[path] = latin_words(visitor.page.inner_text("body"))
    known = names | words_of_the_data(site)
    assert {path: english for path, words in found.items() if (english := words - known)} == {}


def latin_words(text: str) -> set[str]:
    """All of them but names that are one letter again and again, of which pages show a part."""
    return {word for word in re.findall("[A-Za-z]{2,}", text) if len(set(word)) > 1}


def words_of_the_data(site: AdminSite) -> set[str]:
    """Names, tags, reasons and all else that the database holds, the names of its tables, and the time zones."""
    tables = [table.name for table in Base.metadata.sorted_tables]
    rows = "SELECT DISTINCT regexp_replace(row::text, '[^A-Za-z]+', ' ', 'g') FROM {} AS row"
    with site.session() as session:
        data = [text for table in tables for text in session.scalars(sa.text(rows.format(table)))]
    return latin_words(" ".join([*data, *tables, *rules.timezones()]))


def test_language_switch_wins_over_the_browser_and_is_remembered(
    visit: Callable[..., Visitor], site: AdminSite
) -> None:
    visitor = visit(site)
    visitor.page.goto("/login")
    visitor.follow('button[value="ru"]')
    assert visitor.page.inner_text("h1") == "Вход в Mailings"
    visitor.log_in(Role.VIEWER)
    assert visitor.page.inner_text("h1") == "Сводка"
    visitor.follow('.side button[value="en"]')
    assert visitor.page.inner_text("h1") == "Dashboard"
    other = visit(site, language="ru-RU").log_in(Role.VIEWER)
    assert other.page.inner_text("h1") == "Dashboard"


def test_theme_switch_needs_no_reload_and_is_remembered(visit: Callable[..., Visitor], site: AdminSite) -> None:
    visitor = visit(site).log_in(Role.OPERATOR)
    light = visitor.page.evaluate("getComputedStyle(document.body).backgroundColor")
    visitor.page.click('.side [data-set-theme="dark"]')
    dark = visitor.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark != light
    visitor.page.goto("/clients/")
    assert visitor.page.evaluate("getComputedStyle(document.body).backgroundColor") == dark


def test_times_are_in_the_browsers_zone_until_another_is_chosen(visit: Callable[..., Visitor], site: AdminSite) -> None:
    visitor = visit(site, zone="Asia/Kathmandu").log_in(Role.OPERATOR)
    assert "(UTC+5:45)" in visitor.page.inner_text("footer")
    visitor.page.goto("/account/")
    visitor.page.select_option("#timezone", "Asia/Tokyo")
    visitor.follow("#zone button")
    assert "Asia/Tokyo (UTC+9)" in visitor.page.inner_text("footer")


def test_wrong_password_is_refused_in_words_and_nothing_is_shown(
    visit: Callable[..., Visitor], site: AdminSite
) -> None:
    visitor = visit(site).log_in(Role.VIEWER, password="wrong")
    assert "E-mail address or password is wrong." in visitor.page.inner_text("main")
    visitor.page.goto("/clients/")
    assert visitor.page.url.endswith("/login?next=/clients/")
    visitor.page.fill("#email", PEOPLE[Role.VIEWER])
    visitor.page.fill("#password", PASSWORD)
    visitor.follow("button.primary")
    assert visitor.page.url.endswith("/clients/")


def test_menu_on_a_phone_opens_by_keyboard_and_leads_on(visit: Callable[..., Visitor], site: AdminSite) -> None:
    visitor = visit(site, size=PHONE).log_in(Role.ADMIN)
    page = visitor.page
    page.focus(".menu summary")
    page.keyboard.press("Enter")
    page.click(".menu >> text=Clients")
    assert page.inner_text("h1").startswith("Clients")


def test_viewer_finds_no_buttons_that_would_be_refused(visit: Callable[..., Visitor], site: AdminSite) -> None:
    visitor = visit(site).log_in(Role.VIEWER)
    page = visitor.page
    for path in ("/", "/mailings/", "/mailings/2/", "/clients/", "/clients/1/", "/imports/"):
        page.goto(path)
        targets = page.eval_on_selector_all(
            "main a[href^='/']", "links => links.map(link => link.getAttribute('href'))"
        )
        refused = [target for target in set(targets) if visitor.status_of(target) >= 400]
        assert refused == [], path
        forms = page.eval_on_selector_all("main form[method=post]", "forms => forms.map(form => form.action)")
        assert forms == [], path


def test_second_click_does_not_do_the_work_twice(visit: Callable[..., Visitor], site: AdminSite) -> None:
    visitor = visit(site).log_in(Role.OPERATOR)
    page = visitor.page
    page.goto("/mailings/new/")
    page.fill("#name", "Only once")
    page.fill("#text", "Hello")
    page.check('input[name="when"][value="draft"]')
    # The second when the first is on its way, and before its answer.
    page.eval_on_selector(
        "button.primary[value=review]", "button => { button.click(); setTimeout(() => button.click(), 20); }"
    )
    page.wait_for_selector("h1 >> text=Only once")
    with site.session() as session:
        assert session.scalar(sa.select(sa.func.count()).where(Mailing.name == "Only once")) == 1


def test_audit_log_is_in_the_readers_words_and_time(visit: Callable[..., Visitor], site: AdminSite) -> None:
    start = datetime(2031, 3, 4, 22, 30, tzinfo=UTC)
    with site.session() as session:
        audit.record(
            session,
            "mailing.change",
            "mailing:77",
            before={"state": MailingState.DRAFT, "starts_at": start, "operator_codes": []},
            after={"state": MailingState.SCHEDULED, "starts_at": start + timedelta(hours=1), "operator_codes": ["916"]},
        )
    visitor = visit(site, language="ru-RU", zone="Asia/Tokyo").log_in()
    visitor.page.goto("/audit/?subject=mailing:77")
    shown = visitor.page.inner_text("tbody .diff").replace("\n", " ")
    assert shown == (
        "состояние Черновик Запланирована начало 5 мар. 2031, 07:30:00 5 мар. 2031, 08:30:00 коды оператора – 916"
    )


def test_new_key_is_shown_once(visit: Callable[..., Visitor], site: AdminSite) -> None:
    visitor = visit(site).log_in()
    page = visitor.page
    page.goto("/api-keys/")
    page.fill("#name", "Warehouse")
    page.click("text=Make a key")
    token = page.input_value("#secret")
    assert token.startswith("mk_")
    page.goto("/api-keys/")
    assert token not in page.content()
    with site.session() as session:
        assert session.query(ApiKey).filter_by(name="Warehouse").count() == 1


def test_session_that_is_ended_elsewhere_says_so_on_the_open_page(
    visit: Callable[..., Visitor], site: AdminSite
) -> None:
    one, other = (visit(site).log_in(Role.ADMIN) for _ in range(2))
    one.page.goto("/")
    other.page.goto("/account/")
    other.page.click("form[action$=logout-everywhere] button")
    one.wait_for(lambda: "Your session has ended" in one.page.inner_text("#trouble"), 30)


def test_dashboard_refreshes_itself(visit: Callable[..., Visitor], site: AdminSite) -> None:
    visitor = visit(site).log_in(Role.VIEWER)
    page = visitor.page
    waiting = page.inner_text('[data-live="numbers"]')
    with site.session() as session:
        mailing = make_mailing(session, name="Appears by itself", ends_at=datetime.now(UTC) + timedelta(hours=1))
        client = make_client(session, phone="+79169990001")
        make_message(session, mailing, client, status=MessageStatus.PENDING)
    visitor.wait_for(lambda: "Appears by itself" in page.inner_text('[data-live="running"]'), 30)
    visitor.wait_for(lambda: page.inner_text('[data-live="numbers"]') != waiting, 30)


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_long_names_do_not_widen_a_page(visit: Callable[..., Visitor], site: AdminSite, size: tuple[int, int]) -> None:
    name = "N" * rules.NAME_LENGTH
    with site.session() as session:
        scheduled = make_mailing(session, name=name, state=MailingState.SCHEDULED)
        running = make_mailing(session, name=name)
        message = make_message(session, running, session.scalars(sa.select(Client).limit(1)).one())
    visitor = visit(site, size=size).log_in()
    page = visitor.page
    paths = ["/", "/mailings/", f"/messages/?mailing={running.id}", f"/messages/{message.id}/"]
    paths += [f"/mailings/{mailing.id}/" for mailing in (scheduled, running)]
    paths += [f"/mailings/{running.id}/confirm/{action}" for action in CONFIRMED]
    too_wide = []

    def look(place: str) -> None:
        if visitor.is_too_wide():
            too_wide.append(place)

    for path in paths:
        page.goto(path)
        look(path)
    page.goto("/api-keys/")
    page.fill("#name", name)
    page.click("text=Make a key")
    page.wait_for_selector("#secret")
    look("the new key")
    page.goto("/users/")
    page.fill("#email", f"{'n' * 60}@{f'{size[0]:n>60}.' * 3}com")
    page.click("text=Add a user")
    page.wait_for_selector("#secret")
    look("the password of the new user")
    assert too_wide == []

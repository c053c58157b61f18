"""What people do with open pages: they go back, use the keyboard, and leave them open while things change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
from playwright.sync_api import Dialog, expect

from db.models import MailingState, Role
from db.queries import mailings, users
from tests.browser import PASSWORD, PEOPLE, AdminSite, Visitor
from tests.factories import make_client, make_mailing, make_message


@pytest.fixture(scope="module")
def site(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdminSite]:
    """The pages, with three clients of operators that no other test has clients of."""
    admin = AdminSite(module_database_url, tmp_path_factory.mktemp("admin"))
    with admin.session() as session:
        for phone in ("+79860000001", "+79860000002", "+79260000003"):
            make_client(session, phone=phone)
    admin.start()
    yield admin
    admin.process.stop()


def test_form_and_preview_agree_after_going_back(visit: Callable[..., Visitor], site: AdminSite) -> None:
    page = visit(site).log_in(Role.OPERATOR).page
    page.goto("/mailings/new/")
    page.fill("#text", "Come at 8!")
    page.fill("#operator_codes", "986")
    page.check('input[value="draft"]')
    expect(page.locator("#audience-count")).to_have_text("2")

    page.click(".side >> text=Clients")
    page.wait_for_url("**/clients/")
    page.go_back()

    expect(page.locator("#text")).to_have_value("Come at 8!")
    expect(page.locator("#audience-count")).to_have_text("2")
    expect(page.locator(".preview .bubble")).to_have_text("Come at 8!")
    expect(page.locator("button.primary")).to_have_text("Save the draft", use_inner_text=True)


def test_preview_of_a_mailing_that_has_started_stays(visit: Callable[..., Visitor], site: AdminSite) -> None:
    with site.session() as session:
        mailing = make_mailing(session, text="Sent as it is", operator_codes=["926"])
    page = visit(site).log_in(Role.OPERATOR).page
    page.goto(f"/mailings/new/{mailing.id}/")
    page.wait_for_load_state("networkidle")
    expect(page.locator("#audience-count")).to_have_text("1")
    expect(page.locator(".preview .bubble")).to_have_text("Sent as it is")


def test_preview_tells_that_the_session_has_ended(visit: Callable[..., Visitor], site: AdminSite) -> None:
    page = visit(site).log_in(Role.OPERATOR).page
    page.goto("/mailings/new/")
    log_out(site, Role.OPERATOR)
    page.fill("#text", "Come at 8!")
    expect(page.locator("#trouble")).to_have_text("Your session has ended. Log in again to go on.")


def test_mailing_that_was_written_for_too_long_is_not_lost(visit: Callable[..., Visitor], site: AdminSite) -> None:
    visitor = visit(site).log_in(Role.OPERATOR)
    page = visitor.page
    page.goto("/mailings/new/")
    page.fill("#name", "Evening")
    page.fill("#text", "Come at 8!\nBring a friend.")
    log_out(site, Role.OPERATOR)
    visitor.follow("button.primary")
    expect(page.locator(".notice.info")).to_contain_text("What you had written is kept.")
    page.fill("#email", PEOPLE[Role.OPERATOR])
    page.fill("#password", PASSWORD)
    visitor.follow("button.primary")
    expect(page.locator("h1")).to_have_text("You are logged in again")
    visitor.follow("button.primary")
    expect(page.locator("h1")).to_have_text("Is everything right?")
    expect(page.locator(".bubble").first).to_have_text("Come at 8!\nBring a friend.")


@pytest.mark.parametrize(
    ("used", "shown"),
    [
        ('[data-live="progress"] a[href$="status=sent"]', '[data-count="sent"]'),
        ('[data-live="chart"] summary', '[data-live="chart"] .legend strong'),
    ],
    ids=["count", "chart"],
)
def test_what_has_the_focus_keeps_it_and_is_kept_up_to_date(
    visit: Callable[..., Visitor], site: AdminSite, used: str, shown: str
) -> None:
    with site.session() as session:
        mailing = make_mailing(session)
        make_message(session, mailing, make_client(session))
    page = visit(site).log_in(Role.VIEWER).page
    page.goto(f"/mailings/{mailing.id}/")
    page.focus(used)
    with site.session() as session:
        make_message(session, mailing, make_client(session))

    expect(page.locator(shown)).to_have_text("2")
    expect(page.locator(used)).to_be_focused()


def test_page_of_a_mailing_that_is_deleted_says_so(visit: Callable[..., Visitor], site: AdminSite) -> None:
    with site.session() as session:
        mailing = make_mailing(session, state=MailingState.DRAFT)
    page = visit(site).log_in(Role.OPERATOR).page
    page.goto(f"/mailings/{mailing.id}/")
    with site.session() as session:
        mailings.delete(session, mailing.id, datetime.now(UTC))
    expect(page.locator("#trouble")).to_contain_text("This was deleted after the page had been opened.")


def test_what_was_said_of_a_mailing_goes_when_its_state_changes(visit: Callable[..., Visitor], site: AdminSite) -> None:
    with site.session() as session:
        mailing = make_mailing(session)
    page = visit(site).log_in(Role.OPERATOR).page
    page.goto(f"/mailings/{mailing.id}/")
    page.click("#do-pause")
    said = page.locator(".notice.success")
    expect(said).to_contain_text("The mailing is paused")
    with page.expect_response("**/live"):
        pass
    expect(said).to_be_visible()

    with site.session() as session:
        mailings.control(session, mailing.id, "cancel", datetime.now(UTC))

    expect(page.locator('[data-live="head"] .badge')).to_have_text("Cancelled")
    expect(said).to_have_count(0)


def test_lists_are_filtered_by_keyboard(visit: Callable[..., Visitor], site: AdminSite) -> None:
    page = visit(site).log_in(Role.VIEWER).page
    page.goto("/mailings/")
    page.focus("#state")
    for chosen in ("draft", "scheduled"):
        page.keyboard.press("ArrowDown")
        page.wait_for_function(f"document.activeElement.value === '{chosen}' && document.readyState === 'complete'")
    page.press(".filters button", "Enter")
    page.wait_for_url("**/mailings/?state=scheduled&*")


def test_enter_in_the_field_for_a_test_sends_the_test(visit: Callable[..., Visitor], site: AdminSite) -> None:
    page = visit(site).log_in(Role.OPERATOR).page
    page.goto("/mailings/new/")
    page.fill("#name", "Party")
    page.fill("#text", "Come at 8!")
    page.fill("#phone", "+79160000001")
    page.press("#phone", "Enter")
    expect(page.locator("main .notice")).to_contain_text("The test is on its way.")


@pytest.mark.parametrize("address", ["/mailings/new/", "/clients/new"])
def test_who_leaves_a_form_that_was_typed_into_is_asked(
    visit: Callable[..., Visitor], site: AdminSite, address: str
) -> None:
    page = visit(site).log_in(Role.OPERATOR).page
    asked: list[str] = []

    def stay(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.dismiss()

    page.on("dialog", stay)
    page.goto(address)
    page.type("#other_tags", "vip")
    with page.expect_event("dialog"):
        page.click('.side button[value="ru"]')
    expect(page.locator("#other_tags")).to_have_value("vip")

    page.click("main .actions a")
    page.wait_for_url(lambda url: not url.endswith("/new/") and not url.endswith("/new"))
    assert asked == ["beforeunload"]


def test_language_changes_on_the_page_of_a_form_that_was_refused(
    visit: Callable[..., Visitor], site: AdminSite
) -> None:
    # Remembered with the user: another one than those who read English in the other tests.
    page = visit(site).log_in(Role.ADMIN).page
    page.goto("/mailings/new/")
    page.fill("#name", "Party")
    page.fill("#text", "{" + "n" * 65 + "}")
    page.click("button.primary")
    expect(page.locator("main .notice.error")).to_be_visible()
    page.click('.side button[value="ru"]')
    expect(page.locator("h1")).to_have_text("Новая рассылка")


def log_out(site: AdminSite, role: Role) -> None:
    """End the sessions of whoever has this role, as another admin would."""
    with site.session() as session:
        account = users.find(session, PEOPLE[role])
        assert account
        users.log_out_everywhere(session, account.id)

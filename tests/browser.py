"""A real browser in front of the admin pages: it notices script errors, and breaches of the pages' own policy."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from db.engine import normalise_url
from db.models import Role
from db.queries import users
from tools.processes import Process, free_port, wait_until
from tools.supervisor import answers

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = "/usr/bin/chromium"
PASSWORD = "correct horse battery"
PEOPLE = {role: f"{role.value}@example.com" for role in Role}
# The preview counts for so long only, and then tells of about so many, which no test waits for.
PATIENT = """
from admin.views import mailing_form
from admin.__main__ import main
mailing_form.LIVE_PATIENCE_SECONDS = 10.0
main()
"""
AXE = (ROOT / "tests" / "e2e" / "axe" / "axe.min.js").read_text()
DESKTOP = (1280, 850)
PHONE = (390, 844)


class AdminSite:
    """The admin process on a database, with a user of every role."""

    def __init__(self, database_url: str, directory: Path) -> None:
        self.database_url = database_url
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = Process(
            name="admin",
            argv=[sys.executable, "-c", PATIENT],
            env={
                "PATH": os.environ["PATH"],
                "DATABASE_URL": database_url,
                "SECRET_KEY": "admin-test-secret",
                "ADMIN_PORT": str(self.port),
            },
            cwd=ROOT,
            log=directory / "admin.log",
            dies_with_parent=True,
        )

    def start(self) -> None:
        """Make the users, start the process and wait until it can serve."""
        with self.session() as session:
            for role, email in PEOPLE.items():
                if users.find(session, email) is None:
                    users.create(session, email, PASSWORD, role)
        self.process.launch()
        assert wait_until(lambda: answers(f"{self.url}/readyz"), 60), self.process.log.read_text()

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """A transaction beside the pages."""
        engine = create_engine(normalise_url(self.database_url), poolclass=NullPool)
        with Session(engine, expire_on_commit=False) as session:
            yield session
            session.commit()


class Visitor:
    """A person with a browser window."""

    def __init__(
        self,
        browser: Browser,
        site: AdminSite,
        *,
        size: tuple[int, int] = DESKTOP,
        language: str = "en-US",
        zone: str = "Europe/Moscow",
        dark: bool = False,
    ) -> None:
        self.site = site
        self.context = browser.new_context(
            base_url=site.url,
            viewport={"width": size[0], "height": size[1]},
            locale=language,
            timezone_id=zone,
            color_scheme="dark" if dark else "light",
        )
        self.context.set_default_timeout(20_000)
        self.page: Page = self.context.new_page()
        self.troubles: list[str] = []
        self.expected_statuses = {200, 302, 303, 304}
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("request", lambda request: self._check_origin(request.url))

    def _note(self, kind: str, text: str) -> None:
        # Browsers report every answer of 4xx or 5xx as an error; tests that ask for one look at it themselves.
        if kind in ("error", "warning") and not text.startswith("Failed to load resource"):
            self.troubles.append(text)

    def _check_origin(self, url: str) -> None:
        if not url.startswith((self.site.url, "data:", "about:")):
            self.troubles.append(f"asked another host: {url}")

    def log_in(self, role: Role = Role.ADMIN, password: str = PASSWORD) -> Visitor:
        """Fill in the form."""
        self.page.goto("/login")
        self.page.fill("#email", PEOPLE[role])
        self.page.fill("#password", password)
        self.follow("button.primary")
        return self

    def follow(self, selector: str) -> None:
        """Click what leads to another page, and be there: a click alone may be over before the browser sets off."""
        with self.page.expect_navigation():
            self.page.click(selector)

    def status_of(self, path: str, **options: Any) -> int:
        """How the server answers this browser's cookies."""
        return self.context.request.get(path, max_redirects=0, **options).status

    def post(self, path: str, **form: str) -> int:
        """Send a form as this browser would, with the token of its session."""
        token = self.page.locator('meta[name="csrf-token"]').get_attribute("content") or ""
        answer = self.context.request.post(path, form={"csrf_token": token, **form}, max_redirects=0)
        return answer.status

    def faults(self) -> list[str]:
        """What axe-core finds serious or critical on the page."""
        self.page.evaluate(AXE)
        found = self.page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{each['id']}: {each['help']} {[node['target'] for node in each['nodes']][:3]}"
            for each in found["violations"]
            if each["impact"] in ("serious", "critical")
        ]

    def is_too_wide(self) -> bool:
        """Whether the page has to be scrolled sideways."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > innerWidth"))

    def wait_for(self, condition: Callable[[], bool], seconds: float = 90) -> None:
        """Look again and again while the page refreshes itself."""
        give_up_at = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < give_up_at, self.page.inner_text("body")
            self.page.wait_for_timeout(200)

    def close(self) -> None:
        """Leave; nothing may have gone wrong on the way."""
        self.context.close()
        assert self.troubles == []


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """Debian's Chromium, without a window."""
    with sync_playwright() as playwright:
        # Its sandbox needs privileges that containers and root have not; it only sees our own pages.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()

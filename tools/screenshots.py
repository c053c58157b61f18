"""`make screenshots`: pictures of every admin page, on made-up data, into docs/images."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from db.migrate import upgrade
from db.models import Role
from db.queries import users
from tools import sample
from tools.local import ROOT
from tools.processes import Process, free_port, wait_until
from tools.servers import PostgreSQL
from tools.supervisor import answers

IMAGES = ROOT / "docs" / "images"
CHROMIUM = "/usr/bin/chromium"
EMAIL, PASSWORD = "anna@example.com", "correct horse battery"
PAGES = {
    "dashboard": "/",
    "mailings": "/mailings/",
    "mailing": "/mailings/2/",
    "mailing-done": "/mailings/1/",
    "mailing-form": "/mailings/new/?copy=2",
    "messages": "/messages/?mailing=1&status=failed",
    "message": "/messages/11700/",
    "clients": "/clients/",
    "client": "/clients/7/",
    "imports": "/imports/",
    "import": "/imports/1/",
    "api-keys": "/api-keys/",
    "users": "/users/",
    "audit": "/audit/",
    "system": "/system/",
    "account": "/account/",
}
# Long lists: their beginning says enough.
LISTS = ("messages", "clients", "mailings")
# What is worth a picture in every dress.
MAIN = ("dashboard", "mailing", "mailing-form")
DESKTOP, PHONE = (1280, 860), (390, 844)


def main() -> int:
    """Take all pictures; return how that went."""
    argparse.ArgumentParser(prog="python -m tools.screenshots", description=__doc__).parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # Readable for PostgreSQL's own account.
        directory.chmod(0o755)
        server = stack.enter_context(PostgreSQL(directory, without_disks=True))
        empty, full = (_database(server, name) for name in ("blank", "filled"))
        with Session(create_engine(full, poolclass=NullPool)) as session:
            sample.fill(session, datetime.now(UTC))
            session.commit()
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        first, second = (_serve(stack, url, directory) for url in (empty, full))
        _picture_all(browser, second)
        _picture(browser, first, ["login", "first-steps"], DESKTOP)
        browser.close()
    return 0


def _database(server: PostgreSQL, name: str) -> str:
    server.execute(f"CREATE DATABASE {name}")
    url = server.url(name)
    upgrade(url)
    with Session(create_engine(url, poolclass=NullPool)) as session, session.begin():
        users.create(session, EMAIL, PASSWORD, Role.ADMIN)
    return url


def _serve(stack: ExitStack, database_url: str, directory: Path) -> str:
    """Serve the pages on this database; where."""
    port = free_port()
    process = Process(
        name="admin",
        argv=[sys.executable, "-m", "admin"],
        env={
            "PATH": os.environ["PATH"],
            "DATABASE_URL": database_url,
            "SECRET_KEY": "pictures",
            "ADMIN_PORT": str(port),
        },
        cwd=ROOT,
        log=directory / f"admin-{port}.log",
        dies_with_parent=True,
    )
    process.launch()
    stack.callback(process.stop)
    address = f"http://127.0.0.1:{port}"
    if not wait_until(lambda: answers(f"{address}/readyz"), 60):
        raise RuntimeError(process.log.read_text())
    return address


def _picture_all(browser: Browser, address: str) -> None:
    _picture(browser, address, list(PAGES), DESKTOP)
    _picture(browser, address, MAIN, DESKTOP, dark=True)
    _picture(browser, address, [*MAIN, "mailings", "clients"], PHONE)
    _picture(browser, address, MAIN, PHONE, dark=True)
    _picture(browser, address, MAIN, DESKTOP, language="ru-RU")


def _picture(
    browser: Browser,
    address: str,
    names: Sequence[str],
    size: tuple[int, int],
    *,
    dark: bool = False,
    language: str = "en-US",
) -> None:
    context = browser.new_context(
        base_url=address,
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if dark else "light",
        locale=language,
        timezone_id="Europe/Moscow",
    )
    page = context.new_page()
    suffix = ("-phone" if size == PHONE else "") + ("-dark" if dark else "") + ("-ru" if language == "ru-RU" else "")
    page.goto("/login")
    if "login" in names:
        _keep(page, f"login{suffix}")
    page.fill("#email", EMAIL)
    page.fill("#password", PASSWORD)
    page.click("button.primary")
    page.wait_for_url(f"{address}/")
    if "first-steps" in names:
        _keep(page, f"first-steps{suffix}")
    for name in names:
        if name in PAGES:
            page.goto(PAGES[name])
            _keep(page, f"{name}{suffix}", is_whole=name not in LISTS)
    context.close()


def _keep(page: Page, name: str, *, is_whole: bool = True) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=IMAGES / f"admin-{name}.png", full_page=is_whole)
    print(f"docs/images/admin-{name}.png")


if __name__ == "__main__":
    sys.exit(main())

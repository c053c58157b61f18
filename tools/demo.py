"""`make demo`: fill the running system with made-up clients, send them a mailing, and watch it to its end."""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from urllib3.util import Retry

from tools.local import ROOT

ACCESS = ROOT / ".local" / "access.json"
NAMES = (
    "Anna",
    "Boris",
    "Vera",
    "Gleb",
    "Dina",
    "Egor",
    "Zoya",
    "Ilya",
    "Kira",
    "Lev",
    "Maya",
    "Nikita",
    "Olga",
    "Pavel",
)
ZONES = ("Europe/Kaliningrad", "Europe/Moscow", "Asia/Yekaterinburg", "Asia/Novosibirsk", "Asia/Vladivostok")
CODES = ("903", "905", "916", "917", "921", "926", "985")
TAG = "demo"
TEXT = "Hello {name|there}! This is a demonstration."
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 600.0


class DemoError(Exception):
    """The demonstration cannot go on; the text says what to do."""


class Api:
    """The API of the running system."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url.rstrip("/")
        self._http = requests.Session()
        # Looking goes on while a server behind the API is being started again.
        patience = Retry(
            12,
            connect=0,
            backoff_factor=0.2,
            backoff_max=5,
            status_forcelist=[503],
            allowed_methods=["GET"],
            raise_on_status=False,
        )
        for scheme in ("http://", "https://"):
            self._http.mount(scheme, HTTPAdapter(max_retries=patience))
        self._http.headers["Authorization"] = f"Bearer {key}"

    def call(self, method: str, path: str, **options: Any) -> Any:
        """The JSON of an answer; raise DemoError for anything but success."""
        try:
            answer = self._http.request(method, f"{self.url}/api/v1{path}", timeout=60, **options)
        except requests.RequestException as error:
            raise DemoError(
                f"nothing answers at {self.url} ({type(error).__name__}); is it started? make up"
            ) from error
        if not answer.ok:
            raise DemoError(f"{method} {path} was answered {answer.status_code}: {answer.text[:500]}")
        return answer.json()


def main() -> None:
    """Run the demonstration, against the system that `make up` started unless told otherwise."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description=__doc__)
    parser.add_argument("--clients", type=int, default=10_000, help="how many to import (default: 10,000)")
    parser.add_argument("--api", help="address of the API (default: the one that `make up` started)")
    parser.add_argument("--key", help="API key (default: the one of `make up`)")
    arguments = parser.parse_args()
    console = Console()
    try:
        api = _connect(arguments.api, arguments.key)
        _import_clients(api, console, arguments.clients)
        mailing_id = _send(api, console)
        _show(api, console, mailing_id)
    except DemoError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit("\ndemo: interrupted; what was started goes on")


def _connect(url: str | None, key: str | None) -> Api:
    if not (url and key):
        if not ACCESS.exists():
            raise DemoError("nothing is started here; `make up` first, or give --api and --key")
        access = json.loads(ACCESS.read_text())
        url, key = url or access["api"], key or access["api_key"]
    assert url
    assert key
    return Api(url, key)


def _people(count: int) -> str:
    """A CSV file of made-up people, the same ones every time."""
    lots = random.Random(1)
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(["phone", "tags", "timezone", "name"])
    for number in range(count):
        phone = f"+7{CODES[number % len(CODES)]}{number // len(CODES):07d}"
        writer.writerow([phone, f"{TAG}|{lots.choice(('new', 'vip', 'old'))}", lots.choice(ZONES), lots.choice(NAMES)])
    return lines.getvalue()


def _import_clients(api: Api, console: Console, count: int) -> None:
    job = api.call("POST", "/client/import/", data=_people(count).encode(), headers={"Content-Type": "text/csv"})

    def look() -> tuple[int, int, str, bool]:
        now = api.call("GET", f"/client/import/{job['id']}/")
        if now["state"] == "failed":
            raise DemoError(f"the import failed: {now.get('failure')}")
        numbers = f"{now['created']:,} new, {now['updated']:,} known, {now['rejected']:,} rejected"
        return now["processed"], now["total"], numbers, now["state"] == "completed"

    _watch(console, "Importing clients", look)


def _send(api: Api, console: Console) -> int:
    body = {
        "name": f"Demo of {datetime.now(UTC):%d %b %H:%M:%S} UTC",
        "text": TEXT,
        "ends_at": (datetime.now(UTC) + timedelta(hours=1)).isoformat(),
        "filter": {"operator_codes": [], "tags": [TAG]},
    }
    mailing_id: int = api.call("POST", "/mailing/", json=body)["id"]

    def look() -> tuple[int, int, str, bool]:
        now = api.call("GET", f"/message/{mailing_id}/retrieveMessagesForMailing/", params={"limit": 1})
        counts = {status: count for status, count in now["by_status"].items() if count}
        done = now["messages"] - counts.get("pending", 0) - counts.get("sending", 0)
        words = ", ".join(f"{count:,} {status}" for status, count in counts.items())
        return done, now["messages"], words, now["mailing"]["state"] == "completed"

    _watch(console, "Sending messages", look)
    return mailing_id


def _watch(console: Console, title: str, look: Callable[[], tuple[int, int, str, bool]]) -> None:
    """Show a bar until `look` (done, total, words, whether it is over) says that it is over."""
    began = time.monotonic()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:,.0f}/s"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}"),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(title, total=None, rate=0.0, words="")
        over = False
        while not over:
            over = _step(progress, task, look, began)
            if not over:
                time.sleep(POLL_SECONDS)
        finished = progress.tasks[0]
    seconds = time.monotonic() - began
    console.print(f"{title}: {finished.completed:,.0f} in {seconds:.1f} s ({finished.fields['words']})")


def _step(progress: Progress, task: TaskID, look: Callable[[], tuple[int, int, str, bool]], began: float) -> bool:
    done, total, words, over = look()
    seconds = time.monotonic() - began
    progress.update(task, completed=done, total=total or None, rate=done / seconds, words=words)
    if not over and seconds > PATIENCE_SECONDS:
        raise DemoError(f"not done after {PATIENCE_SECONDS:.0f} s: {words}; `make logs` tells more")
    return over


def _show(api: Api, console: Console, mailing_id: int) -> None:
    """The statistics, as GET /mailing/mailingsStatisticsOverall/ has them."""
    first = api.call("GET", "/mailing/mailingsStatisticsOverall/", params={"page_size": 1})
    totals = first["totals"]
    shown = api.call("GET", f"/message/{mailing_id}/retrieveMessagesForMailing/", params={"limit": 1})
    table = Table()
    table.add_column("status")
    table.add_column(shown["mailing"]["name"], justify="right")
    table.add_column(f"all mailings ({totals['mailings']:,})", justify="right")
    for status, count in shown["by_status"].items():
        table.add_row(status, f"{count:,}", f"{totals['by_status'][status]:,}")
    table.add_section()
    table.add_row("messages", f"{shown['messages']:,}", f"{totals['messages']:,}")
    console.print(table)
    console.print(f"More: {api.url}/docs/")


if __name__ == "__main__":
    main()

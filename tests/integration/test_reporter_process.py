"""`python -m reporter` as operators run it: it sends when it is time, survives what happens, and ends when told to."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.mail_server import MailServer
from tools.processes import Process, free_port, tail, wait_until

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 40.0


class Installation:
    """Reporters on one database and one mail server."""

    def __init__(self, url: str, engine: sa.Engine, server: MailServer, directory: Path) -> None:
        self.engine = engine
        self.server = server
        self._directory = directory
        self._started: list[Process] = []
        # Due a few seconds ago, for somebody who was there before.
        due = datetime.now(UTC) - timedelta(seconds=5)
        self.env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | {
            "DATABASE_URL": url,
            "EMAIL_HOST": "127.0.0.1",
            "EMAIL_PORT": str(server.port),
            "EMAIL_FROM": "mailings@example.com",
            "EMAIL_TIMEOUT": "5",
            "REPORT_RECIPIENTS": "anna@example.com",
            "REPORT_TIMEZONE": "UTC",
            "REPORT_TIME": f"{due:%H:%M:%S}",
        }
        self.execute(f"INSERT INTO report_recipient VALUES ('anna@example.com', '{due - timedelta(hours=1)}')")

    def start(self, **env: str) -> Process:
        """One more reporter."""
        process = Process(
            name="reporter",
            argv=[sys.executable, "-m", "reporter"],
            env=self.env | env,
            cwd=ROOT,
            log=self._directory / f"reporter-{len(self._started)}.log",
            dies_with_parent=True,
        )
        process.launch()
        self._started.append(process)
        return process

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """A command of the reporter's, to its end."""
        command = [sys.executable, "-m", "reporter", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=self.env | env, capture_output=True, text=True, check=False, timeout=60
        )

    def execute(self, statement: str) -> None:
        """Look at or change the database."""
        with self.engine.begin() as connection:
            connection.execute(sa.text(statement))

    def states(self) -> list[str]:
        """Of all that is owed."""
        with self.engine.connect() as connection:
            return list(connection.scalars(sa.text("SELECT state FROM report_delivery ORDER BY id")))

    def stop(self) -> None:
        """End them all."""
        for process in self._started:
            process.stop(20)


@pytest.fixture
def installation(engine: sa.Engine, database_url: str, tmp_path: Path) -> Iterator[Installation]:
    """No reporter runs yet; yesterday's report has just become due."""
    with MailServer() as server:
        made = Installation(database_url, engine, server, tmp_path)
        yield made
        made.stop()


def says(process: Process, event: str) -> bool:
    """Wait for a line in its log."""
    return wait_until(lambda: event in process.log.read_text(), PATIENCE_SECONDS)


def test_two_processes_send_one_mail_and_end_on_sigterm(installation: Installation) -> None:
    reporters = [installation.start(), installation.start()]

    assert wait_until(lambda: installation.states() == ["sent"], PATIENCE_SECONDS), tail(reporters[0].log)
    for reporter in reporters:
        assert says(reporter, "reporter_started")
        assert reporter.pid is not None
        reporter.stop(20)
        assert reporter.exit_code == 0
        assert "reporter_stopped" in reporter.log.read_text()
        assert "Traceback" not in reporter.log.read_text()
    assert len(installation.server.accepted) == 1


def test_a_report_goes_out_at_its_time(installation: Installation) -> None:
    due = (datetime.now(UTC) + timedelta(seconds=8)).replace(microsecond=0)
    arrivals: list[datetime] = []
    installation.server.answer = lambda: arrivals.append(datetime.now(UTC))

    reporter = installation.start(REPORT_TIME=f"{due:%H:%M:%S}")

    assert wait_until(lambda: bool(arrivals), PATIENCE_SECONDS), tail(reporter.log)
    # Not when the round of every half minute finds it.
    assert timedelta(0) <= arrivals[0] - due < timedelta(seconds=10)


def test_a_crash_between_sending_and_recording_repeats_one_mail_under_the_same_id(installation: Installation) -> None:
    killed = threading.Event()

    def accept_a_dead_mans_mail() -> str | None:
        if not killed.is_set():
            first.kill()
            killed.set()
        return None  # The server has the mail, and says so to nobody.

    installation.server.answer = accept_a_dead_mans_mail
    first = installation.start()
    assert killed.wait(PATIENCE_SECONDS)
    assert wait_until(lambda: len(installation.server.accepted) == 1, 5)
    assert installation.states() == ["sending"]

    survivor = installation.start()
    assert says(survivor, "reporter_started")
    installation.execute("UPDATE report_delivery SET lease_until = now()")
    assert wait_until(lambda: installation.states() == ["sent"], PATIENCE_SECONDS), tail(survivor.log)

    mails = [mail for _, mail in installation.server.accepted]
    assert len(mails) == 2
    assert mails[0]["Message-ID"] == mails[1]["Message-ID"]


def test_sigterm_lets_the_mail_on_its_way_be_finished(installation: Installation) -> None:
    told = threading.Event()

    def be_told_to_stop_meanwhile() -> None:
        assert reporter.pid is not None
        os.kill(reporter.pid, 15)
        told.set()

    installation.server.answer = be_told_to_stop_meanwhile
    reporter = installation.start()
    assert told.wait(PATIENCE_SECONDS)

    assert wait_until(lambda: reporter.pid is None, PATIENCE_SECONDS)
    assert reporter.exit_code == 0
    assert installation.states() == ["sent"]


def test_it_waits_for_a_database_that_is_away(installation: Installation) -> None:
    url = sa.make_url(installation.env["DATABASE_URL"])
    nowhere = url.set(port=free_port()).render_as_string(hide_password=False)
    reporter = installation.start(DATABASE_URL=nowhere)

    assert says(reporter, "database_away")
    assert reporter.pid is not None
    assert "Traceback" not in reporter.log.read_text()


def test_without_a_mail_server_it_idles_and_says_so_once(installation: Installation) -> None:
    reporter = installation.start(EMAIL_HOST="")

    assert wait_until(lambda: installation.run("health").returncode == 0, PATIENCE_SECONDS), tail(reporter.log)
    assert reporter.log.read_text().count("EMAIL_HOST is not set") == 1
    reporter.stop(20)
    assert reporter.exit_code == 0
    assert installation.run("health").returncode == 1


# One report now -----------------------------------------------------------------------------------------------------


def test_a_report_is_sent_to_whoever_is_named_and_touches_no_schedule(installation: Installation) -> None:
    sent = installation.run("send", "--day", "2026-11-01", "--to", "Ben <ben@example.com>", REPORT_LANGUAGE="ru")

    assert sent.returncode == 0, sent.stderr
    ((recipient, mail),) = installation.server.accepted
    assert recipient == "ben@example.com"
    assert mail["Subject"] == "1 нояб.: ничего не отправлялось"
    assert installation.states() == []


def test_a_preview_is_the_html_and_needs_no_mail_server(installation: Installation, tmp_path: Path) -> None:
    shown = installation.run("send", "--dry-run", EMAIL_HOST="", REPORT_RECIPIENTS="")
    written = installation.run("send", "--week", "--dry-run", str(tmp_path / "report.html"), EMAIL_HOST="")

    assert shown.returncode == written.returncode == 0
    assert shown.stdout.startswith("<!DOCTYPE html>")
    assert "so far" in shown.stdout
    assert "Weekly report" in (tmp_path / "report.html").read_text()
    assert installation.server.accepted == []


@pytest.mark.parametrize(
    ("arguments", "env", "complaint"),
    [
        (["--day", "2026-02-30"], {}, "'2026-02-30' is not a day that has begun"),
        (["--day", "2999-01-01"], {}, "'2999-01-01' is not a day that has begun"),
        (["--to", "nobody"], {}, "must be e-mail addresses"),
        ([], {"EMAIL_HOST": ""}, "EMAIL_HOST is not set"),
        ([], {"EMAIL_FROM": ""}, "EMAIL_FROM is not set"),
        ([], {"REPORT_RECIPIENTS": ""}, "REPORT_RECIPIENTS is not set"),
        ([], {"REPORT_RECIPIENTS": "anna@example.com; ben"}, "REPORT_RECIPIENTS: must be e-mail addresses"),
        ([], {"REPORT_LANGUAGE": "de"}, "REPORT_LANGUAGE: "),
        ([], {"EMAIL_USE_TLS": "true", "EMAIL_USE_SSL": "true"}, "EMAIL_USE_TLS and EMAIL_USE_SSL exclude each other"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(
    installation: Installation, arguments: list[str], env: dict[str, str], complaint: str
) -> None:
    refused = installation.run("send", *arguments, **env)

    assert refused.returncode == 2
    assert complaint in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr


def test_a_mail_that_is_refused_is_told_of(installation: Installation) -> None:
    installation.server.refuse = lambda address: "550 5.1.1 no such user" if address.startswith("ben") else None

    sent = installation.run("send", "--to", "ben@example.com, carl@example.com")

    assert sent.returncode == 1
    assert "not sent to ben@example.com: recipient_refused_550" in sent.stderr
    assert "sent to carl@example.com" in sent.stdout

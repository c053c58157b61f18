"""The reporter's rounds on a real database and a real SMTP server: who gets what, when, and once."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time as clock
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from aiosmtpd.smtp import AuthResult
from sqlalchemy.orm import Session, sessionmaker

from db.models import DeliveryState, MessageStatus, ReportDelivery, ReportRecipient, StatusFlow
from db.queries import report_deliveries
from reporter.deliveries import Reporter
from reporter.mail import Mailer
from tests.factories import make_mailing, settings_for
from tests.integration.conftest import Api
from tests.mail_server import MailServer, listener, server_context

ANNA, BEN = "anna@example.com", "ben@example.com"
MORNING = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)  # a Monday; 09:00 in Moscow
YESTERDAY = "22 Nov: nothing was sent"


@dataclasses.dataclass
class Bench:
    """A database, a mail server, and reporters between them."""

    engine: sa.Engine
    url: str
    server: MailServer

    def reporter(self, now: datetime = MORNING, **changed: Any) -> Reporter:
        """A reporter for which it is this time."""
        given = {
            "email_host": "127.0.0.1",
            "email_port": self.server.port,
            "email_from": "Mailings <mailings@example.com>",
            "email_timeout": 3.0,
            "report_recipients": (ANNA, BEN),
            "report_time": time(7, 30),
            "report_timezone": "Europe/Moscow",
        }
        settings = settings_for(self.url, **(given | changed))
        return Reporter(sessionmaker(self.engine), settings, Mailer(settings), clock=lambda: now)

    def since(self, recipient: str, at: datetime) -> None:
        """Let somebody have been there since then."""
        with Session(self.engine) as session, session.begin():
            session.add(ReportRecipient(recipient=recipient, since=at))

    def rows(self) -> list[ReportDelivery]:
        """Everything owed so far."""
        with Session(self.engine) as session:
            return list(session.scalars(sa.select(ReportDelivery).order_by(ReportDelivery.id)))

    def execute(self, statement: str) -> None:
        """Change something behind the reporter's back."""
        with self.engine.begin() as connection:
            connection.execute(sa.text(statement))

    def pass_time(self) -> None:
        """Let every pause and every lease be over."""
        self.execute("UPDATE report_delivery SET next_attempt_at = now() WHERE next_attempt_at IS NOT NULL")
        self.execute("UPDATE report_delivery SET lease_until = now() WHERE lease_until IS NOT NULL")


@pytest.fixture
def bench(engine: sa.Engine, database_url: str) -> Iterator[Bench]:
    """An installation that has been there for long, with nothing to tell."""
    with MailServer() as server:
        made = Bench(engine, database_url, server)
        for recipient in (ANNA, BEN):
            made.since(recipient, MORNING - timedelta(days=1))
        yield made


# Who is owed what ---------------------------------------------------------------------------------------------------


def test_yesterdays_report_goes_to_everybody_once(bench: Bench) -> None:
    reporter = bench.reporter()

    assert (reporter.plan(), reporter.deliver()) == (2, 2)
    assert (reporter.plan(), reporter.deliver()) == (0, 0)

    assert {name for name, _ in bench.server.accepted} == {ANNA, BEN}
    assert bench.server.subjects(ANNA) == bench.server.subjects(BEN) == [YESTERDAY]
    assert {row.state for row in bench.rows()} == {DeliveryState.SENT}


def test_nothing_goes_out_before_its_time(bench: Bench) -> None:
    before = datetime(2026, 11, 23, 4, 29, 59, tzinfo=UTC)

    assert bench.reporter(before).plan() == 0
    assert bench.reporter(before + timedelta(seconds=1)).plan() == 2


def test_days_missed_are_caught_up_oldest_first_and_no_more_than_seven(bench: Bench) -> None:
    later = bench.reporter(MORNING + timedelta(days=10))

    later.plan()
    later.deliver()

    days = [26, 27, 28, 29, 30, 1, 2]
    assert [int(subject.split()[0]) for subject in bench.server.subjects(ANNA)] == days


def test_the_week_comes_on_mondays_after_the_day(bench: Bench) -> None:
    reporter = bench.reporter(report_weekly=True)

    reporter.plan()
    reporter.deliver()

    assert bench.server.subjects(BEN) == [YESTERDAY, "16–22 Nov: nothing was sent"]


def test_the_first_start_ever_begins_with_the_first_activity(bench: Bench) -> None:
    bench.execute("TRUNCATE report_recipient")
    with Session(bench.engine) as session:
        mailing = make_mailing(session)
        minute = MORNING.replace(hour=9) - timedelta(days=3)
        session.add(StatusFlow(minute=minute, mailing_id=mailing.id, status=MessageStatus.SENT, amount=5))
        session.commit()

    reporter = bench.reporter()
    reporter.plan()
    reporter.deliver()

    assert bench.server.subjects(ANNA) == ["20 Nov: 5 sent, 0 failed", "21 Nov: nothing was sent", YESTERDAY]


def test_the_first_start_of_an_empty_installation_sends_nothing_old(bench: Bench) -> None:
    bench.execute("TRUNCATE report_recipient")

    assert bench.reporter().plan() == 0
    assert bench.reporter(MORNING + timedelta(days=1)).plan() == 2


def test_somebody_new_gets_no_old_reports(bench: Bench) -> None:
    bench.reporter().plan()
    everybody = (ANNA, BEN, "Carl <carl@example.com>")

    assert bench.reporter(report_recipients=everybody).plan() == 0
    assert bench.reporter(MORNING + timedelta(days=1), report_recipients=everybody).plan() == 3


def test_who_is_no_longer_named_gets_nothing_more(bench: Bench) -> None:
    bench.reporter().plan()

    bench.reporter(report_recipients=(BEN,)).deliver()

    assert [name for name, _ in bench.server.accepted] == [BEN]


def test_a_changed_name_or_case_makes_nobody_new(bench: Bench) -> None:
    bench.reporter().plan()

    assert bench.reporter(report_recipients=("Anna <Anna@Example.com>", BEN)).plan() == 0


# Once ---------------------------------------------------------------------------------------------------------------


def test_two_reporters_at_once_send_each_mail_once_and_in_order(bench: Bench) -> None:
    bench.execute("UPDATE report_recipient SET since = '2026-11-01'")

    def work() -> None:
        reporter = bench.reporter()
        reporter.plan()
        while any(row.state is not DeliveryState.SENT for row in bench.rows()):
            reporter.deliver()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work) for _ in range(4)]:
            done.result(timeout=60)

    for recipient in (ANNA, BEN):
        assert [int(subject.split()[0]) for subject in bench.server.subjects(recipient)] == list(range(16, 23))
    assert {row.attempts for row in bench.rows()} == {1}


def test_a_claim_that_was_lost_cannot_change_the_row(bench: Bench) -> None:
    bench.reporter().plan()
    with Session(bench.engine) as session, session.begin():
        lost = report_deliveries.claim(session, [ANNA], lease_seconds=60)
    assert lost is not None
    bench.pass_time()
    bench.reporter(report_recipients=(ANNA,)).deliver()

    with Session(bench.engine) as session, session.begin():
        assert not report_deliveries.mark_troubled(session, lost, "too late", 1.0)
        assert not report_deliveries.mark_sent(session, lost)
    assert next(row for row in bench.rows() if row.recipient == ANNA).state is DeliveryState.SENT


# Trouble ------------------------------------------------------------------------------------------------------------


def refuses_connections() -> AbstractContextManager[int]:
    """A port where nothing listens."""
    taken = socket.create_server(("127.0.0.1", 0))

    class Closed:
        def __enter__(self) -> int:
            port: int = taken.getsockname()[1]
            taken.close()
            return port

        def __exit__(self, *_: object) -> None:
            return None

    return Closed()


def says_nothing(connection: socket.socket) -> None:
    connection.recv(1)


def drips(connection: socket.socket) -> None:
    """A greeting that never ends: each byte comes within the timeout."""
    while True:
        connection.sendall(b"220-x\r\n")
        clock.sleep(0.05)


def hangs_up(connection: socket.socket) -> None:
    connection.sendall(b"220 hello\r\n")


def is_busy(connection: socket.socket) -> None:
    connection.sendall(b"421 4.3.2 come back later\r\n")


def is_no_mail_server(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def drops_after_the_data(connection: socket.socket) -> None:
    lines = connection.makefile("rwb")
    lines.write(b"220 hello\r\n")
    lines.flush()
    for line in lines:
        lines.write(b"354 go on\r\n" if line.lower().startswith(b"data") else b"250 OK\r\n")
        lines.flush()
        if line.lower().startswith(b"data"):
            while lines.readline() not in (b".\r\n", b""):
                pass
            return


@pytest.mark.parametrize(
    ("trouble", "reason", "timeout", "patience"),
    [
        (refuses_connections, "ConnectionRefusedError", 5, 4),
        (lambda: listener(says_nothing), "timeout", 0.4, 4),
        (lambda: listener(drips), "disconnected", 5, 0.2),
        (lambda: listener(hangs_up), "disconnected", 5, 4),
        (lambda: listener(is_busy), "smtp_421", 5, 4),
        (lambda: listener(is_no_mail_server), "not_smtp", 5, 4),
        (lambda: listener(drops_after_the_data), "disconnected", 5, 4),
    ],
    ids=["down", "silent", "drips", "hangs up", "busy", "no mail server", "drops after the data"],
)
def test_a_server_in_trouble_is_tried_again_until_it_is_well(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Callable[[], AbstractContextManager[int]],
    reason: str,
    timeout: float,
    patience: float,
) -> None:
    with trouble() as port, monkeypatch.context() as patch:
        patch.setattr("reporter.mail.PATIENCE", patience)
        ill = bench.reporter(email_port=port, email_timeout=timeout, report_recipients=(ANNA,))
        ill.plan()
        began = clock.monotonic()
        assert ill.deliver() == 0
        assert clock.monotonic() - began < 10
    (row,) = bench.rows()
    assert row.state is DeliveryState.PENDING
    assert (row.last_error or "").startswith(reason)
    assert row.next_attempt_at is not None
    assert row.next_attempt_at > datetime.now(UTC) + timedelta(seconds=5)

    well = bench.reporter(report_recipients=(ANNA,))
    assert well.deliver() == 0  # not yet
    bench.pass_time()
    assert well.deliver() == 1
    assert bench.server.subjects() == [YESTERDAY]


def test_a_recipient_that_is_refused_does_not_cost_the_others_theirs(bench: Bench) -> None:
    bench.server.refuse = lambda address: "550 5.1.1 no such user" if address == ANNA else None
    reporter = bench.reporter()
    reporter.plan()

    assert reporter.deliver() == 1

    assert [name for name, _ in bench.server.accepted] == [BEN]
    anna = next(row for row in bench.rows() if row.recipient == ANNA)
    assert anna.state is DeliveryState.PENDING
    assert anna.last_error == "recipient_refused_550: 5.1.1 no such user"


def test_a_refused_mail_is_tried_again_with_growing_pauses(bench: Bench) -> None:
    bench.server.answer = lambda: "451 4.7.1 greylisted"
    reporter = bench.reporter(report_recipients=(ANNA,))
    reporter.plan()
    pauses = []

    for _ in range(10):
        reporter.deliver()
        (row,) = bench.rows()
        assert row.next_attempt_at is not None
        pauses.append(round((row.next_attempt_at - datetime.now(UTC)).total_seconds()))
        bench.pass_time()

    assert pauses == pytest.approx([15, 30, 60, 120, 240, 480, 960, 1800, 1800, 1800], abs=2)


def test_a_report_is_given_up_after_a_day_and_the_next_one_goes_out(bench: Bench) -> None:
    bench.server.answer = lambda: "451 4.7.1 greylisted"
    reporter = bench.reporter(report_recipients=(ANNA,))
    reporter.plan()
    reporter.deliver()
    bench.execute("UPDATE report_delivery SET created_at = now() - interval '1 day'")
    bench.pass_time()
    reporter.deliver()
    assert [row.state for row in bench.rows()] == [DeliveryState.FAILED]
    with Session(bench.engine) as session:
        assert [trouble.error for trouble in report_deliveries.troubles(session)] == ["smtp_451: 4.7.1 greylisted"]

    bench.server.answer = lambda: None
    tomorrow = bench.reporter(MORNING + timedelta(days=1), report_recipients=(ANNA,))
    tomorrow.plan()
    tomorrow.deliver()

    assert [row.state for row in bench.rows()] == [DeliveryState.FAILED, DeliveryState.SENT]
    with Session(bench.engine) as session:
        assert report_deliveries.troubles(session) == []


def test_a_database_that_is_away_when_the_mail_is_sent_gets_the_record_later(bench: Bench) -> None:
    back = threading.Timer(1.5, bench.execute, ["ALTER TABLE gone RENAME TO report_delivery"])

    def answer() -> None:
        bench.execute("ALTER TABLE report_delivery RENAME TO gone")
        back.start()

    bench.server.answer = answer
    reporter = bench.reporter(report_recipients=(ANNA,))
    reporter.plan()

    assert reporter.deliver() == 1
    back.join()

    assert [row.state for row in bench.rows()] == [DeliveryState.SENT]


def test_a_mistake_in_one_report_holds_up_no_other(bench: Bench) -> None:
    bench.reporter(report_recipients=(ANNA,)).plan()
    bench.execute("UPDATE report_delivery SET period = 'nonsense'")
    tomorrow = bench.reporter(MORNING + timedelta(days=1), report_recipients=(ANNA,))
    tomorrow.plan()

    assert tomorrow.deliver() == 2

    assert bench.rows()[0].state is DeliveryState.PENDING
    assert bench.rows()[0].last_error == "ValueError"


# Transport ----------------------------------------------------------------------------------------------------------


def accept_login(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
    """The one account there is."""
    return AuthResult(success=(data.login, data.password) == (b"user", b"right"), handled=False)


def test_a_login_over_starttls(bench: Bench, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    context = server_context(certificate)
    with MailServer(
        tls_context=context, require_starttls=True, authenticator=accept_login, auth_required=True
    ) as server:

        def reporter(password: str) -> Reporter:
            return bench.reporter(
                email_port=server.port,
                email_use_tls=True,
                email_host_user="user",
                email_host_password=password,
                report_recipients=(ANNA,),
            )

        reporter("wrong").plan()
        assert reporter("wrong").deliver() == 0
        assert (bench.rows()[0].last_error or "").startswith("smtp_535")
        bench.pass_time()
        assert reporter("right").deliver() == 1
        assert server.subjects() == [YESTERDAY]


def test_tls_from_the_first_byte_to_a_server_that_is_vouched_for(
    bench: Bench, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with MailServer(ssl_context=server_context(certificate)) as server:
        reporter = bench.reporter(email_port=server.port, email_use_ssl=True, report_recipients=(ANNA,))
        reporter.plan()
        assert reporter.deliver() == 0
        assert (bench.rows()[0].last_error or "").startswith("tls: ")

        monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
        bench.pass_time()
        assert reporter.deliver() == 1
        assert server.subjects() == [YESTERDAY]


def test_a_server_without_starttls_gets_no_mail_in_the_clear(bench: Bench) -> None:
    reporter = bench.reporter(email_use_tls=True, report_recipients=(ANNA,))
    reporter.plan()

    assert reporter.deliver() == 0

    assert (bench.rows()[0].last_error or "").startswith("SMTPNotSupportedError")
    assert bench.server.accepted == []


# Seen by operators --------------------------------------------------------------------------------------------------


def test_reports_that_fail_are_in_the_metrics(api: Api, api_session: Session) -> None:
    def failing() -> str:
        lines = api.http.get("/metrics", headers={"Authorization": f"Bearer {api.key}"}).get_data(as_text=True)
        return next(line for line in lines.splitlines() if line.startswith('mailing_reports_failing{kind="daily"}'))

    assert failing().endswith(" 0.0")

    api_session.add(
        ReportDelivery(
            kind="daily",
            period="2026-11-22",
            recipient=ANNA,
            state=DeliveryState.PENDING,
            next_attempt_at=datetime.now(UTC),
            attempts=1,
            last_error="smtp_451: greylisted",
        )
    )
    api_session.commit()

    assert failing().endswith(" 1.0")

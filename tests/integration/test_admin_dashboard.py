"""What the dashboard tells when something needs a person."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy.orm import Session

from admin.app import create_app
from db.models import DeliveryState, GatewayState, Mailing, MailingState, MessageStatus, ReportDelivery, Role
from db.queries import audit, batches, gateway, machinery, users
from tests.factories import make_client, make_mailing, make_message, settings_for
from tests.integration.test_admin_access import PASSWORD, send

EMAIL = "viewer@example.com"


def dashboard(database_url: str, session: Session, role: Role = Role.VIEWER) -> FlaskClient:
    """A person's browser, logged in, on a system with one mailing."""
    make_mailing(session)
    users.create(session, EMAIL, PASSWORD, role)
    session.commit()
    app: Flask = create_app(settings_for(database_url, secret_key="test secret"))
    client = app.test_client()
    assert send(client, "/login", email=EMAIL, password=PASSWORD).status_code == 303
    return client


def test_a_report_that_cannot_be_sent_is_told_until_one_can(database_url: str, session: Session) -> None:
    client = dashboard(database_url, session)
    assert "cannot be sent" not in client.get("/").get_data(as_text=True)
    mail = ReportDelivery(
        kind="daily",
        period="2026-11-22",
        recipient="boss@example.com",
        state=DeliveryState.PENDING,
        attempts=2,
        next_attempt_at=datetime.now(UTC) + timedelta(minutes=5),
        last_error="connection refused",
    )
    session.add(mail)
    session.commit()
    page = client.get("/").get_data(as_text=True)
    assert "Reports by e-mail cannot be sent." in page
    assert "connection refused" in page
    session.execute(
        sa.update(ReportDelivery).values(
            state=DeliveryState.SENT, next_attempt_at=None, sent_at=sa.func.now(), last_error=None
        )
    )
    session.commit()
    assert "cannot be sent" not in client.get("/").get_data(as_text=True)


def test_a_blocked_gateway_is_told_with_its_reason(database_url: str, session: Session) -> None:
    client = dashboard(database_url, session)
    gateway.set_state(session, GatewayState.BLOCKED, "http_401", 10.0)
    session.commit()
    page = client.get("/").get_data(as_text=True)
    assert "The gateway refuses our token." in page


def test_the_page_of_a_running_mailing_tells_why_nothing_is_sent(database_url: str, session: Session) -> None:
    client = dashboard(database_url, session)
    mailing = session.scalars(sa.select(Mailing)).one()
    mailing.state = MailingState.RUNNING
    session.commit()
    assert "The gateway" not in client.get(f"/mailings/{mailing.id}/").get_data(as_text=True)

    gateway.set_state(session, GatewayState.OPEN, "timeout", 2.0)
    session.commit()

    assert "The gateway does not answer." in client.get(f"/mailings/{mailing.id}/").get_data(as_text=True)


def test_a_mailing_that_waits_for_sending_hours_says_until_when(database_url: str, session: Session) -> None:
    client = dashboard(database_url, session)
    mailing = session.scalars(sa.select(Mailing)).one()
    mailing.state, mailing.started_at = MailingState.RUNNING, datetime.now(UTC)
    make_message(session, mailing, make_client(session))
    later = (datetime.now(UTC) + timedelta(hours=2)).replace(minute=17)
    mailing.ends_at = later + timedelta(hours=1)
    make_message(session, mailing, make_client(session), status=MessageStatus.PENDING, next_attempt_at=later)
    session.commit()

    for page in ("/", f"/mailings/{mailing.id}/"):
        text = client.get(page).get_data(as_text=True)
        assert "the next go" in text
        assert ":17</time>" in text
        assert " left" not in text

    make_message(
        session, mailing, make_client(session), status=MessageStatus.PENDING, next_attempt_at=datetime.now(UTC)
    )
    session.commit()
    assert batches.release(session, [mailing.id], 10)
    session.commit()

    for page in ("/", f"/mailings/{mailing.id}/"):
        assert "the next go" not in client.get(page).get_data(as_text=True)


def test_the_system_page_knows_the_rows_of_tables_that_are_new(session: Session) -> None:
    for _ in range(3):
        make_client(session)
    session.commit()
    session.execute(sa.text("SELECT pg_stat_force_next_flush()"))
    session.commit()

    assert {size.table: size.rows for size in machinery.sizes(session, 50)}["client"] == 3


def test_the_audit_log_tells_times_on_the_readers_clock(database_url: str, session: Session) -> None:
    client = dashboard(database_url, session, Role.ADMIN)
    audit.record(session, "mailing.change", "mailing:1", after={"ends_at": "2026-11-23T15:25:26.952578+00:00"})
    session.commit()

    text = client.get("/audit/").get_data(as_text=True)

    assert "<dt>end</dt>" in text
    assert "23 Nov" in text
    assert "15:25:26.9" not in text
    assert "18:25:26</ins>" in text


@pytest.mark.parametrize(
    ("kind", "period", "language", "expected"),
    [
        ("daily", "2025-11-22", "en", "Daily report, 22 Nov 2025"),
        ("daily", "2025-11-22", "ru", "Отчёт за день, 22 нояб. 2025"),
        ("weekly", "2025-W47", "en", "Weekly report, from 17 Nov 2025"),
        ("weekly", "2025-W47", "ru", "Отчёт за неделю, с 17 нояб. 2025"),
        ("alert:mailing_failing", "2025-11-22T10", "en", "Alert: a mailing does not get through"),
        ("alert:gateway_open", "2025-11-22T10", "ru", "Тревога: шлюз не отвечает"),
    ],
)
def test_reports_by_e_mail_are_named_in_the_readers_words(
    database_url: str, session: Session, kind: str, period: str, language: str, expected: str
) -> None:
    client = dashboard(database_url, session, Role.ADMIN)
    due = datetime.now(UTC) + timedelta(minutes=5)
    mail = ReportDelivery(kind=kind, period=period, recipient="boss@example.com", last_error="refused", attempts=1)
    mail.state, mail.next_attempt_at = DeliveryState.PENDING, due
    session.add(mail)
    session.commit()

    for path in ("/", "/system/"):
        assert expected in client.get(path, headers={"Accept-Language": language}).get_data(as_text=True)


def test_shares_and_sizes_are_written_as_the_language_writes_them(database_url: str, session: Session) -> None:
    client = dashboard(database_url, session, Role.ADMIN)
    mailing = session.scalars(sa.select(Mailing)).one()
    for status in (MessageStatus.SENT, MessageStatus.SENT, MessageStatus.PENDING):
        make_message(session, mailing, make_client(session), status=status)

    def page(path: str, language: str) -> str:
        return client.get(path, headers={"Accept-Language": language}).get_data(as_text=True)

    assert "· 66.7%" in page(f"/mailings/{mailing.id}/", "en")
    assert "· 66,7\N{NO-BREAK SPACE}%" in page(f"/mailings/{mailing.id}/", "ru")
    assert ">MB</th>" in page("/system/", "en")
    assert ">МБ</th>" in page("/system/", "ru")

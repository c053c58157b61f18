"""A made-up month of an installation: for the pictures of the admin pages, and for the tests of them."""

from __future__ import annotations

from datetime import datetime, time, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from db.models import (
    ApiKey,
    Client,
    ImportJob,
    ImportState,
    Leader,
    Mailing,
    MailingState,
    Process,
    RejectedRow,
    Scope,
    StatusFlow,
)
from db.models import MessageStatus as Status
from db.queries import api_keys, audit, gateway

CLIENTS = 12_000
NAMES = ("Anna", "Мария", "Ivan", "Ольга", "Peter", "Дмитрий", "Elena", "Сергей", "Natalia", "Алексей")
ANNA = "user:2 anna@example.com"
# Processes that beat so far ahead look alive for as long as anybody takes pictures.
AHEAD = timedelta(days=1)


def fill(session: Session, now: datetime) -> None:
    """Fill an empty, migrated database."""
    now = now.replace(microsecond=0)
    _add_clients(session, now)
    for number, mailing in enumerate(_mailings(now), start=1):
        session.add(mailing)
        session.flush()
        assert mailing.id == number
    session.flush()
    _write_messages(session, 1, CLIENTS, {"delivered": 10_700, "sent": 900, "expired": 30}, now - timedelta(days=2))
    _write_messages(session, 2, 8_000, {"delivered": 3_100, "sent": 1_450, "pending": 3_390}, now)
    _write_messages(session, 5, 4_000, {"sent": 1_200, "pending": 2_790}, now - timedelta(hours=3))
    _write_messages(session, 6, 900, {"sent": 40, "cancelled": 860}, now - timedelta(days=1))
    _write_messages(session, 7, 1, {"delivered": 1}, now - timedelta(days=3))
    _write_flow(session, now)
    _add_processes(session, now)
    _add_imports(session, now)
    _add_history(session, now)


def _add_clients(session: Session, now: datetime) -> None:
    session.execute(
        sa.text(
            "INSERT INTO client (phone, operator_code, tags, timezone, attributes, opted_out_at, created_at)"
            " SELECT '+7' || code || lpad((n * 7919 % 10000000)::text, 7, '0'), code,"
            "  CASE WHEN n % 7 = 0 THEN '{vip,newsletter}' WHEN n % 3 = 0 THEN '{newsletter}' ELSE '{}' END::text[],"
            "  CASE WHEN n % 5 = 0 THEN 'Asia/Yekaterinburg' ELSE 'Europe/Moscow' END,"
            "  jsonb_build_object('name', (CAST(:names AS text[]))[1 + n % 10], 'points', n % 900),"
            "  CASE WHEN n % 400 = 13 THEN CAST(:now AS timestamptz) END,"
            "  CAST(:now AS timestamptz) - n * interval '1 min'"
            " FROM generate_series(1, :clients) AS n,"
            "  LATERAL (SELECT (ARRAY['916', '926', '903', '985'])[1 + n % 4] AS code) AS operator ORDER BY n"
        ),
        {"names": list(NAMES), "now": now, "clients": CLIENTS},
    )


def _mailings(now: datetime) -> list[Mailing]:
    day = timedelta(days=1)
    hour = timedelta(hours=1)
    tyres = "{name|Hello}, it is getting cold: winter tyres are fitted from 3 000 ₽ until Sunday."
    return [
        _mailing(
            "Black Friday: early access",
            "{name}, Black Friday starts today for you. Code: EARLY",
            now - 2 * day,
            MailingState.COMPLETED,
            finished_at=now - 2 * day + hour,
        ),
        _mailing("Winter tyres", tyres, now - hour / 4, MailingState.RUNNING, operator_codes=["916", "926"]),
        _mailing("Season's greetings", "A happy new year, {name}!", now + 6 * day, MailingState.SCHEDULED),
        _mailing("Survey", "{name}, how was it? Reply 1 to 5.", now, MailingState.DRAFT, tags=["newsletter"]),
        _mailing("Your points expire", "{points} points left.", now - 3 * hour, MailingState.PAUSED, tags=["vip"]),
        _mailing("Wrong price", "Only 1 ₽ today!", now - day, MailingState.CANCELLED, finished_at=now - day + hour / 6),
        _mailing(
            "Test: Black Friday",
            "Anna, Black Friday starts today for you. Code: EARLY",
            now - 3 * day,
            MailingState.COMPLETED,
            finished_at=now - 3 * day,
            is_test=True,
        ),
    ]


def _mailing(name: str, text: str, starts_at: datetime, state: MailingState, **others: Any) -> Mailing:
    started = None if state in (MailingState.DRAFT, MailingState.SCHEDULED) else starts_at
    values: dict[str, Any] = {
        "starts_at": starts_at,
        "ends_at": starts_at + timedelta(days=3),
        "operator_codes": [],
        "tags": [],
        "window_from": time(9),
        "window_to": time(21),
        "started_at": started,
        "materialised_at": started,
        "created_at": starts_at - timedelta(hours=5) if started else starts_at - timedelta(days=7),
    }
    return Mailing(name=name, text=text, state=state, **(values | others))


_FAILURES = ("http_400", "http_400", "http_400", "missing_placeholder:name", "receipt", "http_422")


def _write_messages(session: Session, mailing_id: int, audience: int, amounts: dict[str, int], at: datetime) -> None:
    """Messages to the first clients, by status as given; the rest has failed."""
    bounds, statuses, reached = [], [], 0
    for status, amount in amounts.items():
        reached += amount
        bounds.append(reached)
        statuses.append(status)
    session.execute(
        sa.text(
            "INSERT INTO message"
            " (mailing_id, client_id, status, attempts, created_at, sent_at, next_attempt_at, last_error)"
            " SELECT :mailing_id, n, status, (status NOT IN ('pending', 'cancelled'))::int, :at,"
            "  CASE WHEN status IN ('sent', 'delivered') THEN CAST(:at AS timestamptz) + n * interval '5 ms' END,"
            "  CASE WHEN status = 'pending' THEN :at END,"
            "  CASE status WHEN 'failed' THEN (CAST(:reasons AS text[]))[1 + n % 6] WHEN 'expired' THEN 'ended'"
            "   WHEN 'cancelled' THEN 'cancelled' END"
            " FROM generate_series(1, :audience) AS n, LATERAL (SELECT coalesce((CAST(:statuses AS text[]))"
            "  [width_bucket(n - 1, CAST(:bounds AS int[])) + 1], 'failed') AS status) AS chosen"
            " ORDER BY n"
        ),
        {
            "mailing_id": mailing_id,
            "audience": audience,
            "at": at,
            "statuses": statuses,
            "bounds": bounds,
            "reasons": list(_FAILURES),
        },
    )
    session.execute(
        sa.text(
            "INSERT INTO attempt (message_id, at, attempt, outcome, reason, http_status, milliseconds)"
            " SELECT id, created_at, 1, 'failed', last_error, 400, 40 + id % 90 FROM message"
            " WHERE mailing_id = :id AND status = 'failed' AND last_error LIKE 'http%'"
        ),
        {"id": mailing_id},
    )


def _write_flow(session: Session, now: datetime) -> None:
    """The trigger noted everything as of this minute: tell it as it would have been."""
    session.execute(sa.delete(StatusFlow))
    minute = now.replace(second=0)
    flows: list[dict[str, Any]] = []

    def add(at: datetime, mailing_id: int, **amounts: int) -> None:
        flows.extend(
            {"minute": at, "mailing_id": mailing_id, "status": Status(status), "amount": amount}
            for status, amount in amounts.items()
            if amount
        )

    for back in range(1, 30):
        weekday = (now - timedelta(days=back)).weekday()
        sent = 5_000 + 1_300 * ((back * 7) % 5) - (3_600 if weekday > 4 else 0)
        add(minute - timedelta(days=back), 6, pending=sent, sent=sent, delivered=sent * 9 // 10, failed=sent // 70)
    for passed in range(50):
        at = minute - timedelta(days=2, minutes=-passed)
        add(at, 1, sent=232, delivered=214, failed=7 + passed % 3)
    for passed in range(15):
        at = minute - timedelta(minutes=15 - passed)
        add(at, 2, sent=260 + 15 * (passed * 3 % 7), delivered=200 + passed, failed=4)
    add(minute, 2, sent=250, delivered=180)
    for passed in range(12):
        add(minute - timedelta(minutes=50 - passed), 5, sent=60 + 12 * (passed % 5))
    session.execute(sa.insert(StatusFlow), flows)


def _add_processes(session: Session, now: datetime) -> None:
    for name, kind, capacity in (
        ("dispatch-1:7:a4", "dispatcher", 0),
        ("dispatch-2:7:c1", "dispatcher", 0),
        ("sender-1:11:9f", "sender", 4),
        ("sender-1:12:7b", "sender", 4),
    ):
        session.add(
            Process(id=name, kind=kind, capacity=capacity, started_at=now - timedelta(days=4), heartbeat_at=now + AHEAD)
        )
    session.add(Leader(role="dispatcher", holder="dispatch-1:7:a4", lease_until=now + AHEAD))
    tally = gateway.Tally(answered=3_900, troubled=12, slowed=4)
    for milliseconds in (28, 41, 44, 47, 52, 58, 63, 71, 88, 140, 260):
        tally.time(milliseconds)
    gateway.add_tallies(session, {2: tally})
    session.execute(sa.text("UPDATE gateway_tally SET at = now() + interval '1 day'"))


def _add_imports(session: Session, now: datetime) -> None:
    job = ImportJob(
        state=ImportState.COMPLETED,
        delimiter=";",
        columns=["phone", "tags", "name"],
        total=12_003,
        processed=12_003,
        created=11_600,
        updated=400,
        rejected=3,
        created_at=now - timedelta(days=9),
        finished_at=now - timedelta(days=9) + timedelta(seconds=4),
    )
    session.add(job)
    session.flush()
    for line, reason, row in (
        (17, "phone: '12345' has too few or too many digits", '["12345", "vip", "Anna"]'),
        (4_211, "phone: is empty", '["", "newsletter", "Ivan"]'),
        (9_870, "timezone: 'Moscow' is not an IANA time zone such as Europe/Moscow", '["+79160000000", "", "Eva"]'),
    ):
        session.add(RejectedRow(import_id=job.id, line=line, reason=reason, row=row))
    running = {"processed": 31_000, "created": 30_100, "updated": 900}
    session.add(
        ImportJob(
            state=ImportState.RUNNING,
            delimiter=",",
            columns=["phone"],
            total=50_000,
            lease_until=now + AHEAD,
            worker_id="sender-1",
            created_at=now,
            **running,
        )
    )


def _add_history(session: Session, now: datetime) -> None:
    api_keys.create(session, "CRM", Scope.FULL, "mk_sample_key_of_the_crm")
    api_keys.create(session, "Gateway receipts", Scope.RECEIPTS, "mk_sample_key_of_the_gateway")
    session.execute(sa.update(ApiKey).values(last_used_at=now - timedelta(minutes=3)))
    anna = session.scalars(sa.select(Client).order_by(Client.id)).first()
    assert anna is not None
    for minutes, actor, action, subject, before, after in (
        (60 * 48 + 20, ANNA, "mailing.create", "mailing:1", None, {"name": "Black Friday: early access"}),
        (60 * 48 + 9, ANNA, "mailing.change", "mailing:1", {"text": "Black Friday"}, {"text": "Black Friday starts"}),
        (60 * 24, ANNA, "mailing.cancel", "mailing:6", None, {"state": "cancelled"}),
        (180, "key:1 CRM", "mailing.create", "mailing:5", None, {"name": "Your points expire"}),
        (170, ANNA, "mailing.pause", "mailing:5", None, {"state": "paused"}),
        (16, "key:1 CRM", "mailing.create", "mailing:2", None, {"name": "Winter tyres"}),
        (5, ANNA, "client.change", f"client:{anna.id}", {"tags": []}, {"tags": ["vip"]}),
    ):
        audit.act_as(session, actor, "198.51.100.7")
        audit.record(session, action, subject, before, after)
        session.execute(
            sa.text("UPDATE audit_entry SET at = :at WHERE id = (SELECT max(id) FROM audit_entry)"),
            {"at": now - timedelta(minutes=minutes)},
        )
    audit.act_as(session, audit.SYSTEM, None)

"""The numbers of a report, from messages that really moved, and the alerts that the state of things raises."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from db.models import GatewayState, Mailing, MailingState, Message, MessageStatus, StatusFlow
from db.queries import receipts, report_deliveries, reports, statistics
from db.queries.statistics import no_counts
from reporter.alerts import current_alerts
from reporter.facts import collect
from reporter.periods import Kind, Period, local_day
from tests.factories import make_client, make_mailing, make_message

ZONE = "Europe/Moscow"
DAY = Period(Kind.DAILY, date(2026, 11, 22), ZONE)


def today() -> Period:
    return Period(Kind.DAILY, local_day(datetime.now(UTC), ZONE), ZONE)


def move(session: Session, ids: list[int], status: MessageStatus, **values: Any) -> None:
    """Change messages as the sender does: in one statement, under the trigger."""
    due = {"next_attempt_at": sa.func.now() if status is MessageStatus.PENDING else None}
    session.execute(sa.update(Message).where(Message.id.in_(ids)).values(status=status, **due, **values))
    session.commit()


def flow(session: Session, mailing: Mailing, minute: datetime, status: MessageStatus, amount: int) -> None:
    session.add(StatusFlow(minute=minute, mailing_id=mailing.id, status=status, amount=amount))
    session.commit()


def test_the_totals_of_a_day_are_what_happened_to_the_messages(session: Session) -> None:
    mailing = make_mailing(session, name="Sale")
    ids = [
        make_message(session, mailing, make_client(session), status=MessageStatus.PENDING, attempts=1).id
        for _ in range(10)
    ]
    now = datetime.now(UTC)
    move(session, ids[:6], MessageStatus.SENT, sent_at=now)
    move(session, ids[:3], MessageStatus.DELIVERED)
    move(session, ids[3:4], MessageStatus.FAILED, last_error="receipt")  # accepted, and then not delivered
    move(session, ids[6:7], MessageStatus.FAILED, last_error="http_400")
    move(session, ids[7:8], MessageStatus.EXPIRED, last_error="ended")
    receipts.apply(session, ids[8], MessageStatus.DELIVERED, None, now)  # the answer was lost, the receipt came
    session.commit()

    facts = collect(session, today(), now)

    assert facts.totals == no_counts() | {
        "pending": 10, "sent": 7, "delivered": 4, "failed": 2, "expired": 1,
    }  # fmt: skip
    (row,) = facts.mailings
    assert row.arrivals == facts.totals
    assert row.counts == statistics.of_mailing(session, mailing.id)
    assert row.audience == 10
    assert facts.reasons == [("http_400", 1), ("receipt", 1)]
    assert [(each.name, each.messages) for each in facts.waiting] == [("Sale", 1)]


def test_what_is_retried_is_counted_each_time_it_arrives(session: Session) -> None:
    mailing = make_mailing(session)
    message = make_message(session, mailing, make_client(session), status=MessageStatus.PENDING)
    move(session, [message.id], MessageStatus.FAILED, last_error="http_422")
    move(session, [message.id], MessageStatus.PENDING)
    move(session, [message.id], MessageStatus.SENT, sent_at=datetime.now(UTC))

    facts = collect(session, today(), datetime.now(UTC))

    assert (facts.totals["failed"], facts.totals["sent"], facts.totals["pending"]) == (1, 1, 1)
    assert facts.reasons == []  # none is failed any more


def test_a_minute_belongs_to_the_local_day_it_is_in(session: Session) -> None:
    mailing = make_mailing(session)
    for minute in (DAY.start - timedelta(minutes=1), DAY.start, DAY.end - timedelta(minutes=1), DAY.end):
        flow(session, mailing, minute, MessageStatus.SENT, 10)

    facts = collect(session, DAY, DAY.end + timedelta(hours=7))

    assert facts.totals["sent"] == 20
    assert [(start, counts["sent"]) for start, counts in facts.columns if counts["sent"]] == [
        (DAY.start, 10),
        (DAY.end - timedelta(hours=1), 10),
    ]
    assert facts.previous is not None
    assert facts.previous["sent"] == 10
    assert facts.averaged == 1


def test_the_average_is_of_the_days_that_there_were(session: Session) -> None:
    mailing = make_mailing(session)
    for back, amount in ((0, 100), (1, 30), (3, 60), (10, 1_000_000)):
        flow(session, mailing, DAY.start - timedelta(days=back), MessageStatus.SENT, amount)

    facts = collect(session, DAY, DAY.end + timedelta(hours=7))

    assert facts.averaged == 7
    assert facts.average is not None
    assert facts.average["sent"] == pytest.approx(90 / 7)


def test_a_deleted_mailing_is_left_out_as_everywhere(session: Session) -> None:
    kept, deleted = make_mailing(session), make_mailing(session, deleted_at=datetime.now(UTC))
    for mailing in (kept, deleted):
        flow(session, mailing, DAY.start, MessageStatus.SENT, 10)

    facts = collect(session, DAY, DAY.end)

    assert facts.totals["sent"] == 10
    assert [row.id for row in facts.mailings] == [kept.id]


def test_what_starts_today_is_what_starts_before_the_local_midnight(session: Session) -> None:
    now = DAY.end + timedelta(hours=7)
    values = {"state": MailingState.SCHEDULED, "ends_at": now + timedelta(days=9)}
    make_mailing(session, name="Tomorrow", starts_at=DAY.end + timedelta(hours=24), **values)
    make_mailing(session, name="Late", starts_at=DAY.end + timedelta(hours=23, minutes=59), **values)
    make_mailing(session, name="Soon", starts_at=now + timedelta(hours=1), **values)

    assert [row.name for row in collect(session, DAY, now).upcoming] == ["Soon", "Late"]


# Promptness ---------------------------------------------------------------------------------------------------------


def sent_after(session: Session, mailing: Mailing, seconds: float, **client: Any) -> None:
    created_at = DAY.start + timedelta(hours=5)  # 05:00 in Moscow
    make_message(
        session,
        mailing,
        make_client(session, **client),
        created_at=created_at,
        sent_at=created_at + timedelta(seconds=seconds),
    )


def in_period(session: Session) -> list[reports.MailingInPeriod]:
    # The trigger has counted the messages of these tests as of now.
    session.execute(sa.update(StatusFlow).values(minute=DAY.start + timedelta(hours=5)))
    session.commit()
    return reports.mailings(session, DAY.start, DAY.end)


def test_a_message_is_prompt_within_ten_seconds_of_being_written(session: Session) -> None:
    mailing = make_mailing(session)
    for seconds in (0.1, 9.9, 10.1, 3600):
        sent_after(session, mailing, seconds)

    found = reports.promptness(session, in_period(session), DAY.start, DAY.end)

    assert found == {mailing.id: reports.Promptness(0.5, is_estimate=False)}


def test_a_message_that_waited_for_its_window_is_due_when_that_opens(session: Session) -> None:
    mailing = make_mailing(session, window_from=time(9), window_to=time(21))
    four_hours, one_hour = 4 * 3600, 3600
    sent_after(session, mailing, four_hours + 5)  # 09:00:05 in Moscow
    sent_after(session, mailing, one_hour + 5, timezone="Asia/Tashkent")  # it is 08:00:05 there: two hours ahead
    sent_after(session, mailing, 2 * one_hour + 60, timezone="Asia/Tashkent")  # 09:01

    found = reports.promptness(session, in_period(session), DAY.start, DAY.end)

    assert found[mailing.id].share == pytest.approx(2 / 3)


def test_of_a_large_mailing_a_sample_is_looked_at(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "SAMPLE", 100)
    mailing = make_mailing(session)
    session.execute(
        sa.text(
            "INSERT INTO message (mailing_id, client_id, status, created_at, sent_at)"
            " SELECT :id, n, CASE WHEN n % 2 = 0 THEN 'sent' ELSE 'delivered' END, CAST(:at AS timestamptz),"
            " CAST(:at AS timestamptz) + CASE WHEN hashint4(n) & 3 < 3 THEN interval '1 s' ELSE interval '1 min' END"
            " FROM generate_series(1, 5000) AS n ORDER BY n"
        ),
        {"id": mailing.id, "at": DAY.start + timedelta(hours=5)},
    )
    session.commit()

    found = reports.promptness(session, in_period(session), DAY.start, DAY.end)

    assert found[mailing.id].is_estimate
    assert found[mailing.id].share == pytest.approx(0.75, abs=0.2)


# Alerts -------------------------------------------------------------------------------------------------------------


def names(session: Session) -> list[str]:
    return [name for name, _ in current_alerts(session, datetime.now(UTC))]


def set_gateway(session: Session, state: GatewayState, minutes_ago: float) -> None:
    session.execute(
        sa.text(
            "UPDATE gateway SET state = :state, reason = 'http_401',"
            " changed_at = now() - make_interval(secs => :ago), probe_at = now()"
        ),
        {"state": state.value, "ago": minutes_ago * 60},
    )
    session.commit()


@pytest.mark.parametrize(
    ("state", "minutes", "expected"),
    [
        (GatewayState.CLOSED, 60, []),
        (GatewayState.OPEN, 9, []),
        (GatewayState.OPEN, 11, ["gateway_open"]),
        (GatewayState.BLOCKED, 0, ["gateway_blocked"]),
    ],
)
def test_a_gateway_that_is_blocked_or_long_open_raises_an_alert(
    session: Session, state: GatewayState, minutes: float, expected: list[str]
) -> None:
    set_gateway(session, state, minutes)
    assert names(session) == []  # nothing waits: nobody need get up

    make_message(session, make_mailing(session), make_client(session), status=MessageStatus.PENDING)
    assert names(session) == expected


def test_a_mailing_that_ended_with_unsent_messages_is_told_of_once(session: Session) -> None:
    done = make_mailing(session, state=MailingState.COMPLETED)
    make_message(session, done, make_client(session))
    late = make_mailing(session, name="Late", state=MailingState.COMPLETED)
    make_message(session, late, make_client(session), status=MessageStatus.EXPIRED)
    running = make_mailing(session)
    make_message(session, running, make_client(session), status=MessageStatus.EXPIRED)

    ((name, detail),) = current_alerts(session, datetime.now(UTC))
    assert name == "mailing_expired"
    assert detail == {"mailings": [{"id": late.id, "name": "Late", "messages": 1}]}

    assert report_deliveries.raise_alert(session, name, detail, ["anna@example.com"], 3600) == 1
    session.commit()
    assert names(session) == []


def test_one_that_the_throttle_kept_back_is_told_of_later(session: Session) -> None:
    told = {"mailings": [{"id": 999, "name": "Told", "messages": 1}]}
    assert report_deliveries.raise_alert(session, "mailing_expired", told, ["a@example.com"], 3600) == 1
    session.commit()
    late = make_mailing(session, state=MailingState.COMPLETED)
    make_message(session, late, make_client(session), status=MessageStatus.EXPIRED)

    def raise_it() -> int:
        ((name, detail),) = current_alerts(session, datetime.now(UTC))
        raised = report_deliveries.raise_alert(session, name, detail, ["a@example.com"], 3600)
        session.commit()
        return raised

    assert raise_it() == 0
    session.execute(
        sa.text(
            "UPDATE report_delivery SET created_at = now() - interval '61 min',"
            " period = to_char(now() - interval '61 min', 'YYYY-MM-DD\"T\"HH24')"
        )
    )
    session.commit()
    assert raise_it() == 1


def test_a_mailing_of_which_nothing_gets_through_raises_an_alert(session: Session) -> None:
    mailing = make_mailing(session, name="Broken")
    flow(session, mailing, datetime.now(UTC), MessageStatus.FAILED, 9)
    assert names(session) == []

    session.execute(sa.text("INSERT INTO gateway_tally (mailing_id, troubled) VALUES (:id, 1)"), {"id": mailing.id})
    session.commit()
    ((name, detail),) = current_alerts(session, datetime.now(UTC))
    assert (name, detail["mailings"]) == ("mailing_failing", [{"id": mailing.id, "name": "Broken", "messages": 10}])

    flow(session, mailing, datetime.now(UTC), MessageStatus.SENT, 1)
    assert names(session) == []

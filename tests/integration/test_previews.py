"""What a mailing would do, test sends, and why messages failed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from db.models import MessageStatus
from db.queries import failures, mailings, previews, test_sends
from db.refusals import ConflictError
from tests.factories import make_client, make_mailing, make_message

NOW = datetime.now(UTC)


@pytest.fixture
def session(emptied_engine: sa.Engine) -> Iterator[Session]:
    """A session on the shared database."""
    with Session(emptied_engine, expire_on_commit=False) as opened:
        yield opened


def test_preview_counts_samples_and_measures(session: Session) -> None:
    for number in range(4):
        attributes = {"name": f"Guest {number}"} if number else {}
        make_client(session, tags=["party"], attributes=attributes)
    make_client(session, tags=["other"])
    make_client(session, tags=["party"], opted_out_at=NOW)
    found = previews.preview(session, "Hi {name}!", [], ["party"], shown=3)
    assert (found.audience, found.sampled, found.lacking) == ((4, True), 4, 1)
    assert [(reading.text, reading.missing) for reading in found.readings] == [
        (None, "name"),
        ("Hi Guest 1!", None),
        ("Hi Guest 2!", None),
    ]
    assert (found.measure.units, found.total_parts, found.total_is_exact) == (11, 3, True)


def test_preview_of_a_text_that_is_too_long_for_a_client_shows_neither_text_nor_want(session: Session) -> None:
    make_client(session, attributes={"name": "x" * 10_000})
    make_client(session, attributes={"name": "Anna"})
    found = previews.preview(session, "Hi {name}!", [], [])
    assert [(reading.text, reading.missing) for reading in found.readings] == [(None, None), ("Hi Anna!", None)]
    assert (found.sampled, found.lacking) == (2, 0)


def test_preview_of_a_text_for_nobody_measures_it_as_it_is(session: Session) -> None:
    found = previews.preview(session, "Привет", ["999"], [])
    assert (found.audience.clients, found.readings, found.measure.parts, found.total_parts) == (0, [], 1, 0)


def test_count_that_takes_too_long_becomes_an_estimate(session: Session) -> None:
    session.execute(
        sa.text(
            "INSERT INTO client (phone, operator_code, timezone)"
            " SELECT '+7916' || lpad(n::text, 7, '0'), '916', 'Europe/Moscow' FROM generate_series(1, 200000) AS n"
        )
    )
    session.execute(sa.text("ANALYZE client"))
    session.commit()
    found = previews.count(session, [], ["none"], patience_seconds=0.001)
    everyone = previews.count(session, ["916"], [], patience_seconds=0.001)
    assert not everyone.is_exact
    assert 150_000 < everyone.clients < 250_000
    # The session goes on with its usual patience.
    assert session.scalar(sa.text("SELECT 1 FROM pg_sleep(0.05)")) == 1
    assert found.clients < 5_000


def test_test_send_is_a_mailing_of_its_own_with_one_message(session: Session) -> None:
    mailing = test_sends.create(session, "Test: Sale", "Hello", "8 916 123-45-67", "Europe/Moscow", NOW)
    again = test_sends.create(session, "Test: Sale", "Hello", "+79161234567", "Europe/Moscow", NOW)
    session.commit()
    rows = session.execute(
        sa.text(
            "SELECT mailing_id, status, phone, tags FROM message JOIN client ON client.id = client_id"
            " ORDER BY mailing_id"
        )
    ).all()
    assert rows == [(each.id, "pending", "+79161234567", ["test"]) for each in (mailing, again)]
    assert mailings.latest(session, mailings.Filter(), None, 10) == []
    assert mailings.latest(session, mailings.Filter(is_test=True), None, 10) == [again, mailing]


def test_test_send_to_a_client_who_opted_out_is_refused(session: Session) -> None:
    client = make_client(session, opted_out_at=NOW)
    with pytest.raises(ConflictError):
        test_sends.create(session, "Test", "Hello", client.phone, "Europe/Moscow", NOW)


def test_reasons_are_ranked(session: Session) -> None:
    mailing, other = make_mailing(session), make_mailing(session)
    for reason, amount in (("timeout", 1), ("http_400", 3), ("receipt", 2)):
        for _ in range(amount):
            client = make_client(session)
            make_message(session, mailing, client, status=MessageStatus.FAILED, last_error=reason)
            make_message(session, other, client, status=MessageStatus.EXPIRED, last_error="ended")
    assert failures.ranked(session, mailing.id) == [("http_400", 3, True), ("receipt", 2, True), ("timeout", 1, True)]
    assert failures.ranked(session, other.id) == []

"""Pages of messages against a plain search through all of them: every filter, both directions, from anywhere."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from db.models import Batch, MailingState, Message, MessageStatus
from db.queries import audience, batches, mailings, messages
from db.queries.messages import Filter
from tests.factories import make_client, make_mailing, make_message

STATUSES = list(MessageStatus)
REASONS = ("http_400", "timeout")
CLIENTS = 40


@pytest.fixture(scope="module")
def engine(module_engine: sa.Engine) -> sa.Engine:
    """A database that the tests of this module only read, but for those that roll back."""
    return module_engine


@pytest.fixture(scope="module")
def rows(engine: sa.Engine) -> Sequence[Message]:
    """Messages of every status, of mailings written at the same time, to clients with gaps between their numbers.

    Of the second mailing most wait, of the third few do; all of the fourth were delivered, and the fifth is deleted.
    """
    with Session(engine, expire_on_commit=False) as session:
        return _fill(session)


def _fill(session: Session) -> Sequence[Message]:
    luck = random.Random(6)
    made = [make_mailing(session) for _ in range(5)]
    clients = [make_client(session, id=10 * n + luck.randrange(9)) for n in range(CLIENTS)]
    mixes: list[list[MessageStatus]] = [
        STATUSES,
        [MessageStatus.PENDING] * 6 + [MessageStatus.SENT, MessageStatus.SENDING],
        [MessageStatus.SENT] * 8 + [MessageStatus.PENDING, MessageStatus.FAILED],
        [MessageStatus.DELIVERED],
        STATUSES,
    ]
    for client, (mailing, mix) in itertools.product(clients, list(zip(made, mixes, strict=True))):
        if luck.random() < 0.2:
            continue  # This client is not in the audience.
        status = luck.choice(mix)
        values: dict[str, Any] = {"batch_id": mailing.id} if status is MessageStatus.SENDING else {}
        if status is MessageStatus.FAILED or (status is MessageStatus.PENDING and luck.random() < 0.3):
            values["last_error"] = luck.choice(REASONS)
        make_message(session, mailing, client, status=status, **values)
    found = session.scalars(sa.select(Message).order_by(Message.id)).all()
    for mailing in made:
        held = [m.id for m in found if m.mailing_id == mailing.id and m.status is MessageStatus.SENDING]
        # A batch also names the messages that are recorded already.
        done = [m.id for m in found if m.mailing_id == mailing.id and m.status is MessageStatus.SENT][:2]
        session.add(Batch(id=mailing.id, mailing_id=mailing.id, message_ids=held + done, lease_until=sa.func.now()))
    session.flush()
    session.execute(sa.text("SELECT setval(pg_get_serial_sequence('batch', 'id'), 100)"))
    # Some of those that wait are in planned batches, which is nothing that anybody is told.
    for mailing in made:
        batches.withdraw(session, [batch.id for batch in batches.release(session, [mailing.id], 7)])
    mailings.delete(session, made[-1].id, datetime.now(UTC))
    session.commit()
    return [message for message in found if message.mailing_id != made[-1].id]


def expected(rows: Sequence[Message], wanted: Filter) -> list[int]:
    status = MessageStatus.FAILED if wanted.reason else wanted.status
    return [
        row.id
        for row in rows
        if wanted.mailing_id in (None, row.mailing_id)
        and wanted.client_id in (None, row.client_id)
        and status in (None, row.status)
        and wanted.reason in (None, row.last_error)
    ]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("mailing_id", [None, 1, 2, 3, 4, 5, 99])
@pytest.mark.parametrize(
    "wanted",
    [Filter(), *(Filter(status=status) for status in STATUSES), *(Filter(reason=reason) for reason in REASONS)],
)
def test_a_page_is_what_a_search_through_all_messages_finds(
    session: Session,
    rows: Sequence[Message],
    monkeypatch: pytest.MonkeyPatch,
    wanted: Filter,
    mailing_id: int | None,
    backwards: bool,
) -> None:
    monkeypatch.setattr(messages, "NEAR", 7)
    wanted = wanted._replace(mailing_id=mailing_id)
    matching = expected(rows, wanted)
    assert {row.status for row in rows} == set(STATUSES)

    told = {(row.id, row.status, row.next_attempt_at is None) for row in rows}
    last = rows[-1].id
    for beyond, limit in itertools.product((None, 0, 1, *range(2, last, 9), last, last + 10), (1, 5, 200)):
        from_here = [n for n in matching if beyond is None or (n < beyond if backwards else n > beyond)]
        found = messages.page(session, wanted, beyond, limit, backwards=backwards)
        assert [row.id for row in found] == (from_here[::-1] if backwards else from_here)[:limit]
        assert {(row.id, row.status, row.next_attempt_at is None) for row in found} <= told


def test_the_ids_of_a_mailing_rise_with_those_of_its_clients(
    emptied_engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audience, "CHUNK", 7)
    monkeypatch.setattr(audience, "FIRST_CHUNK", 3)
    with Session(emptied_engine) as session:
        zones = ("Asia/Tokyo", "Europe/Moscow", "America/New_York")
        numbers = random.Random(6).sample(range(1, 1000), 60)
        for number in numbers:  # The rows lie in another order than that of their ids.
            make_client(session, id=number, timezone=zones[number % 3])
        now = datetime.now(UTC)
        window = {"window_from": (now + timedelta(hours=1)).time(), "window_to": (now + timedelta(hours=2)).time()}
        made = [make_mailing(session, state=MailingState.RUNNING, **values) for values in ({}, window)]
        more = {mailing.id for mailing in made}
        while more:  # By turns, as the dispatcher does.
            more = {mailing_id for mailing_id in more if audience.materialise_chunk(session, mailing_id)}
            session.commit()

        for mailing in made:
            of_mailing = sa.select(Message.client_id).where(Message.mailing_id == mailing.id).order_by(Message.id)
            assert list(session.scalars(of_mailing)) == sorted(numbers)

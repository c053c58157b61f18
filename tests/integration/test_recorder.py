"""The thread that brings results into the database."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from db.models import Batch, GatewayTally, Mailing, Message, MessageStatus
from db.queries import batches
from sender.answers import Answer, judge
from sender.clock import DatabaseClock
from sender.delivery import Called, Delivery, Result, Settled, Skip, Skipped
from sender.outcomes import Terms, unsendable
from sender.recorder import Recorder
from tests.factories import make_client, make_mailing, make_message
from tests.integration.conftest import listening, losing_an_answer

PENDING, SENDING, FAILED = MessageStatus.PENDING, MessageStatus.SENDING, MessageStatus.FAILED


@pytest.fixture
def recorder(engine: Engine) -> Iterator[Recorder]:
    """A recorder that is not started yet."""
    made = Recorder(engine, DatabaseClock())
    yield made
    made.give_up()
    made.stop()


def deliver(
    session: Session, recorder: Recorder, messages: int, **mailing_values: Any
) -> tuple[Delivery, batches.TakenBatch]:
    """A batch of a mailing of its own, in a worker's hands."""
    mailing = make_mailing(session, **mailing_values)
    for _ in range(messages):
        make_message(session, mailing, make_client(session), status=PENDING, attempts=0)
    [released] = batches.release(session, [mailing.id], messages)
    [batch] = batches.take(session, [released.id], "a worker")
    session.commit()
    terms = Terms(batch.standing.ends_at, None, is_probe=False, max_attempts=20)
    return Delivery(batch, terms, [], DatabaseClock(), 10.0, recorder), batch


def test_last_result_of_a_batch_ends_it_and_wakes_the_dispatcher(
    session: Session, engine: Engine, recorder: Recorder
) -> None:
    delivery, batch = deliver(session, recorder, 3)

    recorder.start()
    with listening(engine, "work") as wait_for:
        recorder.put(delivery, [Skipped(recipient, Skip.RETURNED) for recipient in batch.recipients])
        assert wait_for(1) == [batches.ROOM]
    recorder.stop()

    assert delivery.done.is_set()
    assert session.scalar(sa.select(sa.func.count()).select_from(Batch)) == 0
    assert set(session.scalars(sa.select(Message.status))) == {PENDING}


def test_results_gather_until_somebody_waits_for_their_places(
    session: Session, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sender.recorder.CALM_GROUP_SECONDS", 60.0)
    first, second = deliver(session, recorder, 1), deliver(session, recorder, 1)
    recorder.start()
    recorder.put(first[0], [Skipped(first[1].recipients[0], Skip.RETURNED)])
    assert first[0].done.wait(10)

    recorder.put(second[0], [Skipped(second[1].recipients[0], Skip.RETURNED)])
    assert not second[0].done.wait(0.3)
    recorder.hurry()
    assert second[0].done.wait(10)


def test_a_result_that_cannot_be_written_takes_no_other_with_it(session: Session, recorder: Recorder) -> None:
    now = datetime.now(UTC)
    # Longer than what an index takes, and no text to compress: PostgreSQL calls that an operational error.
    long = "".join(random.Random(1).choices([chr(code) for code in range(0x4E00, 0x9FA5)], k=1900))

    def fails(recipient: batches.Recipient, reason: str = "text_too_long") -> Result:
        return Settled(recipient, unsendable(recipient, FAILED, reason, now))

    whole, good = deliver(session, recorder, 3)
    damaged, bad = deliver(session, recorder, 5)
    recorder.put(whole, [fails(recipient) for recipient in good.recipients])
    recorder.put(damaged, [fails(bad.recipients[0]), fails(bad.recipients[1], long), fails(bad.recipients[2])])
    recorder.start()
    assert whole.done.wait(10)
    recorder.put(damaged, [fails(recipient) for recipient in bad.recipients[3:]])
    assert damaged.done.wait(10)

    statuses = dict(session.execute(sa.select(Message.id, Message.status)).all())
    assert statuses.pop(bad.recipients[1].message_id) is SENDING
    assert set(statuses.values()) == {FAILED}
    # The sweep of lost leases finds the one that was lost.
    assert session.scalars(sa.select(Batch.id)).all() == [bad.id]


def test_answers_are_counted_once_when_that_of_the_commit_was_lost(
    session: Session, engine: Engine, recorder: Recorder
) -> None:
    recorder._engine, is_lost = losing_an_answer(engine)
    delivery, batch = deliver(session, recorder, 3)
    answer = Answer(5, http_status=200, body=b'{"code": 0}')
    recorder.put(delivery, [Called(recipient, answer, judge(answer)) for recipient in batch.recipients])
    recorder.start()
    assert delivery.done.wait(10)

    assert is_lost.is_set()
    assert set(session.scalars(sa.select(Message.status))) == {MessageStatus.SENT}
    assert session.scalars(sa.select(GatewayTally.answered)).all() == [3]


def test_an_end_that_was_moved_later_goes_for_calls_in_flight(session: Session, recorder: Recorder) -> None:
    """Or else what fails after the old end would be expired for good."""
    delivery, batch = deliver(session, recorder, 1, ends_at=datetime.now(UTC) + timedelta(seconds=30))
    session.execute(sa.update(Mailing).values(ends_at=datetime.now(UTC) + timedelta(days=1)))
    session.commit()

    delivery.renewed(batches.renew(session, "a worker", [batch.id])[batch.id], 10.0, time.monotonic())
    session.commit()
    answer = Answer(5, http_status=429, retry_after=60.0)
    recorder.put(delivery, [Called(batch.recipients[0], answer, judge(answer))])
    recorder.start()
    assert delivery.done.wait(10)

    assert session.scalars(sa.select(Message.status)).all() == [PENDING]

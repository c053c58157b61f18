"""The thread that brings results into the database."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from db.models import Batch, Message, MessageStatus
from db.queries import batches
from sender.clock import DatabaseClock
from sender.delivery import Delivery, Skip, Skipped
from sender.outcomes import Terms
from sender.recorder import Recorder
from tests.factories import make_client, make_mailing, make_message
from tests.integration.conftest import listening


def test_last_result_of_a_batch_ends_it_and_wakes_the_dispatcher(session: Session, engine: Engine) -> None:
    mailing = make_mailing(session)
    for _ in range(3):
        make_message(session, mailing, make_client(session), status=MessageStatus.PENDING, attempts=0)
    released = batches.release(session, mailing.id, 3)
    assert released
    batch = batches.take(session, released[0], "a worker")
    assert batch
    session.commit()
    recorder = Recorder(sessionmaker(engine), DatabaseClock())
    delivery = Delivery(
        batch, Terms(batch.ends_at, None, is_probe=False, max_attempts=20), [], DatabaseClock(), 10.0, recorder
    )

    recorder.start()
    with listening(engine, "work") as wait_for:
        recorder.put(delivery, [Skipped(recipient, Skip.RETURNED) for recipient in batch.recipients])
        assert wait_for(1) == [batches.ROOM]
    recorder.stop()

    assert delivery.done.is_set()
    assert session.scalar(sa.select(sa.func.count()).select_from(Batch)) == 0
    assert set(session.scalars(sa.select(Message.status))) == {MessageStatus.PENDING}

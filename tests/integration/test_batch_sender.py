"""What the actor does with a batch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from db.models import Batch, Message, MessageStatus
from db.queries import batches
from sender.actors import BatchSender
from sender.clock import DatabaseClock
from sender.gateway import GatewayClient
from sender.keeper import Keeper
from sender.pacer import Pacer
from sender.recorder import Recorder
from simulator.client import Simulator
from tests.factories import make_client, make_mailing, make_message

TIMEOUT_SECONDS = 3.0


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator.start() as running:
        yield running


def test_it_does_not_wait_for_the_slowest_call(session: Session, engine: Engine, simulator: Simulator) -> None:
    mailing = make_mailing(session)
    ids = [
        make_message(session, mailing, make_client(session), status=MessageStatus.PENDING, attempts=0).id
        for _ in range(3)
    ]
    released = batches.release(session, mailing.id, 3)
    assert released
    session.commit()
    simulator.control({"kind": "hang", "ids": ids[-1:]})
    clock, sessions = DatabaseClock(), sessionmaker(engine)
    recorder, pacer = Recorder(sessions, clock), Pacer(sessions)
    client = GatewayClient(simulator.url, None, TIMEOUT_SECONDS, 10, pacer)
    keeper = Keeper(engine, "a worker", 1, clock, pacer, None, client.wake)
    sender = BatchSender(sessions, "a worker", client, recorder, keeper, clock, max_attempts=20)
    recorder.on_recorded, recorder.on_done = client.recorded, sender.note_done
    recorder.start()
    client.start()

    sender.send_batch(released[0])

    assert session.scalars(sa.select(Batch.is_begun)).all() == [True]
    assert batches.outstanding(session) == {mailing.id: 0}
    session.commit()
    keeper.wait_for_all(4 * TIMEOUT_SECONDS)  # The call that hangs is given up.
    client.close()
    recorder.stop()
    assert session.scalars(sa.select(Message.status).order_by(Message.id)).all() == ["sent", "sent", "pending"]
    assert not session.scalars(sa.select(Batch)).all()

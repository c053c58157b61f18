"""What the actor does with batches."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from db import placeholders
from db.models import Batch, Mailing, MailingState, Message, MessageStatus
from db.queries import batches
from sender import actors
from sender.actors import BatchSender
from sender.clock import DatabaseClock
from sender.gateway import GatewayClient
from sender.keeper import Keeper
from sender.pacer import Pacer
from sender.recorder import Recorder
from simulator.client import Simulator
from tests.factories import make_client, make_mailing, make_message
from tests.integration.conftest import losing_an_answer
from tools.processes import wait_until

TIMEOUT_SECONDS = 3.0


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator.start() as running:
        yield running


@contextmanager
def sending(engine: Engine, url: str) -> Iterator[BatchSender]:
    """A sending process's parts, without its beat: what nobody tells it, it must have learned with the batch."""
    clock = DatabaseClock()
    recorder, pacer = Recorder(engine, clock), Pacer(engine)
    client = GatewayClient(url, None, TIMEOUT_SECONDS, 10, pacer)
    keeper = Keeper(engine, "a worker", 1, clock, pacer, None, client.wake)
    sender = BatchSender(engine, "a worker", client, recorder, keeper, clock, max_attempts=20)
    recorder.start()
    client.start()
    yield sender
    keeper.wait_for_all(4 * TIMEOUT_SECONDS)
    client.close()
    recorder.stop()


def released(session: Session, count: int) -> tuple[Mailing, Sequence[int], int]:
    """A mailing with so many messages in a batch: it, their ids, the batch's."""
    mailing = make_mailing(session)
    ids = [
        make_message(session, mailing, make_client(session), status=MessageStatus.PENDING, attempts=0).id
        for _ in range(count)
    ]
    [batch] = batches.release(session, [mailing.id], count)
    session.commit()
    return mailing, ids, batch.id


def test_it_does_not_wait_for_the_slowest_call(session: Session, engine: Engine, simulator: Simulator) -> None:
    mailing, ids, batch_id = released(session, 3)
    simulator.control({"kind": "hang", "ids": ids[-1:]})
    with sending(engine, simulator.url) as sender:
        sender.send_batches(batch_id)
        assert session.scalars(sa.select(Batch.is_begun)).all() == [True]
        assert batches.under_way(session) == [(mailing.id, 3, True, True)]
        session.commit()
    # The call that hangs was given up.
    assert session.scalars(sa.select(Message.status).order_by(Message.id)).all() == ["sent", "sent", "pending"]
    assert not session.scalars(sa.select(Batch)).all()


def test_results_are_recorded_soon_when_calls_wait_for_their_places(
    session: Session, engine: Engine, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sender.recorder.CALM_GROUP_SECONDS", 60.0)
    _, ids, batch_id = released(session, 30)  # thrice as many as may be in flight
    with sending(engine, simulator.url) as sender:
        sender.send_batches(batch_id)
        assert wait_until(lambda: not session.scalars(sa.select(Batch.id)).all(), 20)

    assert simulator.received()["requests"] == len(ids)


def lose_next_answer(sender: BatchSender, engine: Engine) -> None:
    """Have the sender's next commit reach PostgreSQL, and its answer be lost."""
    sender._engine, _ = losing_an_answer(engine)  # The recorder has another.


def test_batches_that_were_taken_without_the_process_hearing_of_it_are_sent(
    session: Session, engine: Engine, simulator: Simulator
) -> None:
    _, _, batch_id = released(session, 3)
    with sending(engine, simulator.url) as sender:
        lose_next_answer(sender, engine)
        sender.send_batches(batch_id)

    assert simulator.received()["requests"] == 3
    assert session.execute(sa.select(Message.status, Message.attempts).distinct()).all() == [("sent", 1)]
    assert not session.scalars(sa.select(Batch)).all()


def test_a_batch_that_is_being_sent_is_not_taken_again(session: Session, engine: Engine, simulator: Simulator) -> None:
    _, ids, batch_id = released(session, 3)
    simulator.control({"kind": "hang", "ids": ids[-1:]})
    with sending(engine, simulator.url) as sender:
        sender.send_batches(batch_id)
        lose_next_answer(sender, engine)
        sender.send_batches(batch_id)  # RabbitMQ brought it once more, as it does after a lost connection.

    assert simulator.received()["requests"] == 3


def test_a_batch_that_two_threads_took_is_sent_by_one(session: Session, engine: Engine, simulator: Simulator) -> None:
    _, _, batch_id = released(session, 3)
    with sending(engine, simulator.url) as sender:
        lose_next_answer(sender, engine)
        first = sender._take([batch_id])
        lose_next_answer(sender, engine)
        assert sender._take([batch_id]) == first
        begun = [sender._begin(batch, time.monotonic()) for batch in first * 2]

    assert [delivery is not None for delivery in begun] == [True, False]
    assert simulator.received()["requests"] == 3


@pytest.mark.parametrize("state", [MailingState.PAUSED, MailingState.CANCELLED])
def test_a_batch_that_was_long_in_the_queue_is_given_back_when_its_mailing_no_longer_runs(
    session: Session, engine: Engine, simulator: Simulator, state: MailingState
) -> None:
    mailing, _, batch_id = released(session, 3)
    mailing.state = state
    mailing.finished_at = datetime.now(UTC) if state is MailingState.CANCELLED else None
    session.commit()
    with sending(engine, simulator.url) as sender:
        sender.send_batches(batch_id)
    assert simulator.received()["requests"] == 0
    assert session.scalars(sa.select(Message.status)).all() == ["pending"] * 3


def test_batches_of_several_mailings_are_sent_each_as_its_mailing_says(
    session: Session, engine: Engine, simulator: Simulator
) -> None:
    first, _, first_batch = released(session, 3)
    paused, _, paused_batch = released(session, 2)
    first.text = "Hello {name|there}!"
    paused.state = MailingState.PAUSED
    session.commit()
    with sending(engine, simulator.url) as sender:
        sender.send_batches(first_batch, paused_batch, paused_batch + 1)

    assert simulator.received()["accepted"] == 3
    rows = session.execute(sa.select(Message.mailing_id, Message.status).distinct().order_by(Message.mailing_id))
    assert [tuple(row) for row in rows] == [(first.id, "sent"), (paused.id, "pending")]
    assert not session.scalars(sa.select(Batch)).all()


def test_a_batch_that_cannot_be_begun_leaves_those_taken_with_it_alone(
    session: Session, engine: Engine, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [released(session, 2) for _ in range(3)]
    made[0][0].text = "Broken"
    session.commit()
    broken = made[0][2]

    def fill(text: str, attributes: Mapping[str, str]) -> str:
        if text == "Broken":
            raise MemoryError
        return placeholders.fill(text, attributes)

    monkeypatch.setattr(actors, "fill", fill)
    with sending(engine, simulator.url) as sender:
        sender.send_batches(*(batch_id for _, _, batch_id in made))

    assert simulator.received()["accepted"] == 4
    assert session.scalars(sa.select(Batch.id)).all() == [broken]


def test_a_quick_batch_beside_a_slow_one_is_finished_first(
    session: Session, engine: Engine, simulator: Simulator
) -> None:
    _, slow_ids, slow_batch = released(session, 2)
    _, _, quick_batch = released(session, 2)
    simulator.control({"kind": "hang", "ids": slow_ids[:1]})
    with sending(engine, simulator.url) as sender:
        sender.send_batches(slow_batch, quick_batch)
        assert wait_until(lambda: _left(session) == [(slow_batch, True)], 2)


def _left(session: Session) -> list[tuple[int, bool]]:
    session.rollback()
    return [(row.id, row.is_begun) for row in session.execute(sa.select(Batch.id, Batch.is_begun))]

"""Planned batches: released as they are, taken apart, settled, and never told of as what they are stored as."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from db.models import Client, Mailing, MailingState, Message, MessageStatus, PlannedBatch
from db.queries import audience, batches, clients, receipts, statistics
from db.queries import planned as planned_batches
from db.queries.outcomes import Outcome
from db.refusals import ConflictError
from tests.factories import make_client, make_mailing
from tests.integration.test_batches import SENT, counted, record, statuses, take


@pytest.fixture
def engine(emptied_engine: Engine) -> Engine:
    """Nothing here needs a database of its own."""
    return emptied_engine


@pytest.fixture
def planned(session: Session, monkeypatch: pytest.MonkeyPatch) -> Mailing:
    """A running mailing to ten clients, written in batches of four, four and two messages."""
    monkeypatch.setattr(planned_batches, "BATCH_SIZE", 4)
    for _ in range(10):
        make_client(session)
    made = make_mailing(session)
    assert not audience.materialise_chunk(session, made.id)
    session.commit()
    return made


def plans(session: Session) -> list[int]:
    """How many messages the planned batches have, the next one first."""
    return [len(ids) for ids in session.scalars(sa.select(PlannedBatch.message_ids).order_by(PlannedBatch.id))]


def check_counts(session: Session, **expected: int) -> None:
    assert statuses(session) == expected
    assert statistics.recount(session) == []


def test_what_is_written_in_batches_waits_until_they_are_released(session: Session, planned: Mailing) -> None:
    check_counts(session, pending=10)
    flow = session.execute(sa.text("SELECT status, sum(amount)::int FROM status_flow GROUP BY status")).all()
    assert flow == [("pending", 10)]
    assert audience.due(session) == {planned.id: True}

    [first] = batches.release_planned(session, [planned.id], 4)
    assert (first.mailing_id, first.messages, first.has_more) == (planned.id, 4, True)
    check_counts(session, pending=6, sending=4)
    [second], [third] = (batches.release_planned(session, [planned.id], 4) for _ in range(2))
    assert [second.has_more, third.has_more] == [True, False]
    assert batches.release_planned(session, [planned.id], 4) == []
    assert audience.due(session) == {}
    check_counts(session, sending=10)

    batch = take(session, second.id)
    assert record(session, batch.id, [Outcome(r.message_id, SENT, counted=True) for r in batch.recipients]) == 4
    batches.finish(session, [batch.id])
    session.commit()
    check_counts(session, sending=6, sent=4)
    clients = session.scalars(sa.select(Message.client_id).where(Message.status == SENT).order_by(Message.client_id))
    everyone = session.scalars(sa.select(Client.id).order_by(Client.id)).all()
    assert clients.all() == everyone[4:8]


def test_planned_batches_of_small_mailings_go_together_as_many_as_fit(session: Session, planned: Mailing) -> None:
    small, paused, large = (make_mailing(session, state=state) for state in ("running", "paused", "running"))
    for other, size in ((small, 3), (paused, 3), (large, 4)):
        planned_batches.BATCH_SIZE = size
        audience.materialise_chunk(session, other.id)
    session.commit()

    released = batches.release_planned(session, [small.id, paused.id, planned.id, large.id], 10)

    assert {batch.mailing_id: batch.messages for batch in released} == {small.id: 3, planned.id: 4}


@pytest.mark.parametrize("is_probe", [False, True])
def test_where_less_is_wanted_a_planned_batch_is_taken_apart(
    session: Session, planned: Mailing, is_probe: bool
) -> None:
    [batch] = batches.release(session, [planned.id], 3, is_probe=is_probe)
    session.commit()
    assert (batch.messages, batch.has_more) == (3, True)
    assert plans(session) == [4, 2]
    check_counts(session, pending=7, sending=3)
    assert [r.messages for _ in range(3) for r in batches.release(session, [planned.id], 3)] == [1, 3, 1]
    assert plans(session) == [2]


def test_a_planned_batch_that_could_not_be_published_is_planned_again(session: Session, planned: Mailing) -> None:
    [batch] = batches.release_planned(session, [planned.id], 4)
    assert batches.withdraw(session, [batch.id]) == 1
    session.commit()
    assert plans(session) == [4, 4, 2]
    check_counts(session, pending=10)
    assert batches.take(session, [batch.id], "late") == []
    assert [again.id for again in batches.release_planned(session, [planned.id], 4)] == [batch.id]


def test_nothing_planned_is_an_orphan(session: Session, planned: Mailing) -> None:
    session.execute(sa.text("INSERT INTO status_count (mailing_id, status, amount) VALUES (1, 'sending', 1)"))
    assert batches.sweep_orphans(session, planned.id) == 0


@pytest.mark.parametrize("state", [MailingState.CANCELLED, MailingState.PAUSED])
def test_what_is_planned_is_settled_when_the_mailing_ends(
    session: Session, planned: Mailing, state: MailingState
) -> None:
    batches.release_planned(session, [planned.id], 4)
    assert audience.settle_chunk(session, planned.id) == 0
    planned.state = state
    if state is MailingState.CANCELLED:
        planned.finished_at = datetime.now(UTC)
    else:
        planned.starts_at, planned.ends_at = (datetime.now(UTC) - timedelta(hours=hours) for hours in (2, 1))
    session.commit()
    assert audience.settle_chunk(session, planned.id) == 6
    session.commit()
    check_counts(session, **{"sending": 4, "cancelled" if state is MailingState.CANCELLED else "expired": 6})
    assert plans(session) == []


def test_a_deleted_mailing_takes_its_planned_batches_with_it(session: Session, planned: Mailing) -> None:
    mailing_id = planned.id
    session.execute(sa.update(Mailing).values(deleted_at=sa.func.now()))
    while audience.remove_chunk(session, mailing_id):
        session.commit()
    session.commit()
    assert session.scalar(sa.select(Mailing.id)) is None
    assert (plans(session), counted(session)) == ([], {})


@pytest.mark.parametrize("how", ["delete", "opt out"])
def test_who_is_withdrawn_is_taken_out_of_a_planned_batch(session: Session, planned: Mailing, how: str) -> None:
    [released] = batches.release_planned(session, [planned.id], 4)
    session.commit()
    everyone = session.scalars(sa.select(Client.id).order_by(Client.id)).all()
    for client_id in (everyone[0], everyone[5], *everyone[8:]):
        if how == "delete":
            clients.delete(session, client_id)
        else:
            clients.edit(session, client_id, {"opted_out_at": datetime.now(UTC)}, datetime.now(UTC))
        session.commit()
    assert plans(session) == [3]  # Of the last nobody is left, and it is gone.
    check_counts(session, pending=3, sending=4, cancelled=3)
    # Who was released already is told of to the workers, and found out by the one that takes the batch.
    assert len(take(session, released.id).recipients) == 4
    [rest] = batches.release_planned(session, [planned.id], 4)
    session.commit()
    assert len(take(session, rest.id).recipients) == rest.messages == 3
    assert not rest.has_more


def test_a_release_while_somebody_is_withdrawn_leaves_the_batch_for_later(
    session: Session, engine: Engine, planned: Mailing
) -> None:
    everyone = session.scalars(sa.select(Client.id).order_by(Client.id)).all()
    session.commit()
    with Session(engine) as caller:
        clients.delete(caller, everyone[0])
        assert batches.release_planned(session, [planned.id], 4) == []
        session.commit()
        caller.commit()
    assert [batch.messages for batch in batches.release_planned(session, [planned.id], 4)] == [3]
    session.commit()
    check_counts(session, pending=6, sending=3, cancelled=1)


def test_withdrawals_and_releases_at_once_count_each_message_once(
    session: Session, engine: Engine, planned: Mailing
) -> None:
    everyone = list(session.scalars(sa.select(Client.id)))
    mailing_id = planned.id
    session.commit()
    barrier = threading.Barrier(4)

    def withdraw(client_ids: list[int]) -> None:
        barrier.wait()
        for client_id in client_ids:
            with Session(engine) as own, own.begin():
                clients.delete(own, client_id)

    def release_all() -> None:
        barrier.wait()
        for _ in range(10):
            with Session(engine) as own, own.begin():
                released = batches.release_planned(own, [mailing_id], 4)
            with Session(engine) as own, own.begin():
                batches.withdraw(own, [batch.id for batch in released][:1])

    with ThreadPoolExecutor(4) as pool:
        work = [pool.submit(withdraw, everyone[n::2]) for n in range(2)] + [pool.submit(release_all) for _ in range(2)]
        for done in work:
            done.result(30)
    assert statistics.recount(session) == []
    assert sum(statuses(session).values()) == 10


def test_a_receipt_settles_what_was_to_be_sent_again(session: Session, planned: Mailing) -> None:
    for batch in batches.release_planned(session, [planned.id], 4):
        taken = take(session, batch.id)
    again = [r.message_id for r in taken.recipients]
    now = datetime.now(UTC)
    retried = [Outcome(n, MessageStatus.PENDING, True, due_at=now, error="timeout", outcome="retry") for n in again]
    record(session, taken.id, retried)
    batches.finish(session, [taken.id])
    batches.withdraw(session, [batch.id for batch in batches.release(session, [planned.id], 4)])
    session.commit()
    assert plans(session) == [4, 2, 4]

    assert receipts.apply(session, again[0], MessageStatus.DELIVERED, None, now) is MessageStatus.DELIVERED
    session.commit()

    assert plans(session) == [4, 2, 3]
    check_counts(session, pending=9, delivered=1)
    never_sent = session.scalars(sa.select(PlannedBatch.message_ids).order_by(PlannedBatch.id)).all()[0][0]
    with pytest.raises(ConflictError):
        receipts.apply(session, never_sent, MessageStatus.DELIVERED, None, now)
    session.rollback()
    check_counts(session, pending=9, delivered=1)

"""Release, take, record, give back and sweep: the statements that account for every message."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from db.models import Attempt, Batch, Mailing, MailingState, Message, MessageStatus, Receipt
from db.queries import audience, batches, notifications
from db.queries.outcomes import Outcome
from db.queries.outcomes import record as record_outcomes
from tests.factories import make_client, make_mailing, make_message, told_statuses
from tests.integration.conftest import listening
from tests.plans import rescan_subqueries

SENT = MessageStatus.SENT


@pytest.fixture
def engine(emptied_engine: Engine) -> Engine:
    """Nothing here needs a database of its own."""
    return emptied_engine


@pytest.fixture
def mailing(session: Session) -> Mailing:
    """A running mailing with ten due messages."""
    made = make_mailing(session)
    for _ in range(10):
        make_message(session, made, make_client(session), status=MessageStatus.PENDING, attempts=0)
    return made


def release(session: Session, mailing: Mailing, size: int = 10) -> int:
    [batch] = batches.release(session, [mailing.id], size)
    session.commit()
    return batch.id


def take(session: Session, batch_id: int, worker: str = "a") -> batches.TakenBatch:
    [taken] = batches.take(session, [batch_id], worker)
    session.commit()
    return taken


def record(session: Session, batch_id: int, outcomes: list[Outcome]) -> int:
    return record_outcomes(session, [(batch_id, outcome) for outcome in outcomes])


def statuses(session: Session) -> dict[str, int]:
    session.expire_all()
    return told_statuses(session)


def counted(session: Session) -> dict[str, int]:
    rows = session.execute(
        sa.text("SELECT status, sum(amount)::int FROM status_count GROUP BY status HAVING sum(amount) <> 0")
    )
    return {row[0]: row[1] for row in rows}


def age_leases(session: Session) -> None:
    session.execute(sa.update(Batch).values(lease_until=sa.func.now() - timedelta(seconds=1)))
    session.commit()


def test_a_release_takes_what_is_due_and_no_more_than_asked(session: Session, mailing: Mailing) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    make_message(session, mailing, make_client(session), status=MessageStatus.PENDING, next_attempt_at=later)
    assert [batch.messages for batch in batches.release(session, [mailing.id], 4)] == [4]
    assert [batch.messages for batch in batches.release(session, [mailing.id], 500)] == [6]
    assert batches.release(session, [mailing.id], 500) == []
    session.commit()
    assert statuses(session) == counted(session) == {"sending": 10, "pending": 1}
    assert sorted(batches.under_way(session)) == [(mailing.id, 4, False, False), (mailing.id, 6, False, False)]


def test_small_mailings_are_released_together_in_their_turn(session: Session, mailing: Mailing) -> None:
    small, tiny, waiting = make_mailing(session), make_mailing(session), make_mailing(session)
    for owner, size in ((small, 3), (tiny, 1), (waiting, 2)):
        for _ in range(size):
            make_message(session, owner, make_client(session), status=MessageStatus.PENDING, attempts=0)
    paused = make_mailing(session, state=MailingState.PAUSED)
    make_message(session, paused, make_client(session), status=MessageStatus.PENDING, attempts=0)

    in_turn = [small.id, paused.id, tiny.id, mailing.id, waiting.id]
    released = {batch.mailing_id: batch for batch in batches.release(session, in_turn, 8)}
    session.commit()

    assert {mailing_id: batch.messages for mailing_id, batch in released.items()} == {
        small.id: 3,
        tiny.id: 1,
        mailing.id: 4,
    }
    missing = max(batch.id for batch in released.values()) + 1
    taken = batches.take(session, [*(batch.id for batch in released.values()), missing], "a")
    assert {batch.mailing_id: len(batch.recipients) for batch in taken} == {small.id: 3, tiny.id: 1, mailing.id: 4}
    for batch in taken:
        owners = sa.select(Message.mailing_id).where(Message.id.in_(r.message_id for r in batch.recipients)).distinct()
        assert session.scalars(owners).all() == [batch.mailing_id]
    assert statuses(session) == counted(session) == {"sending": 8, "pending": 9}


def test_a_batch_whose_calls_have_all_begun_takes_no_place(session: Session, engine: Engine, mailing: Mailing) -> None:
    first, second = release(session, mailing, 2), release(session, mailing, 2)

    with listening(engine, "work") as wait_for:
        batches.note_begun(session, [first])
        session.commit()
        assert wait_for(1) == [batches.ROOM]

    assert sorted(batch.is_begun for batch in batches.under_way(session)) == [False, True]
    batches.note_begun(session, [second])
    assert [batch.is_begun for batch in batches.under_way(session)] == [True, True]


@pytest.mark.parametrize("state", [MailingState.PAUSED, MailingState.CANCELLED])
def test_nothing_is_released_of_a_mailing_that_does_not_run(
    session: Session, mailing: Mailing, state: MailingState
) -> None:
    finished_at = sa.func.now() if state is MailingState.CANCELLED else None
    session.execute(sa.update(Mailing).values(state=state, finished_at=finished_at))
    assert batches.release(session, [mailing.id], 10) == []


def test_nothing_is_released_after_the_end(session: Session, mailing: Mailing) -> None:
    mailing.ends_at = mailing.starts_at + timedelta(seconds=1)
    session.commit()
    assert batches.release(session, [mailing.id], 10) == []


def test_two_dispatchers_at_once_release_each_message_once(engine: Engine, session: Session, mailing: Mailing) -> None:
    mailing_id = mailing.id
    session.commit()
    barrier = threading.Barrier(4)
    released: list[int] = []

    def dispatch() -> None:
        barrier.wait()
        for _ in range(5):
            with Session(engine) as own, own.begin():
                released.extend(batch.messages for batch in batches.release(own, [mailing_id], 2))

    threads = [threading.Thread(target=dispatch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(released) == 10
    assert statuses(session) == {"sending": 10}


def test_a_batch_is_taken_once(session: Session, mailing: Mailing) -> None:
    batch_id = release(session, mailing)
    taken = take(session, batch_id)
    assert len(taken.recipients) == 10
    assert taken.text == "Hello"
    assert batches.take(session, [batch_id, batch_id + 1], "b") == []


def test_who_was_not_told_that_the_batch_is_his_has_it_again(session: Session, mailing: Mailing) -> None:
    batch = take(session, release(session, mailing))
    assert batches.take(session, [batch.id], "a") == []
    assert batches.take(session, [batch.id], "b", again=[batch.id]) == []
    assert batches.take(session, [batch.id], "a", again=[batch.id]) == [batch]


def test_a_recipient_shows_what_became_of_the_client(session: Session, mailing: Mailing) -> None:
    gone, out, *_ = session.scalars(sa.select(Message).order_by(Message.id)).all()
    batch_id = release(session, mailing)
    session.execute(sa.text("DELETE FROM client WHERE id = :id"), {"id": gone.client_id})
    session.execute(sa.text("UPDATE client SET opted_out_at = now() WHERE id = :id"), {"id": out.client_id})
    recipients = {r.message_id: r for r in take(session, batch_id).recipients}
    assert recipients[gone.id].phone is None
    assert recipients[out.id].opted_out is True
    assert sum(r.phone is not None and not r.opted_out for r in recipients.values()) == 8


def test_outcomes_are_written_once(session: Session, mailing: Mailing) -> None:
    batch = take(session, release(session, mailing))
    now = session.scalar(sa.select(sa.func.now()))
    first, second, third, fourth, *rest = [r.message_id for r in batch.recipients]
    outcomes = [
        Outcome(first, SENT, counted=True),
        Outcome(
            second, MessageStatus.FAILED, True, error="http_400", outcome="failed", reason="http_400", http_status=400
        ),
        Outcome(third, MessageStatus.PENDING, True, now, "timeout", "retry", "timeout", None, 10_003, now),
        Outcome(fourth, MessageStatus.PENDING, False, now, "http_401", "blocked", "http_401", 401, 7, now),
    ]
    back = [Outcome(message_id, MessageStatus.PENDING, due_at=now, keeps_error=True) for message_id in rest]
    assert record(session, batch.id, outcomes) == 4
    assert record(session, batch.id, outcomes) == 0
    assert record(session, batch.id, back) == 6
    batches.finish(session, [batch.id])
    session.commit()
    assert statuses(session) == counted(session) == {"sent": 1, "failed": 1, "pending": 8}
    assert session.scalar(sa.select(sa.func.count()).select_from(Batch)) == 0
    sent = session.get_one(Message, first)
    assert (sent.attempts, sent.batch_id, sent.last_error) == (1, None, None)
    assert sent.sent_at is not None
    history = {a.message_id: a for a in session.scalars(sa.select(Attempt))}
    assert set(history) == {second, third, fourth}  # a first success costs no row
    assert (history[third].attempt, history[third].outcome, history[third].milliseconds) == (1, "retry", 10_003)
    assert (history[fourth].attempt, session.get_one(Message, fourth).attempts) == (1, 0)


def test_recording_does_not_notify(session: Session, engine: Engine, mailing: Mailing) -> None:
    batch = take(session, release(session, mailing))
    with listening(engine, "work") as wait_for:
        record(session, batch.id, [Outcome(r.message_id, SENT, counted=True) for r in batch.recipients])
        batches.finish(session, [batch.id])
        session.commit()
        batches.tell_of_room(session)
        session.commit()
        notifications.notify_work(session)
        session.commit()
        assert wait_for(2) == [batches.ROOM, ""]


def test_a_swept_batch_goes_back_and_a_late_worker_changes_nothing(session: Session, mailing: Mailing) -> None:
    batch = take(session, release(session, mailing))
    age_leases(session)
    assert audience.chores(session).lost
    assert batches.sweep(session) == 10
    assert not audience.chores(session).lost
    session.commit()
    late = [Outcome(r.message_id, SENT, counted=True) for r in batch.recipients]
    assert record(session, batch.id, late) == 0
    session.commit()
    assert statuses(session) == counted(session) == {"pending": 10}
    # It may have been sent: the attempt is counted and told.
    assert set(session.scalars(sa.select(Message.attempts))) == {1}
    assert {(a.outcome, a.reason) for a in session.scalars(sa.select(Attempt))} == {("lost", "worker_lost")}
    again = take(session, release(session, mailing), "b")
    assert record(session, batch.id, late) == 0
    assert record(session, again.id, [Outcome(r.message_id, SENT, True) for r in again.recipients]) == 10


def test_a_batch_that_no_worker_took_costs_no_attempt(session: Session, mailing: Mailing) -> None:
    batch_id = release(session, mailing)
    age_leases(session)
    assert batches.take(session, [batch_id], "late") == []
    assert batches.sweep(session) == 10
    session.commit()
    assert set(session.scalars(sa.select(Message.attempts))) == {0}
    assert session.scalar(sa.select(sa.func.count()).select_from(Attempt)) == 0


def test_no_plan_makes_a_sweep_larger(session: Session, mailing: Mailing) -> None:
    for _ in range(5):
        release(session, mailing, 2)
    age_leases(session)
    rescan_subqueries(session)
    assert batches.sweep(session, limit=2) == 4


def test_a_renewed_lease_stands_and_tells_of_the_mailing(session: Session, mailing: Mailing) -> None:
    batch = take(session, release(session, mailing))
    assert batches.renew(session, "another", [batch.id]) == {}
    assert batches.renew(session, "a", [batch.id])[batch.id].may_send is True
    mailing.state = MailingState.PAUSED
    session.commit()
    standing = batches.renew(session, "a", [batch.id])[batch.id]
    assert (standing.may_send, standing.ends_at) == (False, mailing.ends_at)
    age_leases(session)
    assert batches.renew(session, "a", [batch.id]) == {}


def test_a_batch_that_could_not_be_published_is_undone(session: Session, mailing: Mailing) -> None:
    batch_id = release(session, mailing)
    batches.withdraw(session, [batch_id])
    session.commit()
    assert statuses(session) == {"pending": 10}
    assert batches.take(session, [batch_id], "late") == []


def test_withdrawing_leaves_a_batch_alone_that_arrived_after_all(session: Session, mailing: Mailing) -> None:
    batch = take(session, release(session, mailing))
    batches.withdraw(session, [batch.id])
    session.commit()
    assert statuses(session) == {"sending": 10}


def test_an_orphan_is_found(session: Session, mailing: Mailing) -> None:
    release(session, mailing)
    assert batches.sweep_orphans(session, mailing.id) == 0
    session.execute(sa.delete(Batch))
    assert batches.sweep_orphans(session, mailing.id) == 10
    session.commit()
    assert statuses(session) == {"pending": 10}


def test_outcomes_of_several_batches_are_written_at_once(session: Session, mailing: Mailing) -> None:
    first, second = take(session, release(session, mailing, 4)), take(session, release(session, mailing, 4))
    rows = [(batch.id, Outcome(r.message_id, SENT, True)) for batch in (first, second) for r in batch.recipients]
    crossed = [(second.id, Outcome(r.message_id, SENT, True)) for r in first.recipients]
    assert record_outcomes(session, crossed) == 0
    assert record_outcomes(session, rows) == 8
    batches.finish(session, [first.id, second.id])
    session.commit()
    assert statuses(session) == counted(session) == {"sent": 8, "pending": 2}
    assert batches.under_way(session) == []


def test_a_message_that_was_not_called_for_keeps_what_is_known_of_it(session: Session, mailing: Mailing) -> None:
    session.execute(sa.update(Message).where(Message.id % 2 == 0).values(last_error="timeout", attempts=3))
    batch = take(session, release(session, mailing, 10))
    now = session.scalar(sa.select(sa.func.now()))
    ids = [recipient.message_id for recipient in batch.recipients]
    returned = [Outcome(i, MessageStatus.PENDING, due_at=now, keeps_error=True) for i in ids[:5]]
    expired = [Outcome(i, MessageStatus.EXPIRED, error="ended", keeps_error=True) for i in ids[5:]]
    record(session, batch.id, returned + expired)
    session.commit()
    for messages, untried in ((ids[:5], None), (ids[5:], "ended")):
        for back in (session.get_one(Message, message_id) for message_id in messages):
            assert (back.last_error, back.attempts) == (("timeout", 3) if back.id % 2 == 0 else (untried, 0))


@pytest.mark.parametrize(
    ("outcome", "receipt", "status"),
    [
        (MessageStatus.SENT, MessageStatus.DELIVERED, "delivered"),
        (MessageStatus.SENT, MessageStatus.FAILED, "failed"),
        (MessageStatus.PENDING, MessageStatus.DELIVERED, "delivered"),  # a timeout that had been accepted after all
        (MessageStatus.FAILED, MessageStatus.DELIVERED, "failed"),  # final stays final
    ],
)
def test_a_receipt_that_overtook_our_record_is_applied_with_it(
    session: Session, mailing: Mailing, outcome: MessageStatus, receipt: MessageStatus, status: str
) -> None:
    batch = take(session, release(session, mailing, 1))
    message_id = batch.recipients[0].message_id
    session.add(Receipt(message_id=message_id, status=receipt, reason=None))
    session.commit()
    due = session.scalar(sa.select(sa.func.now())) if outcome is MessageStatus.PENDING else None
    error = None if outcome is SENT else "timeout"
    record(session, batch.id, [Outcome(message_id, outcome, True, due, error)])
    session.commit()
    assert session.get_one(Message, message_id).status == status
    assert session.scalar(sa.select(sa.func.count()).select_from(Receipt)) == 0
    assert counted(session) == {"pending": 9, status: 1}
    told = session.execute(sa.select(Attempt.attempt, Attempt.reason).where(Attempt.outcome == "receipt")).all()
    is_told = outcome is MessageStatus.SENT and receipt is MessageStatus.FAILED
    assert told == ([(1, "receipt")] if is_told else [])


@pytest.mark.parametrize("change", ["take", "renew", "note_begun", "finish", "withdraw"])
def test_batches_are_locked_in_the_order_of_their_ids(
    session: Session, engine: Engine, mailing: Mailing, change: str
) -> None:
    """Or two statements may each wait for a batch that the other has."""
    low, high = release(session, mailing, 2), release(session, mailing, 2)
    if change not in ("take", "withdraw"):
        batches.take(session, [low, high], "a")
    # Its new version comes after the other, for who reads the table from end to end.
    session.execute(sa.update(Batch).where(Batch.id == low).values(is_probe=True))
    session.commit()
    changes: dict[str, Callable[[Session], object]] = {
        "take": lambda own: batches.take(own, [low, high], "a"),
        "renew": lambda own: batches.renew(own, "a", [low, high]),
        "note_begun": lambda own: batches.note_begun(own, [low, high]),
        "finish": lambda own: batches.finish(own, [low, high]),
        "withdraw": lambda own: batches.withdraw(own, [low, high]),
    }
    lock = sa.select(Batch.id).with_for_update(nowait=True)
    session.execute(lock.where(Batch.id == low))
    with ThreadPoolExecutor() as pool, Session(engine) as other:
        for way in ("indexscan", "bitmapscan", "hashjoin", "mergejoin"):
            other.execute(sa.text(f"SET LOCAL enable_{way} = off"))
        pid = other.scalar(sa.text("SELECT pg_backend_pid()"))
        changing = pool.submit(changes[change], other)
        try:
            wait_until_blocked(session, pid)
            session.execute(lock.where(Batch.id == high))
        finally:
            session.rollback()
            changing.result()


def wait_until_blocked(session: Session, pid: int) -> None:
    """Return when another waits for a lock of this session's."""
    give_up_at = time.monotonic() + 10
    while not session.scalar(sa.text("SELECT pg_backend_pid() = ANY(pg_blocking_pids(:pid))"), {"pid": pid}):
        assert time.monotonic() < give_up_at
        time.sleep(0.01)

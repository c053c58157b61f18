"""The statements that sending is made of keep their plans, whatever the planner knows of the tables.

Each is tried where the statistics are right, where there are none yet (a mailing was just written), and where they are
of a time with ten rows. Nothing may read a table of messages or clients from end to end, nor much more than it needs.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from datetime import datetime, time
from itertools import pairwise
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from db.models import Base, Mailing, MailingState, Message, MessageStatus
from db.queries import audience, batches, clients, failures, mailings, messages, outcomes
from db.queries import planned as planned_batches
from db.queries.messages import Filter
from db.queries.outcomes import Outcome
from tests.databases import connected, fresh_database
from tests.factories import make_mailing
from tests.plans import Plan, plans_of

BIG = 60_000
OLD_MAILINGS, OLD_SIZE = 200, 50
BATCH = 500
PLANNED = planned_batches.BATCH_SIZE
CHUNK = 2_000
DUE, UNIQUE, PRIMARY = "ix_message_due", "uq_message_mailing_id_client_id", "pk_message"
TROUBLE, REASON = "ix_message_trouble", "ix_message_reason"


@pytest.fixture(scope="module", params=["analysed", "never analysed", "statistics of ten rows"])
def engine(request: pytest.FixtureRequest, postgresql_url: sa.URL, template_database: str) -> Iterator[sa.Engine]:
    """A database with many small old mailings and a big one that was just written."""
    with fresh_database(postgresql_url, template_database) as url, connected(url) as made:
        _fill(made, request.param)
        yield made


def _fill(engine: sa.Engine, situation: str) -> None:
    with Session(engine) as session:
        for table in Base.metadata.tables:
            session.execute(sa.text(f"ALTER TABLE {table} SET (autovacuum_enabled = false)"))
        if situation == "statistics of ten rows":
            _add_clients(session, 10)
            _materialise(session, make_mailing(session, name="ten").id)
            session.execute(sa.text("ANALYZE"))
        _add_clients(session, BIG)
        _add_old_mailings(session)
        _write(session, make_mailing(session, name="big"))
    if situation == "analysed":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("VACUUM ANALYZE"))


def _add_clients(session: Session, number: int) -> None:
    session.execute(
        sa.text(
            "INSERT INTO client (phone, operator_code, timezone)"
            " SELECT '+79' || lpad(n::text, 9, '0'), '916', 'Europe/Moscow'"
            " FROM generate_series((SELECT count(*) FROM client) + 1, (SELECT count(*) FROM client) + :number) AS n"
        ),
        {"number": number},
    )
    session.commit()


def _add_old_mailings(session: Session) -> None:
    first = make_mailing(session, state=MailingState.COMPLETED, materialised_at=sa.func.now()).id
    session.execute(
        sa.text(
            "INSERT INTO mailing (name, text, starts_at, ends_at, state, started_at, materialised_at, finished_at)"
            " SELECT name, text, starts_at, ends_at, state, started_at, materialised_at, finished_at"
            " FROM mailing, generate_series(2, :mailings) WHERE id = :first"
        ),
        {"first": first, "mailings": OLD_MAILINGS},
    )
    session.execute(
        sa.text(
            "INSERT INTO message (mailing_id, client_id, status, attempts, sent_at, last_error)"
            " SELECT mailing_id, client_id, status, 1, CASE status WHEN 'failed' THEN NULL ELSE now() END,"
            "  CASE status WHEN 'failed' THEN 'http_400' END"
            " FROM generate_series(:first, :first + :mailings - 1) AS mailing_id,"
            "  generate_series(1, :size) AS client_id,"
            "  LATERAL (SELECT (ARRAY['sent', 'sent', 'delivered', 'failed'])[1 + client_id % 4] AS status) AS chosen"
            " ORDER BY mailing_id, client_id"
        ),
        {"first": first, "mailings": OLD_MAILINGS, "size": OLD_SIZE},
    )
    session.commit()


def _write(session: Session, mailing: Mailing) -> None:
    """Have a message wait for every client, each by itself and due now."""
    session.execute(
        sa.text(
            "INSERT INTO message (mailing_id, client_id, status, next_attempt_at)"
            " SELECT :mailing_id, id, 'pending', now() FROM client ORDER BY id"
        ),
        {"mailing_id": mailing.id},
    )
    mailing.materialised_at = sa.func.now()
    session.commit()


def _materialise(session: Session, mailing_id: int) -> None:
    while audience.materialise_chunk(session, mailing_id):
        session.commit()
    session.commit()


@pytest.fixture
def big(session: Session) -> Mailing:
    """The mailing that was just written; its messages wait one by one."""
    return session.scalars(sa.select(Mailing).where(Mailing.name == "big")).one()


def release(session: Session, mailing: Mailing, size: int = BATCH) -> int:
    [batch] = batches.release(session, [mailing.id], size)
    assert batch.messages == size
    return batch.id


def take(session: Session, mailing: Mailing, size: int = BATCH) -> batches.TakenBatch:
    [taken] = batches.take(session, [release(session, mailing, size)], "worker")
    return taken


def check(plans: list[Plan], *, rows: int, indexes: set[str], clients: int = 0) -> None:
    """Nothing was read through, and so many messages were looked at at the most, along these indexes alone."""
    assert plans
    scans = [scan for plan in plans for relation in ("message", "client") for scan in plan.scans_of(relation)]
    report = "\n".join(f"{plan.statement}\n  {plan.scans}" for plan in plans)
    assert all(scan.index for scan in scans), report
    used = {str(scan.index) for scan in scans if scan.relation == "message"}
    assert used <= indexes, report
    assert bool(used) == bool(indexes), report
    assert sum(plan.rows_of("message") for plan in plans) <= rows, report
    assert sum(plan.rows_of("client") for plan in plans) <= clients, report


def test_release(session: Session, big: Mailing) -> None:
    release(session, big)
    with plans_of(session) as plans:
        release(session, big)

    # Once to find them, once to change them; and the entries left behind by the batch before.
    check(plans, rows=3 * BATCH, indexes={DUE, PRIMARY})


def test_release_of_several_mailings(session: Session, big: Mailing) -> None:
    first = session.scalars(sa.select(sa.func.min(Mailing.id))).one()
    small = [make_mailing_unsaved(session) for _ in range(5)]
    for mailing in small:
        _copy_messages(session, first, mailing)
    in_turn = [*(mailing.id for mailing in small), big.id, first]
    with plans_of(session) as plans:
        released = batches.release(session, in_turn, BATCH)

    assert {batch.mailing_id for batch in released} == {*(mailing.id for mailing in small), big.id}
    assert sum(batch.messages for batch in released) == BATCH
    check(plans, rows=3 * BATCH, indexes={DUE, PRIMARY})


def _copy_messages(session: Session, mailing_id: int, other: Mailing) -> None:
    session.execute(
        sa.text(
            "INSERT INTO message (mailing_id, client_id, status, next_attempt_at)"
            " SELECT :other, client_id, 'pending', now() FROM message WHERE mailing_id = :mailing_id"
        ),
        {"mailing_id": mailing_id, "other": other.id},
    )


def test_due_and_under_way(session: Session, big: Mailing) -> None:
    release(session, big)
    with plans_of(session) as plans:
        assert audience.due(session) == {big.id: False, **_of_ten_rows(session)}
        assert (big.id, BATCH, False, False) in batches.under_way(session)

    check(plans, rows=2, indexes={DUE})


def _of_ten_rows(session: Session) -> dict[int, bool]:
    """What is due of the mailing that statistics of ten rows were made of, if there is one."""
    found = session.scalars(sa.select(Mailing.id).where(Mailing.state == MailingState.RUNNING, Mailing.name == "ten"))
    return dict.fromkeys(found, True)


def test_take(session: Session, big: Mailing) -> None:
    batch_id = release(session, big)
    with plans_of(session) as plans:
        [taken] = batches.take(session, [batch_id], "worker")

    assert len(taken.recipients) == BATCH
    # A bitmap also has what earlier tests took back.
    check(plans, rows=5 * BATCH, indexes={PRIMARY}, clients=BATCH)


def test_record_of_what_was_sent(session: Session, big: Mailing) -> None:
    taken = take(session, big)
    with plans_of(session) as plans:
        assert outcomes.record(session, [], [(taken.id, r.message_id) for r in taken.recipients]) == BATCH
        batches.finish(session, [taken.id])

    check(plans, rows=BATCH, indexes={PRIMARY})


def test_record_of_what_went_wrong(session: Session, big: Mailing) -> None:
    taken = take(session, big)
    due_at: datetime = session.scalars(sa.select(sa.func.now())).one()
    failed, waiting = taken.recipients[::2], taken.recipients[1::2]
    rows = [(taken.id, _refused(r.message_id)) for r in failed]
    rows += [(taken.id, _deferred(r.message_id, due_at)) for r in waiting]
    with plans_of(session) as plans:
        assert outcomes.record(session, rows) == BATCH

    # Once to change them, once for the history.
    check(plans, rows=2 * BATCH, indexes={PRIMARY})


def test_recording_where_statistics_know_of_nothing_being_sent(database_url: str) -> None:
    # In a table that is quick to read, the planner then expects a single message that is being sent, and may hold each
    # of thousands against each outcome.
    with connected(database_url) as engine, Session(engine) as session:
        _add_clients(session, 26_000)
        mailing = make_mailing(session)
        _materialise(session, mailing.id)
        session.execute(sa.text("ANALYZE"))
        taken, other = [take(session, mailing, 1_000) for _ in range(9)][:2]
        with plans_of(session) as plans:
            outcomes.record(session, [(taken.id, _refused(r.message_id)) for r in taken.recipients])
            outcomes.record(session, [], [(other.id, r.message_id) for r in other.recipients])

        assert {plan.compared for plan in plans} == {0}, plans


def _refused(message_id: int) -> Outcome:
    return Outcome(message_id, MessageStatus.FAILED, True, error="http_400", outcome="failed", reason="http_400")


def _deferred(message_id: int, due_at: datetime) -> Outcome:
    return Outcome(message_id, MessageStatus.PENDING, True, due_at=due_at, error="http_503", outcome="retry")


def test_renewal_of_leases(session: Session, big: Mailing) -> None:
    taken = take(session, big)
    with plans_of(session) as plans:
        assert batches.renew(session, "worker", [taken.id]).keys() == {taken.id}

    check(plans, rows=0, indexes=set())


def test_sweep_of_a_lost_batch(session: Session, big: Mailing) -> None:
    take(session, big)
    session.execute(sa.text("UPDATE batch SET lease_until = now() - interval '1 s'"))
    with plans_of(session) as plans:
        assert batches.sweep(session) == BATCH

    # Changed, written to the history, and looked at for early receipts.
    check(plans, rows=3 * BATCH, indexes={PRIMARY})


def test_sweep_of_orphans_when_there_are_none(session: Session, big: Mailing) -> None:
    take(session, big)
    with plans_of(session) as plans:
        assert batches.sweep_orphans(session, big.id) == 0

    check(plans, rows=BATCH, indexes={PRIMARY})


@pytest.mark.parametrize("state", [MailingState.RUNNING, MailingState.CANCELLED])
def test_settling(session: Session, big: Mailing, monkeypatch: pytest.MonkeyPatch, state: MailingState) -> None:
    monkeypatch.setattr(audience, "CHUNK", CHUNK)
    values: dict[str, Any] = {"state": state}
    if state is MailingState.CANCELLED:
        values["finished_at"] = sa.func.now()
    else:
        values |= {"starts_at": sa.text("now() - interval '2 h'"), "ends_at": sa.text("now() - interval '1 h'")}
    session.execute(sa.update(Mailing).where(Mailing.id == big.id).values(**values))
    with plans_of(session) as plans:
        assert audience.chores(session).ended == [big.id]
        assert audience.settle_chunk(session, big.id) == CHUNK

    check(plans, rows=2 * CHUNK, indexes={DUE, PRIMARY})


def test_materialising(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audience, "FIRST_CHUNK", CHUNK)
    monkeypatch.setattr(audience, "CHUNK", CHUNK)
    mailing = make_mailing_unsaved(session)
    with plans_of(session) as plans:
        for _ in range(3):
            assert audience.materialise_chunk(session, mailing.id)

    # The last message of each chunk, to know that the next goes on after it.
    check(plans, rows=3, indexes={UNIQUE}, clients=3 * CHUNK)


def make_mailing_unsaved(session: Session) -> Mailing:
    mailing = Mailing(
        name="next",
        text="Hello",
        starts_at=sa.func.now(),
        ends_at=sa.text("now() + interval '1 day'"),
        state=MailingState.RUNNING,
        started_at=sa.func.now(),
        operator_codes=[],
        tags=[],
    )
    session.add(mailing)
    session.flush()
    return mailing


def test_looking_for_what_there_is_to_do(session: Session, big: Mailing) -> None:
    take(session, big)
    with plans_of(session) as plans:
        assert big.id not in audience.chores(session).unwritten

    check(plans, rows=0, indexes=set())


def test_rescheduling_of_some_clients(session: Session, big: Mailing) -> None:
    big.window_from, big.window_to = time(9), time(21)
    client_ids = session.scalars(sa.select(Message.client_id).where(Message.mailing_id == big.id).limit(50)).all()
    session.flush()
    with plans_of(session) as plans:
        audience.reschedule_clients(session, client_ids)

    # Once to find them, once to change them.
    check(plans, rows=2 * 50, indexes={UNIQUE, PRIMARY}, clients=50)


def test_completing(session: Session, big: Mailing) -> None:
    with plans_of(session) as plans:
        assert big.id not in audience.complete(session)

    check(plans, rows=0, indexes=set())


def test_merging_of_counters_after_thousands_of_transactions(session: Session, big: Mailing) -> None:
    crowd = {"mailing_id": big.id, "rows": 5_000}
    session.execute(
        sa.text(
            "INSERT INTO status_count (mailing_id, status, amount)"
            " SELECT :mailing_id, (ARRAY['pending', 'sending'])[1 + n % 2], 1 FROM generate_series(1, :rows) AS n"
        ),
        crowd,
    )
    session.execute(
        sa.text(
            "INSERT INTO status_flow (minute, mailing_id, status, amount)"
            " SELECT date_trunc('minute', now()) - interval '5 min', :mailing_id, 'sent', 1"
            " FROM generate_series(1, :rows)"
        ),
        crowd,
    )
    with plans_of(session) as plans:
        audience.merge_counts(session, audience.chores(session).crowded)
        audience.merge_flow(session)

    check(plans, rows=0, indexes=set())
    # Looked for, found, and little else: no row is joined with every other.
    for table in ("status_count", "status_flow"):
        assert sum(plan.rows_of(table) for plan in plans) <= 5 * crowd["rows"]


def _troubled(session: Session, mailing: Mailing, number: int) -> None:
    """Have so many messages of the mailing sent, and every fifth of these fail."""
    last = session.scalars(
        sa.select(Message.id)
        .where(Message.mailing_id == mailing.id)
        .order_by(Message.client_id)
        .offset(number)
        .limit(1)
    ).one()
    session.execute(
        sa.text(
            "UPDATE message SET next_attempt_at = NULL, attempts = 1,"
            " status = CASE WHEN client_id % 5 = 0 THEN 'failed' ELSE 'sent' END,"
            " sent_at = CASE WHEN client_id % 5 = 0 THEN NULL ELSE now() END,"
            " last_error = CASE WHEN client_id % 5 = 0 THEN 'http_400' END"
            " WHERE mailing_id = :mailing_id AND id < :last"
        ),
        {"mailing_id": mailing.id, "last": last},
    )


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("of_mailing", [False, True])
@pytest.mark.parametrize(
    ("status", "rows", "indexes"),
    [
        (None, 150, {UNIQUE, PRIMARY}),
        (MessageStatus.SENT, messages.NEAR + 150, {UNIQUE, PRIMARY}),
        (MessageStatus.PENDING, messages.NEAR + 150, {UNIQUE, PRIMARY}),
        (MessageStatus.SENDING, 2 * BATCH, {PRIMARY}),
        (MessageStatus.FAILED, OLD_MAILINGS * OLD_SIZE + 10_000, {TROUBLE, PRIMARY}),
        (MessageStatus.CANCELLED, 0, set()),
    ],
)
def test_a_page_of_messages(
    session: Session,
    big: Mailing,
    status: MessageStatus | None,
    rows: int,
    indexes: set[str],
    of_mailing: bool,
    backwards: bool,
) -> None:
    _troubled(session, big, 5_000)
    take(session, big)
    beyond = None
    if not backwards:
        beyond = session.scalars(sa.select(sa.func.min(Message.id)).where(Message.mailing_id == big.id)).one()
    wanted = Filter(mailing_id=big.id if of_mailing else None, status=status)
    with plans_of(session) as plans:
        found = messages.page(session, wanted, beyond, 50, backwards=backwards)

    assert len(found) == (50 if indexes else 0)
    if status is MessageStatus.SENT and backwards:
        rows += 2 * BIG  # Past all that waits: the one walk that no index spares.
    check(plans, rows=rows, indexes=indexes, clients=50)


def test_a_page_of_failed_messages_whatever_size_the_indexes_have(session: Session) -> None:
    """What is rolled back makes them grow, by turns."""
    mailing_id = session.scalars(sa.select(Mailing.id).where(Mailing.name == "big")).one()
    for _ in range(12):
        big = session.get_one(Mailing, mailing_id)
        _troubled(session, big, 5_000)
        take(session, big)
        with plans_of(session) as plans:
            found = messages.page(session, Filter(mailing_id=mailing_id, status=MessageStatus.FAILED), None, 50)
        session.rollback()

        assert len(found) == 50
        check(plans, rows=OLD_MAILINGS * OLD_SIZE + 10_000, indexes={TROUBLE, PRIMARY}, clients=50)


def test_reasons_of_failures(session: Session, big: Mailing) -> None:
    _troubled(session, big, 5_000)
    with plans_of(session) as plans:
        assert failures.ranked(session, big.id) == [("http_400", 1_000, True)]
        assert len(messages.page(session, Filter(mailing_id=big.id, reason="http_400"), None, 50)) == 50

    # (Along either index where all reasons are the same.)
    check(plans, rows=2_500, indexes={REASON, TROUBLE, PRIMARY}, clients=50)


def test_putting_failed_messages_back(session: Session, big: Mailing) -> None:
    _troubled(session, big, 5_000)
    now: datetime = session.scalars(sa.select(sa.func.now())).one()
    with plans_of(session) as plans:
        assert mailings.retry_failed(session, big.id, None, now)[1] == 1_000

    # Nothing known of the table, the planner takes another index of the mailing: it is then read once.
    updates = [plan for plan in plans if "UPDATE message" in plan.statement]
    check(updates, rows=2 * BIG, indexes={TROUBLE, UNIQUE}, clients=1_000)


def test_the_records_of_sent_messages_touch_no_index(database_url: str) -> None:
    with connected(database_url) as engine, Session(engine) as session:
        _add_clients(session, 20 * PLANNED)
        mailing = make_mailing(session)
        _materialise(session, mailing.id)
        counts = [_heap_only_updates(session)]
        for _ in range(20):
            [batch] = batches.release_planned(session, [mailing.id], PLANNED)
            [taken] = batches.take(session, [batch.id], "worker")
            session.commit()
            outcomes.record(session, [], [(taken.id, r.message_id) for r in taken.recipients])
            batches.finish(session, [taken.id])
            session.commit()
            counts.append(_heap_only_updates(session))

        # The others found no room on their page. While another looks (autovacuum's ANALYZE), a batch finds less of it:
        # what is replaced is kept for him.
        assert statistics.median(after - before for before, after in pairwise(counts)) >= 0.9 * PLANNED


def _heap_only_updates(session: Session) -> int:
    session.execute(sa.text("SELECT pg_stat_force_next_flush()"))
    session.commit()
    return int(
        session.scalars(sa.text("SELECT n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'message'")).one()
    )


# Planned batches come last: what these tests write and take back leaves the tables larger.


@pytest.fixture
def planned(session: Session) -> Mailing:
    """One that is being written, in planned batches: 21 of them so far."""
    mailing = make_mailing_unsaved(session)
    for _ in range(2):
        assert audience.materialise_chunk(session, mailing.id)
    session.execute(sa.text("SET LOCAL enable_sort = on; SET LOCAL enable_bitmapscan = on"))  # As after its commit.
    return mailing


def test_release_of_planned_batches(session: Session, big: Mailing, planned: Mailing) -> None:
    with plans_of(session) as plans:
        assert audience.due(session) == {big.id: False, planned.id: True, **_of_ten_rows(session)}
        [batch] = batches.release_planned(session, [planned.id], 2 * PLANNED)
    check(plans, rows=2, indexes={DUE})  # to see what is due; no message is changed, nor looked at

    with plans_of(session) as plans:
        [taken] = batches.take(session, [batch.id], "worker")

    assert batch.messages == len(taken.recipients) == PLANNED
    check(plans, rows=5 * PLANNED, indexes={PRIMARY}, clients=PLANNED)


def test_taking_planned_batches_apart(session: Session, planned: Mailing) -> None:
    with plans_of(session) as plans:
        assert planned_batches.unplan(session, [planned.id], 2) == 2 * PLANNED

    check(plans, rows=2 * PLANNED, indexes={PRIMARY})


def test_taking_a_message_out_of_a_planned_batch(session: Session, planned: Mailing) -> None:
    client_id = session.scalars(sa.select(Message.client_id).where(Message.mailing_id == planned.id).limit(1)).one()
    with plans_of(session) as plans:
        clients.delete(session, client_id)

    # Looked for among all open mailings, looked for in its batch, locked, and changed.
    check(plans, rows=20, indexes={UNIQUE, PRIMARY}, clients=1)


def test_settling_what_is_planned(session: Session, planned: Mailing) -> None:
    planned.state, planned.finished_at = MailingState.CANCELLED, sa.func.now()
    session.flush()
    with plans_of(session) as plans:
        assert audience.settle_chunk(session, planned.id) == audience.CHUNK

    check(plans, rows=audience.CHUNK, indexes={PRIMARY})


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(("of_mailing", "sent"), [(True, 0), (True, 15), (False, 0)])
def test_a_page_of_planned_messages(
    session: Session, planned: Mailing, sent: int, of_mailing: bool, backwards: bool
) -> None:
    for _ in range(sent):
        [batch] = batches.release_planned(session, [planned.id], PLANNED)
        [taken] = batches.take(session, [batch.id], "worker")
        outcomes.record(session, [], [(taken.id, r.message_id) for r in taken.recipients])
        batches.finish(session, [taken.id])
    wanted = Filter(mailing_id=planned.id if of_mailing else None, status=MessageStatus.PENDING)
    with plans_of(session) as plans:
        found = messages.page(session, wanted, None, 50, backwards=backwards)

    assert len(found) == 50
    assert {row.status for row in found} == {MessageStatus.PENDING}
    check(plans, rows=messages.NEAR + 100 + PLANNED * 21, indexes={UNIQUE, PRIMARY, DUE}, clients=50)

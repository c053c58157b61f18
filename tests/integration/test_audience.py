"""The life of a mailing as the dispatcher drives it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from db import windows
from db.models import Attempt, Client, Mailing, MailingState, Message, MessageStatus, StatusCount, StatusFlow
from db.queries import audience, clients
from db.windows import Window
from tests.factories import make_client, make_mailing, make_message, told_statuses
from tests.integration.test_import_worker import import_file
from tests.plans import rescan_subqueries
from tools.processes import wait_until

NOW = datetime.now(UTC)


@pytest.fixture
def engine(emptied_engine: sa.Engine) -> sa.Engine:
    """Nothing here needs a database of its own."""
    return emptied_engine


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that some dozen clients make several chunks."""
    monkeypatch.setattr(audience, "FIRST_CHUNK", 3)
    monkeypatch.setattr(audience, "CHUNK", 5)


def materialise(session: Session, mailing: Mailing) -> int:
    chunks = 1
    while audience.materialise_chunk(session, mailing.id):
        session.commit()
        chunks += 1
    session.commit()
    session.expire_all()
    return chunks


def statuses(session: Session, mailing: Mailing) -> dict[str, int]:
    """Counted from the rows, and the same from the counters."""
    found = told_statuses(session, mailing)
    counters = session.execute(
        sa.select(StatusCount.status, sa.func.sum(StatusCount.amount))
        .where(StatusCount.mailing_id == mailing.id)
        .group_by(StatusCount.status)
    )
    assert found == {status.value: int(count) for status, count in counters if count}
    return found


def test_scheduled_mailings_start_at_their_time(session: Session) -> None:
    due = make_mailing(session, state=MailingState.SCHEDULED, starts_at=NOW - timedelta(seconds=1))
    later = datetime.now(UTC) + timedelta(seconds=60)
    make_mailing(session, state=MailingState.SCHEDULED, starts_at=later)
    make_mailing(session, state=MailingState.DRAFT)
    make_mailing(session, state=MailingState.SCHEDULED, deleted_at=NOW)
    assert audience.chores(session).starts
    assert audience.start_due(session) == [due.id]
    assert audience.start_due(session) == []
    assert not audience.chores(session).starts
    assert audience.chores(session).next_start == pytest.approx(60, abs=5)


@pytest.mark.parametrize("window", [{}, {"window_from": time(0), "window_to": time(12)}])
def test_the_audience_is_written_in_chunks_each_client_once(session: Session, window: dict[str, time]) -> None:
    zones = ("Asia/Tokyo", "America/New_York", "Europe/Moscow")
    everyone = [make_client(session, timezone=zones[number % 3]) for number in range(14)]
    mailing = make_mailing(session, ends_at=NOW + timedelta(days=2), **window)
    assert materialise(session, mailing) == 4  # 3, 5, 5 and 1
    assert statuses(session, mailing) == {"pending": 14}
    # In the order of their clients, which lists rely on.
    assert session.scalars(sa.select(Message.client_id).order_by(Message.id)).all() == [c.id for c in everyone]
    assert mailing.materialised_at is not None
    assert audience.chores(session).unwritten == []


def test_writing_goes_on_after_a_crash_and_never_doubles(session: Session) -> None:
    for _ in range(10):
        make_client(session)
    mailing = make_mailing(session)
    assert audience.materialise_chunk(session, mailing.id) is True
    session.commit()
    audience.materialise_chunk(session, mailing.id)
    session.rollback()  # a crash before the commit
    mailing.materialised_through = 0  # and even a cursor that was lost
    session.commit()
    materialise(session, mailing)
    assert statuses(session, mailing) == {"pending": 10}


@pytest.mark.parametrize(
    ("codes", "tags", "matching"),
    [
        ([], [], "abcd"),
        (["916"], [], "ab"),
        ([], ["vip"], "ac"),
        (["916"], ["vip"], "a"),
        (["916", "917"], ["vip", "new"], "acd"),
        (["999"], [], ""),
        ([], ["VIP"], ""),
    ],
)
def test_the_filter_is_a_code_and_a_tag(session: Session, codes: list[str], tags: list[str], matching: str) -> None:
    clients = {
        "a": make_client(session, operator_code="916", tags=["vip", "x"]),
        "b": make_client(session, operator_code="916", tags=[]),
        "c": make_client(session, operator_code="917", tags=["vip"]),
        "d": make_client(session, operator_code="917", tags=["new"]),
        "out": make_client(session, operator_code="916", tags=["vip"], opted_out_at=NOW),
    }
    mailing = make_mailing(session, operator_codes=codes, tags=tags)
    materialise(session, mailing)
    assert set(session.scalars(sa.select(Message.client_id))) == {clients[name].id for name in matching}


def test_a_window_gives_each_client_the_next_opening_where_it_lives(session: Session) -> None:
    here = make_client(session, timezone="UTC")
    kathmandu = make_client(session, timezone="Asia/Kathmandu")
    opens = (NOW + timedelta(hours=2)).replace(second=0, microsecond=0)
    window = {"window_from": opens.time(), "window_to": (opens + timedelta(minutes=30)).time()}
    mailing = make_mailing(session, ends_at=NOW + timedelta(hours=3), **window)
    materialise(session, mailing)
    messages = {m.client_id: m for m in session.scalars(sa.select(Message))}
    assert messages[here.id].next_attempt_at == opens
    # There it is 5:45 later, so the window was this morning: it opens again after the end.
    assert (messages[kathmandu.id].status, messages[kathmandu.id].last_error) == (MessageStatus.EXPIRED, "ended")
    assert statuses(session, mailing) == {"pending": 1, "expired": 1}


def test_nobody_is_skipped_for_a_time_zone_that_is_not_known_any_more(session: Session) -> None:
    make_client(session, timezone="US/Pacific-New")
    mailing = make_mailing(session, window_from=time(9), window_to=time(21))
    materialise(session, mailing)
    assert list(audience.due(session)) == [mailing.id]  # The worker looks at the window again.

    opening = (NOW + timedelta(hours=5)).replace(second=0, microsecond=0)
    session.execute(sa.update(Message).values(next_attempt_at=opening))
    mailing.rescheduled_through = 0
    session.commit()
    while audience.reschedule_chunk(session):
        session.commit()
    assert list(audience.due(session)) == [mailing.id]


def test_an_open_window_makes_due_now_and_is_not_asked_about_for_each_chunk(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(23):  # in five chunks
        make_client(session, timezone="UTC")
    asked: list[str] = []

    def next_opening(window: Window, zone: str, at: datetime) -> datetime:
        asked.append(zone)
        return windows.next_opening(window, zone, at)

    monkeypatch.setattr(audience, "next_opening", next_opening)
    # 23 hours of the day, so that it is open now. No other test has this window.
    opens = (NOW - timedelta(hours=2)).replace(minute=7)
    window = {"window_from": opens.time().replace(second=0, microsecond=0), "window_to": time((opens.hour - 1) % 24, 7)}
    mailing = make_mailing(session, **window)
    materialise(session, mailing)
    assert asked.count("UTC") <= 2  # twice when a minute ends meanwhile
    assert [message.next_attempt_at == message.created_at for message in session.scalars(sa.select(Message))] == [
        True
    ] * 23


def test_a_mailing_that_nobody_started_in_time_is_accounted_as_expired(session: Session) -> None:
    make_client(session)
    ended = NOW - timedelta(seconds=5)
    mailing = make_mailing(session, state=MailingState.SCHEDULED, starts_at=ended - timedelta(hours=1), ends_at=ended)
    assert audience.start_due(session) == [mailing.id]
    materialise(session, mailing)
    assert statuses(session, mailing) == {"expired": 1}
    assert audience.complete(session) == [mailing.id]


def test_a_mailing_paused_before_its_start_ends_like_any_other(session: Session) -> None:
    for _ in range(4):
        make_client(session)
    begun = {"starts_at": NOW - timedelta(hours=1), "started_at": None}
    held = make_mailing(session, state=MailingState.PAUSED, ends_at=NOW + timedelta(hours=1), **begun)
    ended = make_mailing(session, state=MailingState.PAUSED, ends_at=NOW - timedelta(seconds=5), **begun)
    make_mailing(session, state=MailingState.PAUSED, ends_at=ended.ends_at, deleted_at=NOW, **begun)
    assert audience.start_due(session) == [ended.id]
    session.commit()
    assert (ended.state, held.started_at) == (MailingState.PAUSED, None)  # Were the end moved now, nothing would go.
    assert audience.chores(session).unwritten == [ended.id]
    materialise(session, ended)
    assert statuses(session, ended) == {"expired": 4}
    assert audience.complete(session) == [ended.id]
    assert audience.start_due(session) == []


def test_an_edited_window_moves_the_waiting_messages(session: Session) -> None:
    for _ in range(12):
        make_client(session, timezone="UTC")
    mailing = make_mailing(session)
    materialise(session, mailing)
    make_message(session, mailing, make_client(session), status=MessageStatus.SENT)
    opens = (NOW + timedelta(hours=3)).replace(second=0, microsecond=0)
    mailing.window_from, mailing.window_to = opens.time(), (opens + timedelta(hours=1)).time()
    mailing.rescheduled_through = 0
    session.commit()
    while audience.chores(session).rescheduled:
        assert audience.reschedule_chunk(session)
        session.commit()
    assert not audience.reschedule_chunk(session)
    session.commit()
    session.expire_all()
    pending = sa.select(Message.next_attempt_at).where(Message.status == MessageStatus.PENDING)
    assert set(session.scalars(pending)) == {opens}
    assert session.scalar(sa.select(Mailing.rescheduled_through)) is None
    # Taking the window away makes them due at once.
    mailing.window_from = mailing.window_to = None
    mailing.rescheduled_through = 0
    session.commit()
    while audience.reschedule_chunk(session):
        session.commit()
    assert max(at for at in session.scalars(pending) if at) <= datetime.now(UTC)


@pytest.mark.parametrize("hours", [0, 3])
def test_an_edited_window_calls_for_nothing_before_its_time(session: Session, hours: int) -> None:
    now = datetime.now(UTC)
    opens = (now + timedelta(hours=hours)).replace(second=0, microsecond=0)
    closes = opens + timedelta(hours=1)
    mailing = make_mailing(session, window_from=opens.time(), window_to=closes.time(), rescheduled_through=0)
    old_opening = (now + timedelta(hours=12)).replace(second=0, microsecond=0)
    backing_off, overdue = (now + timedelta(minutes=20)).replace(second=30), now - timedelta(minutes=20)

    def wait(until: datetime, error: str | None) -> Message:
        client = make_client(session, timezone="UTC")
        return make_message(
            session, mailing, client, status=MessageStatus.PENDING, next_attempt_at=until, last_error=error
        )

    deferred = wait(backing_off, "http_429")
    moved = [wait(old_opening, "http_429"), wait(old_opening, None), wait(overdue, "timeout"), wait(overdue, None)]
    while audience.reschedule_chunk(session):
        session.commit()
    session.commit()
    session.expire_all()
    assert deferred.next_attempt_at == max(backing_off, opens)
    times = [message.next_attempt_at for message in moved if message.next_attempt_at]
    assert len(times) == len(moved)
    assert all(at == opens if hours else now <= at <= datetime.now(UTC) for at in times)


@pytest.mark.parametrize("how", ["edit", "import"])
def test_who_moves_to_another_time_zone_is_written_to_when_its_window_is_open_there(
    session: Session, engine: sa.Engine, how: str
) -> None:
    now = datetime.now(UTC)
    there = now.astimezone(ZoneInfo("Asia/Kathmandu")).replace(second=0, microsecond=0) - timedelta(hours=1)
    window = {"window_from": there.time(), "window_to": (there + timedelta(hours=2)).time()}
    mover, other = make_client(session, timezone="UTC"), make_client(session, timezone="UTC")
    opening = (now + timedelta(hours=5)).replace(second=0, microsecond=0)
    backing_off = now + timedelta(minutes=20)
    mailings = [make_mailing(session, **window), make_mailing(session, **window), make_mailing(session)]
    moved, *kept = [
        make_message(session, mailing, client, status=MessageStatus.PENDING, next_attempt_at=at)
        for mailing, at in zip(mailings, (opening, backing_off, opening), strict=True)
        for client in (mover, other)
    ]
    before = [message.next_attempt_at for message in kept]
    if how == "edit":
        clients.edit(session, mover.id, {"timezone": "Asia/Kathmandu"}, now)
        session.commit()
    else:
        import_file(engine, f"phone,timezone\n{mover.phone},Asia/Kathmandu\n{other.phone},UTC\n")
        session.expire_all()
    assert moved.next_attempt_at
    assert now <= moved.next_attempt_at <= datetime.now(UTC)
    assert [message.next_attempt_at for message in kept] == before


def test_who_moves_while_the_messages_are_being_written_has_its_time_set_all_the_same(
    session: Session, engine: sa.Engine
) -> None:
    now = datetime.now(UTC)
    there = now.astimezone(ZoneInfo("Asia/Kathmandu")).replace(second=0, microsecond=0) - timedelta(hours=1)
    window = {"window_from": there.time(), "window_to": (there + timedelta(hours=2)).time()}
    mover, mailing = make_client(session, timezone="UTC"), make_mailing(session, **window)
    with Session(engine) as dispatcher, Session(engine) as caller, ThreadPoolExecutor(1) as thread:
        audience.materialise_chunk(dispatcher, mailing.id)
        edit = thread.submit(clients.edit, caller, mover.id, {"timezone": "Asia/Kathmandu"}, now)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as looking:
            waits = sa.text("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
            assert wait_until(lambda: edit.done() or bool(looking.scalar(waits)), 10)
        dispatcher.commit()
        edit.result(10)
        caller.commit()
    due_at = session.scalars(sa.select(Message.next_attempt_at)).one()
    assert due_at
    assert due_at <= datetime.now(UTC)


@pytest.mark.parametrize(
    ("state", "ends_in", "status", "error"),
    [
        (MailingState.RUNNING, -1, "expired", "ended"),
        (MailingState.PAUSED, -1, "expired", "ended"),
        (MailingState.CANCELLED, 3600, "cancelled", "cancelled"),
    ],
)
def test_what_waits_when_a_mailing_ends_is_settled(
    session: Session, state: MailingState, ends_in: float, status: str, error: str
) -> None:
    mailing = make_mailing(session, state=state, materialised_at=NOW, starts_at=NOW - timedelta(hours=1))
    mailing.ends_at = NOW + timedelta(seconds=ends_in)
    session.commit()
    for _ in range(7):
        make_message(session, mailing, make_client(session), status=MessageStatus.PENDING)
    retried = make_message(session, mailing, make_client(session), status=MessageStatus.PENDING, last_error="timeout")
    make_message(session, mailing, make_client(session), status=MessageStatus.SENDING)
    assert audience.chores(session).ended == [mailing.id]
    settled = []
    while count := audience.settle_chunk(session, mailing.id):
        settled.append(count)
    session.commit()
    session.expire_all()
    assert settled == [5, 3]
    assert statuses(session, mailing) == {status: 8, "sending": 1}
    assert retried.last_error == "timeout"
    assert set(session.scalars(sa.select(Message.last_error).where(Message.status == status))) == {error, "timeout"}
    assert audience.chores(session).ended == []


def test_no_plan_makes_a_chunk_larger(session: Session) -> None:
    mailing = make_mailing(session, state=MailingState.CANCELLED, deleted_at=NOW, materialised_at=NOW)
    for _ in range(13):
        make_message(session, mailing, make_client(session), status=MessageStatus.PENDING)
    rescan_subqueries(session)
    assert audience.settle_chunk(session, mailing.id) == 5
    audience.remove_chunk(session, mailing.id)
    assert session.scalar(sa.select(sa.func.count()).select_from(Message)) == 8


def test_a_mailing_completes_when_nothing_is_open(session: Session) -> None:
    mailing = make_mailing(session, materialised_at=NOW)
    message = make_message(session, mailing, make_client(session), status=MessageStatus.SENDING)
    empty = make_mailing(session, materialised_at=NOW)
    unwritten = make_mailing(session)
    assert audience.chores(session).completes
    assert audience.complete(session) == [empty.id]
    assert not audience.chores(session).completes
    message.status, message.batch_id, message.sent_at = MessageStatus.SENT, None, NOW
    session.commit()
    assert audience.complete(session) == [mailing.id]
    session.commit()
    session.expire_all()
    assert mailing.finished_at is not None
    assert unwritten.state is MailingState.RUNNING


def test_nothing_is_to_be_done_while_all_waits(session: Session) -> None:
    mailing = make_mailing(session, materialised_at=NOW)
    make_message(session, mailing, make_client(session), status=MessageStatus.PENDING)
    assert audience.chores(session) == audience.Chores(False, [], [], False, [], False, False, False, [], None)


def test_a_deleted_mailing_is_removed_with_all_that_belongs_to_it(session: Session) -> None:
    mailing = make_mailing(session, state=MailingState.CANCELLED, deleted_at=NOW)
    other = make_mailing(session)
    message = make_message(session, mailing, make_client(session))
    for _ in range(6):
        make_message(session, mailing, make_client(session), status=MessageStatus.PENDING)
    session.add(Attempt(message_id=message.id, at=NOW, attempt=1, outcome="retry"))
    on_the_wire = make_message(session, mailing, make_client(session), status=MessageStatus.SENDING)
    kept = make_message(session, other, make_client(session)).id
    other_id, mailing_id = other.id, mailing.id
    session.commit()
    assert audience.chores(session).deleted == [mailing.id]
    while audience.remove_chunk(session, mailing.id):
        session.commit()
    session.commit()
    # What is on the wire keeps the mailing until its outcome is recorded.
    assert audience.chores(session).deleted == [mailing.id]
    on_the_wire.status, on_the_wire.batch_id, on_the_wire.sent_at = MessageStatus.SENT, None, NOW
    session.commit()
    while audience.remove_chunk(session, mailing.id):
        session.commit()
    session.expunge_all()
    assert audience.chores(session).deleted == []
    assert list(session.scalars(sa.select(Message.id))) == [kept]
    for table in (StatusCount, StatusFlow):
        assert set(session.scalars(sa.select(table.mailing_id))) == {other_id}
    assert session.scalar(sa.select(sa.func.count()).select_from(Attempt)) == 0
    assert session.get(Mailing, mailing_id) is None


def test_merging_counters_and_flow_changes_no_sum(session: Session) -> None:
    mailing = make_mailing(session)
    for _ in range(40):
        make_message(session, mailing, make_client(session))
    session.execute(
        sa.update(StatusFlow).values(minute=sa.func.date_trunc("minute", sa.func.now()) - timedelta(minutes=2))
    )
    session.commit()
    before = statuses(session, mailing)
    audience.merge_counts(session, audience.chores(session).crowded)
    audience.merge_flow(session)
    session.commit()
    assert statuses(session, mailing) == before == {"sent": 40}
    assert session.scalar(sa.select(sa.func.count()).select_from(StatusCount)) == 1
    flow = {(f.status.value, f.amount) for f in session.scalars(sa.select(StatusFlow))}
    assert flow == {("pending", 40), ("sent", 40)}  # the audience, and the arrivals


def test_deleting_a_client_leaves_the_history(session: Session) -> None:
    client = make_client(session)
    mailing = make_mailing(session)
    make_message(session, mailing, client)
    session.execute(sa.delete(Client))
    session.commit()
    assert statuses(session, mailing) == {"sent": 1}


def test_a_window_over_midnight_opens_on_the_clients_own_clock(session: Session) -> None:
    now = session.scalars(sa.select(sa.func.now())).one().astimezone(UTC)
    # Where the clock shows ten something: the window is shut, and opens twelve hours after the full hour.
    ahead = (10 - now.hour + 11) % 24 - 11
    make_client(session, timezone=f"Etc/GMT{-ahead:+d}")  # POSIX counts the hours westward
    mailing = make_mailing(session, window_from=time(22), window_to=time(2))

    materialise(session, mailing)

    due = session.scalars(sa.select(Message.next_attempt_at)).one()
    assert due == now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=12)

"""The statements behind lists and numbers, as they are really sent, keep off the big tables but for an index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from db.models import Mailing, MailingState, Message, MessageStatus
from db.queries import clients, dashboard, mailings, messages, statistics
from db.queries.messages import Filter
from tests.plans import Plan, plans_of

BIG = 100_000  # messages of the first mailing, and clients
MAILINGS = 500
SMALL = 40  # messages of every other mailing
PAGE = 50
BIG_TABLES = frozenset({"message", "client"})


def now() -> datetime:
    """The time in UTC."""
    return datetime.now(UTC)


Work = Callable[[Session], object]


def plans(session: Session, work: Work) -> list[Plan]:
    """The plans of all statements that this work sends."""
    with plans_of(session) as found:
        work(session)
    assert found
    return found


def read_whole(found: list[Plan]) -> list[str]:
    """The big tables that are read from end to end."""
    scans = [scan for plan in found for scan in plan.scans]
    return [scan.relation for scan in scans if scan.kind == "Seq Scan" and scan.relation in BIG_TABLES]


def used(found: list[Plan]) -> set[str | None]:
    """The indexes that are read."""
    return {scan.index for plan in found for scan in plan.scans}


def rows_of(found: list[Plan], relation: str) -> int:
    """How many rows of this table are looked at."""
    return sum(plan.rows_of(relation) for plan in found)


@pytest.fixture(scope="module")
def filled(module_engine: sa.Engine) -> sa.Engine:
    """A large mailing, many small ones, and a directory, with statistics for the planner."""
    with module_engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO client (phone, operator_code, tags, timezone)"
            " SELECT '+79' || lpad(n::text, 9, '0'), '9' || lpad(mod(n, 100)::text, 2, '0'),"
            " CASE WHEN mod(n, 1000) = 0 THEN ARRAY['vip'] ELSE '{}' END, 'Europe/Moscow'"
            f" FROM generate_series(1, {BIG}) AS n"
        )
        connection.exec_driver_sql(
            "INSERT INTO mailing (name, text, starts_at, ends_at, state, started_at, materialised_at, finished_at)"
            " SELECT 'Sale ' || n, 'Hello', now() - interval '2 days', now() - interval '1 day', 'completed', now(),"
            f" now(), now() FROM generate_series(1, {MAILINGS}) AS n"
        )
        for first, last, count in ((1, 1, BIG), (2, MAILINGS, SMALL)):
            connection.exec_driver_sql(
                "INSERT INTO message (mailing_id, client_id, status, attempts, sent_at, last_error)"
                " SELECT mailing, client, CASE WHEN mod(client, 100) = 7 THEN 'failed' ELSE 'sent' END, 1,"
                " CASE WHEN mod(client, 100) <> 7 THEN now() END, CASE WHEN mod(client, 100) = 7 THEN 'http_400' END"
                f" FROM generate_series({first}, {last}) AS mailing, generate_series(1, {count}) AS client"
                " ORDER BY mailing, client"
            )
    with module_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")
    return module_engine


@pytest.fixture
def reading(filled: sa.Engine) -> Iterator[Session]:
    """A session on the filled database."""
    with Session(filled) as session:
        yield session


MESSAGE_LISTS = {
    "all": (Filter(), 0),
    "all, from the middle": (Filter(), BIG // 2),
    "of the big mailing": (Filter(mailing_id=1), 0),
    "of the big mailing, from the middle": (Filter(mailing_id=1), BIG // 2),
    "of a small mailing": (Filter(mailing_id=77), 0),
    "of a client": (Filter(client_id=33), 0),
    "of a client in a mailing": (Filter(client_id=33, mailing_id=1), 0),
    "failed, of the big mailing": (Filter(mailing_id=1, status=MessageStatus.FAILED), 0),
    "failed for a reason": (Filter(mailing_id=1, reason="http_400"), 0),
    "cancelled: there are none": (Filter(status=MessageStatus.CANCELLED), 0),
    "sent, of the big mailing": (Filter(mailing_id=1, status=MessageStatus.SENT), 0),
}


@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("name", MESSAGE_LISTS)
def test_a_page_of_messages_costs_about_a_page(reading: Session, name: str, backwards: bool) -> None:
    wanted, after = MESSAGE_LISTS[name]
    place = (after or None) if backwards else after

    found = plans(reading, lambda session: messages.page(session, wanted, place, PAGE, backwards=backwards))

    assert not read_whole(found), found
    assert rows_of(found, "message") <= 3 * PAGE + 2 * MAILINGS, found


def test_one_message_is_found_by_its_key(reading: Session) -> None:
    found = plans(reading, lambda session: messages.get(session, BIG // 2))

    assert not read_whole(found), found
    assert rows_of(found, "message") == 1, found


@pytest.mark.parametrize(
    ("phone", "tag", "index"),
    [("+79000000077", None, "uq_client_phone"), (None, "vip", "ix_client_tags")],
    ids=["phone", "tag"],
)
def test_clients_are_found_by_the_index_of_the_filter(
    reading: Session, phone: str | None, tag: str | None, index: str
) -> None:
    found = plans(reading, lambda session: clients.page(session, phone, None, tag, 0, PAGE))

    assert not read_whole(found), found
    assert index in used(found), found


def test_a_page_of_all_clients_is_read_along_the_key(reading: Session) -> None:
    _counting, listing = plans(reading, lambda session: clients.page(session, None, None, None, 0, PAGE))

    assert used([listing]) == {"pk_client"}, listing
    assert rows_of([listing], "client") == PAGE, listing


NUMBERS: dict[str, Work] = {
    "totals": statistics.totals,
    "counts of a page of mailings": lambda session: statistics.by_mailing(session, range(1, PAGE + 1)),
    "counts of a mailing": lambda session: statistics.of_mailing(session, 1),
    "mailings": lambda session: mailings.page(session, None, 0, PAGE),
    "running mailings": lambda session: mailings.page(session, MailingState.RUNNING, 0, PAGE),
    "a mailing": lambda session: mailings.get(session, 1),
    "dashboard: flow": lambda session: dashboard.flow(session, now() - timedelta(hours=1), timedelta(minutes=1)),
    "dashboard: rates": lambda session: dashboard.rates(session, range(1, PAGE + 1), now()),
    "dashboard: in progress": lambda session: dashboard.in_progress(session, PAGE),
    "dashboard: upcoming": lambda session: dashboard.upcoming(session, PAGE),
    "dashboard: answers": lambda session: dashboard.answers(session, now() - timedelta(hours=1)),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_and_mailings_never_touch_the_messages(reading: Session, name: str) -> None:
    found = plans(reading, NUMBERS[name])

    assert not {scan.relation for plan in found for scan in plan.scans} & BIG_TABLES, found


def test_what_is_due_next_is_one_step_into_an_index_for_each_mailing(reading: Session) -> None:
    later = now() + timedelta(hours=1)
    ends_at = later + timedelta(hours=1)
    reading.execute(sa.update(Mailing).values(state=MailingState.RUNNING, finished_at=None, ends_at=ends_at))
    waiting = {"status": MessageStatus.PENDING, "next_attempt_at": later, "sent_at": None, "last_error": None}
    reading.execute(sa.update(Message).where(Message.mailing_id == 2).values(waiting))

    found = plans(reading, lambda session: dashboard.resting(session, range(1, PAGE + 1), now()))

    assert dashboard.resting(reading, [1, 2, 3], now()) == {2: later}
    assert not read_whole(found), found
    assert rows_of(found, "message") <= PAGE, found


def test_the_flow_of_a_mailing_is_read_by_its_index(reading: Session) -> None:
    found = plans(reading, lambda session: dashboard.flow_span(session, 77))

    assert used(found) == {"ix_status_flow_mailing_id"}, found

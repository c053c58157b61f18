"""The import worker on a real database: what it writes, and that nothing is lost or done twice when it dies."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from dramatiq import Worker
from dramatiq.brokers.stub import StubBroker
from sqlalchemy.orm import Session

from db.csv_rows import UnreadableFileError
from db.engine import make_engine
from db.models import Client, ImportChunk, ImportJob, ImportState
from db.models import RejectedRow as RejectedRowTable
from db.queries import imports
from sender import imports as importer
from sender.broker import IMPORTS_QUEUE, publish
from sender.imports import run_import
from tests.factories import make_client

SOON = timedelta(seconds=61)  # Leases have run out by then.


def upload(engine: sa.Engine, content: str | Iterable[bytes]) -> int:
    blocks = [content.encode()] if isinstance(content, str) else content
    with Session(engine) as session, session.begin():
        return imports.create(session, blocks).id


def job_of(engine: sa.Engine, import_id: int) -> ImportJob:
    with Session(engine, expire_on_commit=False) as session:
        job = imports.get(session, import_id)
    assert job is not None
    return job


def counts(job: ImportJob) -> tuple[int, int, int, int, int]:
    return job.total, job.processed, job.created, job.updated, job.rejected


def import_file(engine: sa.Engine, content: str | Iterable[bytes]) -> ImportJob:
    import_id = upload(engine, content)
    run_import(engine, import_id, "worker")
    return job_of(engine, import_id)


def clients(engine: sa.Engine) -> dict[str, Client]:
    with Session(engine, expire_on_commit=False) as session:
        return {client.phone: client for client in session.scalars(sa.select(Client))}


def count(engine: sa.Engine, table: Any) -> int:
    with Session(engine) as session:
        return session.scalars(sa.select(sa.func.count()).select_from(table)).one()


def rejected(engine: sa.Engine, import_id: int) -> list[tuple[int, str]]:
    with Session(engine) as session:
        return imports.errors(session, import_id)


def numbered(rows: int, start: int = 0, step: int = 1) -> Iterator[bytes]:
    """A file of so many clients, in pieces."""
    yield b"phone,name\n"
    for first in range(0, rows, 1000):
        numbers = (start + step * number for number in range(first, min(first + 1000, rows)))
        yield "".join(f"+7916{number:07d},Имя {number}\n" for number in numbers).encode()


def test_new_clients_are_written_with_all_they_have(engine: sa.Engine) -> None:
    job = import_file(
        engine,
        "\ufeffphone;operator_code;tags;timezone;name;Город\r\n"
        '8 (916) 123-45-67;;vip|new;Asia/Omsk;"Анна \\ ""А"" \t";"Омск\r\nцентр"\r\n'
        "+4930123456;30;;;;\r\n",
    )

    assert (job.state, counts(job), job.failure) == (ImportState.COMPLETED, (2, 2, 2, 0, 0), None)
    assert job.finished_at is not None
    anna, berlin = clients(engine)["+79161234567"], clients(engine)["+4930123456"]
    assert (anna.operator_code, anna.tags, anna.timezone) == ("916", ["vip", "new"], "Asia/Omsk")
    assert anna.attributes == {"name": 'Анна \\ "А"', "Город": "Омск\r\nцентр"}
    assert (berlin.operator_code, berlin.tags, berlin.timezone, berlin.attributes) == ("30", [], "Europe/Moscow", {})
    assert count(engine, ImportChunk) == 0


def test_tags_may_hold_whatever_is_special_elsewhere(engine: sa.Engine) -> None:
    import_file(engine, 'phone;tags\n89161234567;"a,b|{c}|\\|""d""|null|e\nf"\n')

    assert clients(engine)["+79161234567"].tags == ["a,b", "{c}", "\\", '"d"', "null", "e\nf"]


def test_known_phone_is_updated_and_keeps_what_the_row_does_not_say(engine: sa.Engine) -> None:
    with Session(engine) as session:
        opted_out_at = imports.clock(session)
        known = make_client(
            session,
            phone="+79161234567",
            operator_code="999",
            tags=["old"],
            timezone="Asia/Omsk",
            attributes={"name": "Anna", "age": 5},
            opted_out_at=opted_out_at,
        )
        client_id = known.id

    job = import_file(engine, "phone,operator_code,tags,name,town\n+79161234567,,,Vera,Omsk\n+79160000000,,,,\n")

    assert counts(job) == (2, 2, 1, 1, 0)
    updated = clients(engine)["+79161234567"]
    assert updated.id == client_id
    assert (updated.operator_code, updated.tags, updated.timezone) == ("999", ["old"], "Asia/Omsk")
    assert updated.attributes == {"name": "Vera", "age": 5, "town": "Omsk"}
    assert updated.opted_out_at == opted_out_at
    assert updated.updated_at > updated.created_at

    import_file(engine, "phone,tags,timezone\n+79161234567,new,Europe/Samara\n")

    updated = clients(engine)["+79161234567"]
    assert (updated.tags, updated.timezone) == (["new"], "Europe/Samara")


def test_known_number_outside_plus_seven_needs_no_operator_code(engine: sa.Engine) -> None:
    with Session(engine) as session:
        make_client(session, phone="+4930123456", operator_code="30")

    job = import_file(engine, "phone,tags\n+4930123456,a\n+4930123457,a\n")

    assert counts(job) == (2, 2, 0, 1, 1)
    assert rejected(engine, job.id) == [(3, "operator_code: required for a new number outside +7")]
    assert clients(engine)["+4930123456"].tags == ["a"]


@pytest.mark.parametrize("group_rows", [1, 2, 5000])
def test_later_row_of_the_same_phone_wins_wherever_groups_end(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, group_rows: int
) -> None:
    monkeypatch.setattr(importer, "GROUP_ROWS", group_rows)

    job = import_file(
        engine,
        "phone,tags,name,town\n+79161234567,a,Anna,Omsk\n89161234567,b,,Tula\n+79160000000,,,\n79161234567,,Vera,\n",
    )

    assert counts(job) == (4, 4, 2, 2, 0)
    assert clients(engine)["+79161234567"].tags == ["b"]
    assert clients(engine)["+79161234567"].attributes == {"name": "Vera", "town": "Tula"}


def test_every_rejected_row_is_kept_with_its_line_and_reason(engine: sa.Engine) -> None:
    job = import_file(
        engine,
        "phone,timezone,name\n"
        "+79161234567,Mars/Phobos,a\n"
        "\n"
        '+79161234568,,"two\nlines"\n'
        "123,,b\n"
        "+79161234569\n"
        '+79161234570,"Europe/Moscow,c\n'
        "+79161234571,,\\N\n",
    )

    assert (job.state, counts(job)) == (ImportState.COMPLETED, (6, 6, 2, 0, 4))
    assert rejected(engine, job.id) == [
        (2, "timezone: 'Mars/Phobos' is not an IANA time zone such as Europe/Moscow"),
        (6, "phone: '123' has too few or too many digits"),
        (7, "timezone: missing, the row ends before this column"),
        (8, "the row cannot be read: a quotation mark is not closed, or not doubled inside a quoted cell"),
    ]
    with Session(engine) as session:
        assert imports.rejected_after(session, job.id, 7, 10)[0].cells == ['+79161234570,"Europe/Moscow,c']
    assert clients(engine)["+79161234571"].attributes == {"name": r"\N"}


def test_refused_file_leaves_nothing_behind(engine: sa.Engine) -> None:
    with pytest.raises(UnreadableFileError):
        upload(engine, [*numbered(5000), b"\xff"])

    assert (count(engine, ImportJob), count(engine, ImportChunk)) == (0, 0)


def memory_of_import(database_url: str, import_id: int) -> int:
    """By how many MB a process grows that imports this; the code itself takes some."""
    program = (
        "import resource, sys\n"
        "from db.engine import make_engine\n"
        "from sender.imports import run_import\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = peak()\n"
        "run_import(make_engine(sys.argv[1], 'import'), int(sys.argv[2]), 'worker')\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, database_url, str(import_id)], check=True, capture_output=True, text=True
    )
    return int(done.stdout.split()[-1])


def test_many_rows_in_bounded_memory(engine: sa.Engine, database_url: str) -> None:
    import_id = upload(engine, numbered(100_000))

    assert memory_of_import(database_url, import_id) < 60  # The rows alone would take 100.

    assert counts(job_of(engine, import_id)) == (100_000, 100_000, 100_000, 0, 0)
    assert count(engine, Client) == 100_000


@pytest.mark.parametrize("row", [b"+79161234567," + b"x" * 250_000 + b"\n", b"," * 250_000 + b"x\n"])
def test_wide_rows_in_bounded_memory(engine: sa.Engine, database_url: str, row: bytes) -> None:
    import_id = upload(engine, [b"phone,name\n", *[row] * 100])

    assert memory_of_import(database_url, import_id) < 60  # All together would take 200, as lists and as JSON.

    assert counts(job_of(engine, import_id)) == (100, 100, 0, 0, 100)
    with Session(engine) as session:
        pages, line = [], 1
        while page := imports.rejected_after(session, import_id, line, 1000):
            pages.append(page)
            line = page[-1].line
    assert [found.line for page in pages for found in page] == list(range(2, 102))
    assert max(map(len, pages)) < 50


def start_import(database_url: str, import_id: int) -> subprocess.Popen[bytes]:
    """A process that imports in groups of 500 rows."""
    program = (
        "import sys\n"
        "from db.engine import make_engine\n"
        "from sender import imports\n"
        "imports.GROUP_ROWS = 500\n"
        "imports.run_import(make_engine(sys.argv[1], 'import'), int(sys.argv[2]), 'victim')\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, database_url, str(import_id)], env={**os.environ, "LOG_LEVEL": "ERROR"}
    )


def wait_for_progress(engine: sa.Engine, import_id: int, beyond: int) -> None:
    deadline = time.monotonic() + 30
    while job_of(engine, import_id).processed <= beyond:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wait_for_the_end_of_its_connections(engine: sa.Engine) -> None:
    """PostgreSQL notices a killed client only after the statement at hand: until then its locks and commit are open."""
    others = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND backend_type = 'client backend' AND application_name <> :tests"
    )
    deadline = time.monotonic() + 30
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while connection.scalar(others, {"tests": "mailings tests"}):
            assert time.monotonic() < deadline
            time.sleep(0.005)


def test_killed_import_goes_on_exactly_where_it_stopped(engine: sa.Engine, database_url: str) -> None:
    import_id = upload(engine, [*numbered(30_000), b"not a phone,x\n", *list(numbered(10))[1:]])
    processed = 0
    for _ in range(3):
        process = start_import(database_url, import_id)
        wait_for_progress(engine, import_id, processed)
        process.kill()
        process.wait()
        wait_for_the_end_of_its_connections(engine)
        job = job_of(engine, import_id)
        assert job.state is ImportState.RUNNING
        assert processed < job.processed < job.total
        assert count(engine, Client) == job.created == job.processed
        processed = job.processed
        with Session(engine) as session, session.begin():
            assert imports.waiting(session, imports.clock(session)) == []  # The lease of the dead still stands.
            assert imports.waiting(session, imports.clock(session) + SOON) == [import_id]

    run_import(engine, import_id, "next")

    job = job_of(engine, import_id)
    # A row imported twice would have been counted as updated: that are only the ten repeated ones.
    assert (job.state, counts(job)) == (ImportState.COMPLETED, (30_011, 30_011, 30_000, 10, 1))
    assert count(engine, Client) == 30_000
    assert rejected(engine, import_id)[0][0] == 30_002


def test_stopped_import_is_given_back_and_goes_on(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importer, "GROUP_ROWS", 10)
    import_id = upload(engine, numbered(25))
    stopping = threading.Event()
    stopping.set()

    run_import(engine, import_id, "first", stopping)

    job = job_of(engine, import_id)
    assert (job.state, job.processed, job.worker_id) == (ImportState.PENDING, 10, None)
    with Session(engine) as session, session.begin():
        assert imports.waiting(session, imports.clock(session)) == [import_id]
    run_import(engine, import_id, "second")
    assert counts(job_of(engine, import_id)) == (25, 25, 25, 0, 0)


def test_doubled_message_changes_nothing(engine: sa.Engine) -> None:
    import_id = upload(engine, numbered(20_000))
    barrier = threading.Barrier(4)

    def work(name: str) -> None:
        barrier.wait()
        run_import(engine, import_id, name)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "one", "two", "three")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run_import(engine, import_id, "late")

    job = job_of(engine, import_id)
    assert (job.state, counts(job)) == (ImportState.COMPLETED, (20_000, 20_000, 20_000, 0, 0))


def test_worker_that_lost_its_job_writes_nothing_more(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importer, "GROUP_ROWS", 10)
    import_id = upload(engine, numbered(30))
    frozen, thawed = threading.Event(), threading.Event()
    record = imports.record

    def record_slowly(*arguments: Any) -> bool:
        if arguments[2] == "slow" and arguments[3] == 10:
            frozen.set()
            assert thawed.wait(10)
        return record(*arguments)

    monkeypatch.setattr(imports, "record", record_slowly)
    slow = threading.Thread(target=run_import, args=(engine, import_id, "slow"))
    slow.start()
    assert frozen.wait(10)
    with Session(engine) as session, session.begin():
        assert imports.waiting(session, imports.clock(session) + SOON) == [import_id]

    run_import(engine, import_id, "quick")
    thawed.set()
    slow.join()

    job = job_of(engine, import_id)
    assert (job.state, counts(job)) == (ImportState.COMPLETED, (30, 30, 30, 0, 0))


def test_imports_of_the_same_people_in_opposite_orders_do_not_lock_each_other_out(engine: sa.Engine) -> None:
    ids = [upload(engine, numbered(20_000)), upload(engine, numbered(20_000, start=19_999, step=-1))]

    threads = [threading.Thread(target=run_import, args=(engine, import_id, str(import_id))) for import_id in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    jobs = [job_of(engine, import_id) for import_id in ids]
    assert [job.state for job in jobs] == [ImportState.COMPLETED] * 2
    assert sum(job.created for job in jobs) == count(engine, Client) == 20_000
    assert sum(job.updated for job in jobs) == 20_000


def test_damaged_file_ends_the_job_with_the_reason(engine: sa.Engine) -> None:
    import_id = upload(engine, numbered(30))
    with Session(engine) as session, session.begin():
        session.execute(sa.update(ImportChunk).where(ImportChunk.number == 1).values(data=b"+79160000000,\xff\n"))

    run_import(engine, import_id, "worker")

    job = job_of(engine, import_id)
    assert (job.state, job.failure) == (ImportState.FAILED, "The file is not UTF-8 (line 2): save it as CSV UTF-8.")
    assert count(engine, ImportChunk) == 0


def test_error_of_ours_ends_the_job_and_keeps_what_was_imported(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer, "GROUP_ROWS", 10)
    import_id = upload(engine, numbered(30))
    with Session(engine) as session, session.begin():
        # A rule of the table that the import does not know.
        session.execute(sa.text("ALTER TABLE client ADD CHECK (phone <> '+79160000015')"))

    run_import(engine, import_id, "worker")

    job = job_of(engine, import_id)
    assert (job.state, counts(job)) == (ImportState.FAILED, (30, 10, 10, 0, 0))
    assert job.failure == "an error on our side; the log of the sender tells more"
    assert job.finished_at is not None
    assert (count(engine, Client), count(engine, ImportChunk)) == (10, 0)


def test_interrupted_by_the_database_the_job_is_soon_handed_out_again(engine: sa.Engine) -> None:
    import_id = upload(engine, numbered(100))
    with engine.connect() as other, other.begin():
        other.execute(sa.text("LOCK TABLE client IN ACCESS EXCLUSIVE MODE"))
        hasty = make_engine(engine.url.render_as_string(hide_password=False), "import", statement_timeout_seconds=1.0)
        run_import(hasty, import_id, "worker")
        hasty.dispose()

    job = job_of(engine, import_id)
    assert (job.state, job.processed) == (ImportState.PENDING, 0)
    assert job.lease_until is not None
    with Session(engine) as session, session.begin():
        now: datetime = imports.clock(session)
        assert job.lease_until < now + timedelta(seconds=6)
        assert imports.waiting(session, now) == []
        assert imports.waiting(session, now + timedelta(seconds=6)) == [import_id]


def test_waiting_job_is_named_once_and_again_only_when_nobody_took_it(engine: sa.Engine) -> None:
    ids = [upload(engine, numbered(3)) for _ in range(2)]

    with Session(engine) as session, session.begin():
        now = imports.clock(session)
        assert imports.waiting(session, now) == ids
        assert imports.waiting(session, now) == []
        assert imports.waiting(session, now + SOON) == ids
    for import_id in ids:
        run_import(engine, import_id, "worker")
    with Session(engine) as session, session.begin():
        assert imports.waiting(session, now + 10 * SOON) == []
    assert count(engine, RejectedRowTable) == 0


def test_job_whose_row_is_held_by_a_frozen_worker_keeps_nobody_waiting(engine: sa.Engine) -> None:
    held, free = upload(engine, numbered(3)), upload(engine, numbered(3))
    with Session(engine) as frozen, frozen.begin(), Session(engine) as session, session.begin():
        frozen.execute(sa.select(ImportJob.id).where(ImportJob.id == held).with_for_update())

        session.execute(sa.text("SET LOCAL lock_timeout = '1s'"))
        assert imports.waiting(session, imports.clock(session)) == [free]


def test_message_of_the_dispatcher_reaches_the_importer(engine: sa.Engine) -> None:
    import_id = upload(engine, numbered(3))
    broker = StubBroker(middleware=[])
    broker.declare_queue(IMPORTS_QUEUE)
    importer.declare_actor(broker, engine, "worker", threading.Event())
    worker = Worker(broker, queues={IMPORTS_QUEUE}, worker_threads=1, worker_timeout=50)

    publish(broker, IMPORTS_QUEUE, importer.ACTOR, import_id)
    worker.start()
    try:
        broker.join(IMPORTS_QUEUE, timeout=10_000)
        worker.join()
    finally:
        worker.stop()

    assert job_of(engine, import_id).state is ImportState.COMPLETED

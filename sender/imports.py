"""The import worker: takes a job, goes through its file, and commits the rows in groups together with the progress.

Whatever happens to the process, the job stands exactly behind its last committed group: the next worker goes on there.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import count, islice

import dramatiq
import psycopg2
import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

from common.settings import settings
from db.client_rows import Layout, ReadRows, read_rows
from db.csv_rows import Row, Table, UnreadableFileError
from db.models import ImportJob
from db.queries import imports
from sender.broker import IMPORTS_QUEUE

log = structlog.get_logger(__name__)

ACTOR = "import_clients"
GROUP_ROWS = 5000  # A transaction of 0.2 s: nobody waits for it, and its overhead is lost among the rows.
# Of rows that are uncommonly wide fewer are committed together: they are in memory several times by then.
GROUP_BYTES = 4 * 1024 * 1024
SKIP_ROWS = 100_000
# RabbitMQ delivers a message again that was not acknowledged for half an hour: longer imports are given back and go on.
TURN_SECONDS = 600
# After trouble with the database.
PAUSE = timedelta(seconds=5)

_DATABASE_AWAY = (OperationalError, InterfaceError, psycopg2.OperationalError, psycopg2.InterfaceError)


class JobLostError(Exception):
    """The lease ran out, and the job is in somebody else's hands."""


def declare_actor(
    broker: dramatiq.Broker, engine: Engine, worker_id: str, stopping: threading.Event
) -> dramatiq.Actor[[int], None]:
    """Make the actor that imports; once `stopping` is set, it gives its job back after the group at hand."""

    @dramatiq.actor(broker=broker, actor_name=ACTOR, queue_name=IMPORTS_QUEUE)
    def import_clients(import_id: int) -> None:
        run_import(engine, import_id, worker_id, stopping)

    return import_clients


def run_import(engine: Engine, import_id: int, worker_id: str, stopping: threading.Event | None = None) -> None:
    """Import the rest of a job's file, unless another worker has the job or it has ended. Leaves errors in the job."""
    try:
        with Session(engine, expire_on_commit=False) as session, session.begin():
            job = imports.take(session, import_id, worker_id, imports.clock(session))
        if job is None:
            log.info("import_not_taken", import_id=import_id)
            return
        _Importer(engine, job, worker_id, stopping or threading.Event()).run()
    except _DATABASE_AWAY:
        log.warning("import_interrupted", import_id=import_id, exc_info=True)


class _Importer:
    """One worker's turn at one job."""

    def __init__(self, engine: Engine, job: ImportJob, worker_id: str, stopping: threading.Event) -> None:
        self._engine = engine
        self._id = job.id
        self._processed = job.processed
        self._worker_id = worker_id
        self._stopping = stopping
        self._turn_ends_at = time.monotonic() + TURN_SECONDS
        self._default_timezone = settings().default_timezone

    def run(self) -> None:
        """Go on until the file, the turn or the process ends; raises when the database is away."""
        started_at, started_with = time.monotonic(), self._processed
        log.info("import_started", import_id=self._id, processed=self._processed)
        try:
            outcome = "completed" if self._import_rows() else "given_back"
        except JobLostError:
            outcome = "lost"
        except UnreadableFileError as error:
            outcome = "failed"
            self._fail(str(error))
        except _DATABASE_AWAY:
            # Best effort: where it fails, the lease runs out instead.
            with contextlib.suppress(*_DATABASE_AWAY):
                self._give_back(PAUSE)
            raise
        except Exception:
            outcome = "failed"
            log.exception("import_crashed", import_id=self._id)
            self._fail("an error on our side; the log of the sender tells more")
        seconds = round(time.monotonic() - started_at, 3)
        rows = self._processed - started_with
        log.info("import_ended", import_id=self._id, outcome=outcome, rows=rows, seconds=seconds)

    def _import_rows(self) -> bool:
        """Whether the file was gone through to its end."""
        table = Table(self._blocks())
        layout = Layout(table.columns)
        rows = table.rows()
        self._skip(rows)
        for group in _groups(rows):
            self._record(read_rows(layout, group))
            if self._stopping.is_set() or time.monotonic() > self._turn_ends_at:
                self._give_back()
                return False
        with Session(self._engine) as session, session.begin():
            if not imports.complete(session, self._id, self._worker_id, imports.clock(session)):
                raise JobLostError
        return True

    def _blocks(self) -> Iterator[bytes]:
        """The file, a piece at a time; no transaction stays open between two pieces."""
        for number in count():
            with Session(self._engine) as session:
                block = imports.chunk(session, self._id, number)
            if block is None:
                return
            yield block

    def _skip(self, rows: Iterator[Row]) -> None:
        """Pass over what was committed before this turn."""
        for skipped in range(0, self._processed, SKIP_ROWS):
            deque(islice(rows, min(SKIP_ROWS, self._processed - skipped)), maxlen=0)
            with Session(self._engine) as session, session.begin():
                if not imports.renew(session, self._id, self._worker_id, imports.clock(session)):
                    raise JobLostError

    def _record(self, read: ReadRows) -> None:
        with Session(self._engine) as session, session.begin():
            now = imports.clock(session)
            if not imports.record(
                session, self._id, self._worker_id, self._processed, read, self._default_timezone, now
            ):
                raise JobLostError
        self._processed += read.total

    def _give_back(self, pause: timedelta = timedelta()) -> None:
        with Session(self._engine) as session, session.begin():
            imports.give_back(session, self._id, self._worker_id, imports.clock(session) + pause)

    def _fail(self, reason: str) -> None:
        with Session(self._engine) as session, session.begin():
            imports.fail(session, self._id, self._worker_id, reason, imports.clock(session))


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows in the portions that are committed together."""
    group: list[Row] = []
    size = 0
    for row in rows:
        group.append(row)
        size += row.size
        if len(group) == GROUP_ROWS or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group

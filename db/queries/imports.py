"""Import jobs: stored as they are uploaded, taken by one worker at a time, recorded group by group."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db import client_rows
from db.client_rows import Group, ImportedClient, Layout, ReadRows, RejectedRow
from db.csv_rows import Table, UnreadableFileError
from db.engine import Database
from db.models import Client, ImportChunk, ImportJob, ImportState
from db.models import RejectedRow as RejectedRowTable
from db.queries import audience, audit
from db.queries.notifications import notify_work

# Renewed with every group of rows, several times a second. A group that takes longer holds the job's row meanwhile.
LEASE = timedelta(seconds=15)
# How long a published job may wait for a free worker until it is published again.
PICK_UP = timedelta(seconds=30)
SHOWN_ERRORS = 100
# What the notification of a job says: there is a file to import, and nothing else to do.
IMPORT = "import"
# As JSON; in Python they take a multiple, and whoever downloads them may be one of several.
REJECTED_BYTES = 4 * 1024 * 1024


# --- the uploader's side


def create(session: Session, blocks: Iterable[bytes]) -> ImportJob:
    """Store a file as it arrives, and its job; raise UnreadableFileError, then nothing of it may be committed.

    The whole file is parsed on the way: what is no CSV is refused at once, and `total` is exact from the start.
    """
    # A slow line brings a block in minutes; the usual limit would break the upload off.
    session.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = '5min'"))
    job = ImportJob(state=ImportState.PENDING, delimiter="", columns=[])
    session.add(job)
    session.flush()
    table = Table(_stored(session, job.id, blocks))
    Layout(table.columns)
    job.delimiter, job.columns = table.delimiter, table.columns
    job.total = sum(1 for _ in table.rows())
    if not job.total:
        raise UnreadableFileError("The file has a header, but no row below it.")
    audit.record(session, "import.create", f"import:{job.id}", after={"rows": job.total, "columns": job.columns})
    notify_work(session, IMPORT)
    session.flush()
    session.refresh(job)
    return job


def _stored(session: Session, import_id: int, blocks: Iterable[bytes]) -> Iterator[bytes]:
    for number, block in enumerate(blocks):
        session.execute(insert(ImportChunk).values(import_id=import_id, number=number, data=block))
        yield block


def get(session: Session, import_id: int) -> ImportJob | None:
    """One job, as it stands now."""
    return session.get(ImportJob, import_id, populate_existing=True)


def page(session: Session, offset: int, limit: int) -> tuple[Sequence[ImportJob], int]:
    """A page of jobs, newest first, and how many there are."""
    total = session.scalar(sa.select(sa.func.count()).select_from(ImportJob)) or 0
    jobs = session.scalars(sa.select(ImportJob).order_by(ImportJob.id.desc()).offset(offset).limit(limit)).all()
    return jobs, total


def latest(session: Session, beyond: int | None, limit: int, *, newer: bool = False) -> list[ImportJob]:
    """The next older jobs than the one with this id, or the next newer ones; newest first either way."""
    statement = sa.select(ImportJob)
    if beyond is not None:
        statement = statement.where(ImportJob.id > beyond if newer else ImportJob.id < beyond)
    found = list(session.scalars(statement.order_by(ImportJob.id if newer else ImportJob.id.desc()).limit(limit)))
    return found[::-1] if newer else found


def errors(session: Session, import_id: int) -> list[tuple[int, str]]:
    """Line and reason of the first rejected rows."""
    statement = (
        sa.select(RejectedRowTable.line, RejectedRowTable.reason)
        .where(RejectedRowTable.import_id == import_id)
        .order_by(RejectedRowTable.line)
        .limit(SHOWN_ERRORS)
    )
    return [(line, reason) for line, reason in session.execute(statement)]


def rejected_after(session: Session, import_id: int, line: int, limit: int) -> list[RejectedRow]:
    """The next rejected rows that start below this line, in the order of the file; of wide ones fewer than `limit`."""
    # PostgreSQL knows how long a text is without reading it.
    size = sa.func.octet_length(RejectedRowTable.row)
    before = sa.func.sum(size).over(order_by=RejectedRowTable.line) - size
    following = (
        sa.select(RejectedRowTable.line, RejectedRowTable.reason, RejectedRowTable.row, before.label("before"))
        .where(RejectedRowTable.import_id == import_id, RejectedRowTable.line > line)
        .order_by(RejectedRowTable.line)
        .limit(limit)
        .subquery()
    )
    statement = (
        sa.select(following.c.line, following.c.reason, following.c.row)
        .where(following.c.before < REJECTED_BYTES)
        .order_by(following.c.line)
    )
    return [RejectedRow(found.line, found.reason, orjson.loads(found.row)) for found in session.execute(statement)]


# --- the dispatcher's side


def waiting(database: Database, now: datetime) -> list[int]:
    """The jobs to publish now, oldest first; each is then given some time before it is named again.

    A running job whose lease ran out lost its worker: it is pending again, and goes on where that worker stopped.
    """
    # A frozen worker may hold its job's row: the dispatcher has better things to do than to wait for it.
    unattended = (
        sa.select(ImportJob.id)
        .where(
            ImportJob.state.in_([ImportState.PENDING, ImportState.RUNNING]),
            sa.or_(ImportJob.lease_until.is_(None), ImportJob.lease_until < now),
        )
        .with_for_update(skip_locked=True)
    )
    statement = (
        sa.update(ImportJob)
        .where(ImportJob.id.in_(unattended))
        .values(state=ImportState.PENDING, worker_id=None, lease_until=now + PICK_UP)
        .returning(ImportJob.id)
        .execution_options(synchronize_session=False)
    )
    return sorted(database.scalars(statement))


# --- the worker's side; everything is guarded by the worker that has the job


def clock(database: Database) -> datetime:
    """The database's time: leases would not hold between machines whose clocks differ."""
    now: datetime = database.scalars(sa.select(sa.func.clock_timestamp())).one()
    return now


def take(session: Session, import_id: int, worker_id: str, now: datetime) -> ImportJob | None:
    """Make this worker the job's only one; None when another has it, or it has ended."""
    return session.scalar(
        sa.update(ImportJob)
        .where(
            ImportJob.id == import_id,
            sa.or_(
                ImportJob.state == ImportState.PENDING,
                sa.and_(ImportJob.state == ImportState.RUNNING, ImportJob.lease_until < now),
            ),
        )
        .values(state=ImportState.RUNNING, worker_id=worker_id, lease_until=now + LEASE)
        .returning(ImportJob)
    )


def chunk(session: Session, import_id: int, number: int) -> bytes | None:
    """A piece of the file, numbered from 0; None behind the last."""
    return session.scalar(
        sa.select(ImportChunk.data).where(ImportChunk.import_id == import_id, ImportChunk.number == number)
    )


def renew(session: Session, import_id: int, worker_id: str, now: datetime) -> bool:
    """Keep the job a while longer; False when it is not this worker's any more."""
    return _change(session, import_id, worker_id, {"lease_until": now + LEASE})


def give_back(session: Session, import_id: int, worker_id: str, not_before: datetime) -> bool:
    """Let another worker go on, from this time on."""
    notify_work(session, IMPORT)
    return _change(
        session, import_id, worker_id, {"state": ImportState.PENDING, "worker_id": None, "lease_until": not_before}
    )


def complete(session: Session, import_id: int, worker_id: str, now: datetime) -> bool:
    """The last row is recorded: end the job and drop the file."""
    return _end(session, import_id, worker_id, {"state": ImportState.COMPLETED, "finished_at": now})


def fail(session: Session, import_id: int, worker_id: str, reason: str, now: datetime) -> bool:
    """End the job with what was recorded so far, and drop the file."""
    return _end(session, import_id, worker_id, {"state": ImportState.FAILED, "failure": reason, "finished_at": now})


def _end(session: Session, import_id: int, worker_id: str, values: dict[str, Any]) -> bool:
    ended = _change(session, import_id, worker_id, {**values, "lease_until": None, "worker_id": None})
    if ended:
        session.execute(sa.delete(ImportChunk).where(ImportChunk.import_id == import_id))
    return ended


def _change(session: Session, import_id: int, worker_id: str, values: dict[str, Any]) -> bool:
    statement = (
        sa.update(ImportJob)
        .where(ImportJob.id == import_id, ImportJob.worker_id == worker_id, ImportJob.state == ImportState.RUNNING)
        .values(values)
        .returning(ImportJob.id)
        .execution_options(synchronize_session=False)
    )
    return session.scalar(statement) is not None


def record(
    session: Session,
    import_id: int,
    worker_id: str,
    processed: int,
    read: ReadRows,
    default_timezone: str,
    now: datetime,
) -> bool:
    """Write the rows that follow the first `processed` ones: clients, rejected rows and progress, or nothing at all.

    False when the job is not this worker's any more, or not at this row.
    """
    mine = (
        sa.select(ImportJob.id)
        .where(
            ImportJob.id == import_id,
            ImportJob.worker_id == worker_id,
            ImportJob.state == ImportState.RUNNING,
            ImportJob.processed == processed,
        )
        .with_for_update()
    )
    if session.scalar(mine) is None:
        return False
    codes = _known_codes(session, read.without_code)
    group = client_rows.merge(read, codes)
    created = _write_clients(session, group, codes, default_timezone, now)
    _write_rejected(session, import_id, group.rejected)
    progress = {
        "processed": ImportJob.processed + read.total,
        "created": ImportJob.created + created,
        "updated": ImportJob.updated + len(group.clients) - created + group.repeated,
        "rejected": ImportJob.rejected + len(group.rejected),
        "lease_until": now + LEASE,
    }
    return _change(session, import_id, worker_id, progress)


def _known_codes(session: Session, numbers: Sequence[str]) -> dict[str, str]:
    """The operator codes of those numbers that are in the directory, and that stay there until the commit."""
    if not numbers:
        return {}
    statement = (
        sa.select(Client.phone, Client.operator_code)
        .where(Client.phone.in_(numbers))
        .with_for_update(read=True, key_share=True)
    )
    return dict(session.execute(statement).all())


_CREATE_INCOMING = sa.text("""
    CREATE TEMPORARY TABLE IF NOT EXISTS incoming_client (
        phone text PRIMARY KEY, operator_code text, default_code text, tags text[], timezone text, attributes jsonb
    ) ON COMMIT DELETE ROWS
""")
_COPY_INCOMING = "COPY incoming_client (phone, operator_code, default_code, tags, timezone, attributes) FROM STDIN"
_COPY_REJECTED = "COPY rejected_row (import_id, line, reason, row) FROM STDIN"
# In the order of the phones: two imports of the same people wait for each other, but never in a circle. A NULL is
# something the row does not say: a new client gets the default, a known one keeps what it has.
_MERGE_INCOMING = sa.text("""
    WITH written AS (
        INSERT INTO client (phone, operator_code, tags, timezone, attributes, created_at, updated_at)
        SELECT phone, coalesce(operator_code, default_code), coalesce(tags, '{}'),
            coalesce(timezone, :default_timezone), attributes, :now, :now
        FROM incoming_client ORDER BY phone
        ON CONFLICT (phone) DO UPDATE SET (operator_code, tags, timezone, attributes, updated_at) = (
            SELECT coalesce(incoming_client.operator_code, client.operator_code),
                coalesce(incoming_client.tags, client.tags), coalesce(incoming_client.timezone, client.timezone),
                client.attributes || incoming_client.attributes, excluded.updated_at
            FROM incoming_client WHERE incoming_client.phone = excluded.phone
        )
        RETURNING xmax = 0 AS created  -- xmax is set in a row that was updated
    )
    SELECT count(*) FILTER (WHERE created) FROM written
""")
# LIMIT leaves the planner, which knows nothing of the temporary table, no way but the index.
_MOVED = sa.text("""
    SELECT moved.id FROM incoming_client, LATERAL (
        SELECT id FROM client WHERE phone = incoming_client.phone AND timezone <> incoming_client.timezone LIMIT 1
    ) AS moved
""")


def _write_clients(session: Session, group: Group, codes: dict[str, str], default_timezone: str, now: datetime) -> int:
    """Add or update these clients; how many were added."""
    if not group.clients:
        return 0
    session.execute(_CREATE_INCOMING)
    _copy(session, _COPY_INCOMING, (_incoming_line(client, codes) for client in group.clients.values()))
    moved = session.scalars(_MOVED).all()
    created: int = session.scalars(_MERGE_INCOMING, {"default_timezone": default_timezone, "now": now}).one()
    if moved:
        audience.reschedule_clients(session, moved)
    return created


def _write_rejected(session: Session, import_id: int, rejected: Sequence[RejectedRow]) -> None:
    if rejected:
        _copy(session, _COPY_REJECTED, (_rejected_line(import_id, row) for row in rejected))


def _copy(session: Session, statement: str, lines: Iterable[str]) -> None:
    cursor = session.connection().connection.cursor()
    with contextlib.closing(cursor):
        cursor.copy_expert(statement, io.StringIO("".join(lines)))


def _incoming_line(client: ImportedClient, codes: dict[str, str]) -> str:
    # Phones, codes and zones are checked: nothing in them has a meaning for COPY.
    default_code = client.default_code or codes.get(client.phone)
    tags = _array(client.tags) if client.tags else _NULL
    attributes = _escape(orjson.dumps(client.attributes).decode()) if client.attributes else "{}"
    return (
        f"{client.phone}\t{client.operator_code or _NULL}\t{default_code or _NULL}"
        f"\t{tags}\t{client.timezone or _NULL}\t{attributes}\n"
    )


def _rejected_line(import_id: int, row: RejectedRow) -> str:
    return f"{import_id}\t{row.line}\t{_escape(row.reason)}\t{_escape(orjson.dumps(row.cells).decode())}\n"


_NULL = r"\N"
_COPY_SPECIAL = re.compile(r"[\\\t\n\r]")
_COPY_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})


def _escape(text: str) -> str:
    """The text as a column of COPY's text format; translating is slow, and hardly any text needs it."""
    return text.translate(_COPY_ESCAPES) if _COPY_SPECIAL.search(text) else text


# As in `client_rows`: hardly any set of tags is the only one of its kind.
@functools.lru_cache(maxsize=1000)
def _array(items: tuple[str, ...]) -> str:
    quoted = (item.replace("\\", r"\\").replace('"', r"\"") for item in items)
    return _escape("{" + ",".join(f'"{item}"' for item in quoted) + "}")

"""The life of a mailing as the dispatcher drives it: start, write the messages, expire, cancel, complete, remove.

Everything goes in chunks of some ten thousand rows: a million recipients then neither hold a lock nor a transaction for
long, and a restart goes on where the last chunk was committed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, time
from typing import Any, NamedTuple

import sqlalchemy as sa

from db import rules
from db.engine import Database
from db.queries import batches, planned
from db.queries.statements import rowcount
from db.windows import Window, next_opening

CHUNK = 20_000
BATCHES = CHUNK // planned.BATCH_SIZE
FIRST_CHUNK = 1_000  # so that the first message is at the gateway at once


_STARTS = """
    deleted_at IS NULL AND (
        state = 'scheduled' AND starts_at <= now() OR state = 'paused' AND started_at IS NULL AND ends_at <= now()
    )
"""
_UNWRITTEN = """
    state IN ('running', 'paused') AND started_at IS NOT NULL AND materialised_at IS NULL AND deleted_at IS NULL
"""
_RESCHEDULED = "rescheduled_through IS NOT NULL AND state IN ('running', 'paused') AND deleted_at IS NULL"
_ENDED = """
    deleted_at IS NULL AND (state = 'cancelled' OR (state IN ('running', 'paused') AND ends_at <= now()))
      AND id IN (SELECT mailing_id FROM status_count WHERE status = 'pending'
                 GROUP BY mailing_id HAVING sum(amount) > 0)
"""
_NOTHING_OPEN = """
    state IN ('running', 'paused') AND materialised_at IS NOT NULL AND deleted_at IS NULL
      AND id NOT IN (SELECT mailing_id FROM status_count WHERE status IN ('pending', 'sending')
                     GROUP BY mailing_id HAVING sum(amount) > 0)
"""
_CROWDED = "SELECT mailing_id FROM status_count GROUP BY mailing_id HAVING count(*) > :tolerated"


class Chores(NamedTuple):
    """What there is to do about mailings; each step makes sure by itself."""

    starts: bool  # the time of one has come
    unwritten: list[int]  # started, and their messages are not all written
    ended: list[int]  # or cancelled, and messages still wait
    rescheduled: bool  # the times of waiting messages are to be set anew
    deleted: list[int]  # and not yet removed
    stopped: bool  # a batch in the queue is of a mailing that may not send any more
    lost: bool  # the lease of a batch ran out
    completes: bool  # one has no open message left
    crowded: list[int]  # have many counter rows
    next_start: float | None  # seconds until the next scheduled one starts


_CHORES = sa.text(f"""
    SELECT EXISTS (SELECT FROM mailing WHERE {_STARTS}),
           ARRAY(SELECT id FROM mailing WHERE {_UNWRITTEN} ORDER BY id),
           ARRAY(SELECT id FROM mailing WHERE {_ENDED} ORDER BY id),
           EXISTS (SELECT FROM mailing WHERE {_RESCHEDULED}),
           ARRAY(SELECT id FROM mailing WHERE deleted_at IS NOT NULL ORDER BY id),
           EXISTS (SELECT FROM batch WHERE {batches.STOPPED}),
           EXISTS (SELECT FROM batch WHERE lease_until < now()),
           EXISTS (SELECT FROM mailing WHERE {_NOTHING_OPEN}),
           ARRAY({_CROWDED}),
           (SELECT extract(epoch FROM min(starts_at) - now())::float FROM mailing
            WHERE state = 'scheduled' AND starts_at > now() AND deleted_at IS NULL)
""")


def chores(database: Database, tolerated: int = 20) -> Chores:
    """All that there is to do, in one look: most find little, and each question by itself would cost a transaction."""
    return Chores._make(database.execute(_CHORES, {"tolerated": tolerated}).one())


def start_due(database: Database) -> list[int]:
    """Set the scheduled mailings whose time has come running; their ids.

    One whose end has passed as well (nobody was there to start it, or it was paused before its start and stays so) is
    started too: its audience is then written as expired, and so accounted for.
    """
    return list(
        database.scalars(
            sa.text(
                "UPDATE mailing SET state = CASE state WHEN 'scheduled' THEN 'running' ELSE state END,"
                f" started_at = now(), updated_at = now() WHERE {_STARTS} RETURNING id"
            )
        )
    )


def running(database: Database) -> list[int]:
    """The mailings that may send now."""
    return list(
        database.scalars(sa.text("SELECT id FROM mailing WHERE state = 'running' AND ends_at > now() ORDER BY id"))
    )


_HAS_PLAN = "EXISTS (SELECT FROM planned_batch WHERE mailing_id = mailing.id)"
# When the next message of a mailing is due; with a planned batch, since its start. The first one is asked for, not
# whether there is any: that the planner once answered by reading the whole table.
NEXT_DUE = f"""(
    SELECT CASE WHEN {_HAS_PLAN} THEN mailing.started_at ELSE (
        SELECT next_attempt_at FROM message
        WHERE mailing_id = mailing.id AND next_attempt_at IS NOT NULL ORDER BY next_attempt_at LIMIT 1
    ) END
)"""
_DUE = sa.text(
    f"SELECT id, {_HAS_PLAN} AS has_plan FROM mailing WHERE state = 'running' AND ends_at > now()"
    f" AND {NEXT_DUE} <= now() + make_interval(secs => :within)"
)


def due(database: Database, within_seconds: float = 0) -> dict[int, bool]:
    """The running mailings that have a message due now, or within so many seconds; whether a batch of it is planned."""
    rows = database.execute(_DUE, {"within": within_seconds})
    return {row.id: row.has_plan for row in rows}


_AUDIENCE = """
    audience AS MATERIALIZED (
        SELECT id, timezone FROM client
        WHERE id > :cursor AND opted_out_at IS NULL
          AND (:any_code OR operator_code = ANY(:codes)) AND (:any_tag OR tags && CAST(:tags AS text[]))
        ORDER BY id LIMIT :chunk
    )
"""
# All are due now: they are written in batches, for which numbers are taken beforehand.
_MATERIALISE_PLANNED = f"""
    WITH {_AUDIENCE}, numbers AS MATERIALIZED (
        SELECT ARRAY(
            SELECT nextval(pg_get_serial_sequence('batch', 'id'))
            FROM generate_series(1, (SELECT (count(*) + :batch_size - 1) / :batch_size FROM audience))
        ) AS of_batches
    ), written AS (
        INSERT INTO message (mailing_id, client_id, status, batch_id)
        SELECT :mailing_id, id, 'sending',
               (SELECT of_batches FROM numbers)[1 + (row_number() OVER () - 1) / :batch_size]
        FROM audience
        RETURNING id, batch_id
    ), planned AS (
        INSERT INTO planned_batch (id, mailing_id, message_ids)
        SELECT batch_id, :mailing_id, array_agg(id) FROM written GROUP BY batch_id
        RETURNING mailing_id, message_ids
    ), {planned.COUNTED_AS_PENDING}
    SELECT count(*), max(id) FROM audience
"""
_MATERIALISE = """
    WITH {audience}, due AS (
        SELECT audience.id AS client_id, {due_at} AS at FROM audience {openings}
    ), written AS (
        INSERT INTO message (mailing_id, client_id, status, next_attempt_at, last_error)
        SELECT :mailing_id, client_id,
               CASE WHEN at < :ends_at THEN 'pending' ELSE 'expired' END,
               CASE WHEN at < :ends_at THEN at END,
               CASE WHEN at < :ends_at THEN NULL ELSE 'ended' END
        FROM due {in_order} {who_is_new}
    )
    SELECT count(*), max(id) FROM audience
"""
# Of a zone that this installation does not know there is none: then now, and the worker looks again.
_OPENS_AT = "greatest(opening.at, now())"
_WRITTEN_THROUGH = """(
    SELECT client_id FROM message WHERE mailing_id = mailing.id ORDER BY client_id DESC LIMIT 1
) AS written_through"""
_OPENINGS = """
    LEFT JOIN unnest(CAST(:zones AS text[]), CAST(:opens AS timestamptz[])) AS opening (zone, at)
        ON opening.zone = timezone
"""


def materialise_chunk(database: Database, mailing_id: int) -> bool:
    """Write the next chunk of a mailing's messages; True while there is more to write."""
    mailing = database.execute(
        sa.text(
            f"SELECT *, now() AS at, {_WRITTEN_THROUGH} FROM mailing WHERE id = :id AND {_UNWRITTEN} FOR NO KEY UPDATE"
        ),
        {"id": mailing_id},
    ).one_or_none()
    if mailing is None:
        return False
    chunk = CHUNK if mailing.materialised_through else FIRST_CHUNK
    values: dict[str, Any] = {
        "mailing_id": mailing_id,
        "cursor": mailing.materialised_through,
        "any_code": not mailing.operator_codes,
        "codes": mailing.operator_codes,
        "any_tag": not mailing.tags,
        "tags": mailing.tags,
        "chunk": chunk,
        "ends_at": mailing.ends_at,
        "batch_size": planned.BATCH_SIZE,
    }
    # PostgreSQL reads the audience in its order, and keeps that but for a join: sorting it again costs a tenth.
    parts = {"audience": _AUDIENCE, "due_at": "now()", "openings": "", "in_order": "", "who_is_new": ""}
    if mailing.window_from is not None:
        parts |= {"due_at": _OPENS_AT, "openings": _OPENINGS, "in_order": "ORDER BY client_id"}
        values |= _openings(mailing.window_from, mailing.window_to, mailing.at.replace(second=0, microsecond=0))
    if (mailing.written_through or 0) > mailing.materialised_through:
        # The cursor was lost, which nothing we know of does. Asked of every row, it costs a fifth.
        parts["who_is_new"] = "ON CONFLICT (mailing_id, client_id) DO NOTHING"
    are_all_due = mailing.window_from is None and mailing.ends_at > mailing.at and not parts["who_is_new"]
    statement = _MATERIALISE_PLANNED if are_all_due else _MATERIALISE.format(**parts)
    if not mailing.operator_codes and not mailing.tags:
        # Along the primary key, also while nothing is known of new clients: sorting all would take that for each chunk.
        database.execute(sa.text("SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off"))
    found, last = database.execute(sa.text(statement), values).one()
    more = found == chunk
    database.execute(
        sa.text(
            "UPDATE mailing SET materialised_through = coalesce(:last, materialised_through),"
            " materialised_at = CASE WHEN :more THEN NULL ELSE now() END WHERE id = :id"
        ),
        {"last": last, "more": more, "id": mailing_id},
    )
    return bool(more)


# Windows open and close at whole minutes: the openings of a minute serve all chunks that are written in it.
@functools.lru_cache(maxsize=16)
def _openings(opens: time, closes: time, minute: datetime) -> dict[str, list[Any]]:
    """The next opening of a window in every time zone of the world: some hundred, cheaper than one per client."""
    zones = sorted(rules.timezones())
    window = Window(opens, closes)
    return {"zones": zones, "opens": [next_opening(window, zone, minute) for zone in zones]}


# Windows open at whole minutes: what waits for another time backs off, or the gateway asked for it, and is not called
# before.
_RESCHEDULE = """
    WITH waiting AS MATERIALIZED (
        SELECT message.id, message.client_id, client.timezone,
               nullif(message.next_attempt_at, date_trunc('minute', message.next_attempt_at)) AS not_before
        FROM {messages}
    ), due AS (
        SELECT waiting.id, greatest({due_at}, not_before) AS at FROM waiting {openings}
    ), moved AS (
        UPDATE message SET next_attempt_at = due.at FROM due WHERE message.id = due.id
    )
    SELECT max(client_id) FROM waiting
"""
_NEXT_CHUNK = """
    message JOIN client ON client.id = message.client_id
    WHERE message.mailing_id = :mailing_id AND message.client_id > :cursor AND message.status = 'pending'
    ORDER BY message.client_id LIMIT :chunk FOR UPDATE OF message
"""
# One by one, in the order of the array: whatever the planner knows of a mailing, it may not go through all of it.
_OF_CLIENTS = """
    unnest(CAST(:client_ids AS bigint[])) AS mover (id), LATERAL (
        SELECT id, client_id, next_attempt_at FROM message
        WHERE mailing_id = :mailing_id AND client_id = mover.id AND status = 'pending' LIMIT 1 FOR UPDATE
    ) AS message JOIN client ON client.id = message.client_id
"""


def reschedule_chunk(database: Database) -> bool:
    """After a window was edited, set the times of the next chunk of waiting messages anew; True if there was one."""
    mailing = database.execute(
        sa.text(
            f"SELECT *, now() AS at FROM mailing WHERE {_RESCHEDULED} ORDER BY id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED"
        )
    ).one_or_none()
    if mailing is None:
        return False
    if planned.unplan(database, [mailing.id], BATCHES):
        return True
    last = _reschedule(database, mailing, _NEXT_CHUNK, {"cursor": mailing.rescheduled_through, "chunk": CHUNK})
    database.execute(
        sa.text("UPDATE mailing SET rescheduled_through = :last WHERE id = :id"), {"last": last, "id": mailing.id}
    )
    return True


def reschedule_clients(database: Database, client_ids: Sequence[int]) -> None:
    """After these clients moved to another time zone, set the times of what waits for them anew."""
    # A chunk that is being written may hold messages for them that nobody sees yet: the lock waits for its commit.
    concerned = sa.text(
        "SELECT *, now() AS at FROM mailing WHERE state IN ('running', 'paused') AND started_at IS NOT NULL"
        " AND window_from IS NOT NULL AND deleted_at IS NULL ORDER BY id FOR SHARE"
    )
    for mailing in database.execute(concerned).all():
        _reschedule(database, mailing, _OF_CLIENTS, {"client_ids": sorted(client_ids)})


def _reschedule(database: Database, mailing: sa.Row[Any], messages: str, values: Mapping[str, Any]) -> int | None:
    """Set the times of these waiting messages of a mailing anew; the last client's id, None when nothing waits."""
    due_at, openings, times = "now()", "", {}
    if mailing.window_from is not None:
        due_at, openings = _OPENS_AT, _OPENINGS
        times = _openings(mailing.window_from, mailing.window_to, mailing.at.replace(second=0, microsecond=0))
    statement = sa.text(_RESCHEDULE.format(messages=messages, due_at=due_at, openings=openings))
    last: int | None = database.scalar(statement, {"mailing_id": mailing.id, **times, **values})
    return last


# The chunk is an array, here and below: the planner may join with `IN (SELECT ...)` and run it once for each row of the
# other side, where it finds the next rows each time, and LIMIT bounds nothing.
_SETTLED = """
    UPDATE message SET next_attempt_at = NULL, batch_id = NULL,
        status = CASE WHEN mailing.state = 'cancelled' THEN 'cancelled' ELSE 'expired' END,
        last_error = coalesce(
            message.last_error, CASE WHEN mailing.state = 'cancelled' THEN 'cancelled' ELSE 'ended' END
        )
    FROM mailing WHERE mailing.id = :mailing_id AND
"""
_SETTLE = sa.text(f"""
    {_SETTLED} message.id = ANY(ARRAY(
        SELECT id FROM message WHERE mailing_id = :mailing_id AND next_attempt_at IS NOT NULL
        ORDER BY next_attempt_at LIMIT :chunk FOR UPDATE SKIP LOCKED
    ))
""")
_SETTLE_PLANNED = sa.text(f"{planned.UNPLANNED} {_SETTLED} {planned.IS_UNPLANNED}")
# Until the chunk is committed nobody moves the end.
_HAS_ENDED = sa.text(
    "SELECT id FROM mailing WHERE id = :mailing_id AND (state = 'cancelled' OR ends_at <= now()) FOR SHARE"
)


def settle_chunk(database: Database, mailing_id: int) -> int:
    """Expire or cancel a chunk of the waiting messages of a mailing that has ended; their count."""
    if database.scalar(_HAS_ENDED, {"mailing_id": mailing_id}) is None:
        return 0
    values = {"mailing_id": mailing_id, "mailing_ids": [mailing_id], "batches": BATCHES, "chunk": CHUNK}
    return rowcount(database.execute(_SETTLE_PLANNED, values)) or rowcount(database.execute(_SETTLE, values))


def complete(database: Database) -> list[int]:
    """Complete the mailings that have no open message left; their ids."""
    # Locked first, counted again then: `retry-failed` may just be making messages of a seemingly finished mailing open.
    # That holds FOR KEY SHARE meanwhile, which only FOR UPDATE respects.
    ids = list(database.scalars(sa.text(f"SELECT id FROM mailing WHERE {_NOTHING_OPEN} FOR UPDATE SKIP LOCKED")))
    if not ids:
        return []
    return list(
        database.scalars(
            sa.text(
                "UPDATE mailing SET state = 'completed', finished_at = now(), updated_at = now(),"
                f" rescheduled_through = NULL WHERE id = ANY(:ids) AND {_NOTHING_OPEN} RETURNING id"
            ),
            {"ids": ids},
        )
    )


def remove_chunk(database: Database, mailing_id: int) -> bool:
    """Remove a chunk of a deleted mailing's messages, at last the mailing; True while a chunk was found.

    Messages on the wire stay until their batch is finished or swept.
    """
    if planned.unplan(database, [mailing_id], BATCHES):
        return True
    ids = list(
        database.scalars(
            sa.text(
                "DELETE FROM message WHERE id = ANY(ARRAY(SELECT id FROM message WHERE mailing_id = :mailing_id"
                " AND status <> 'sending' LIMIT :chunk FOR UPDATE SKIP LOCKED)) RETURNING id"
            ),
            {"mailing_id": mailing_id, "chunk": CHUNK},
        )
    )
    if ids:
        for table in ("attempt", "receipt"):
            database.execute(sa.text(f"DELETE FROM {table} WHERE message_id = ANY(:ids)"), {"ids": ids})
        return True
    left = database.scalar(
        sa.text("SELECT EXISTS (SELECT FROM message WHERE mailing_id = :mailing_id)"), {"mailing_id": mailing_id}
    )
    if not left:
        for table in ("status_count", "status_flow"):
            database.execute(sa.text(f"DELETE FROM {table} WHERE mailing_id = :id"), {"id": mailing_id})
        database.execute(sa.text("DELETE FROM mailing WHERE id = :id"), {"id": mailing_id})
    return False


_MERGE = sa.text("""
    WITH gone AS (DELETE FROM status_count WHERE mailing_id = :mailing_id RETURNING status, amount)
    INSERT INTO status_count (mailing_id, status, amount)
    SELECT :mailing_id, status, sum(amount) FROM gone GROUP BY status HAVING sum(amount) <> 0
""")


def merge_counts(database: Database, mailing_ids: Iterable[int]) -> None:
    """Merge the counter rows of these mailings, so that reading their sums stays cheap.

    One statement a mailing, with nothing to join: the table grows by thousands of rows between two looks of the
    planner at it, and a join planned for a handful then takes minutes.
    """
    for mailing_id in mailing_ids:
        database.execute(_MERGE, {"mailing_id": mailing_id})


_MERGE_FLOW = sa.text("""
    WITH gone AS (DELETE FROM status_flow WHERE minute = :minute RETURNING mailing_id, status, amount)
    INSERT INTO status_flow (minute, mailing_id, status, amount)
    SELECT :minute, mailing_id, status, sum(amount) FROM gone GROUP BY mailing_id, status
""")


def merge_flow(database: Database) -> None:
    """Merge the flow of the minutes that are over to one row per minute, mailing and status."""
    crowded = database.scalars(
        sa.text(
            "SELECT DISTINCT minute FROM status_flow"
            " WHERE minute >= now() - interval '1 hour' AND minute < date_trunc('minute', now())"
            " GROUP BY minute, mailing_id, status HAVING count(*) > 1"
        )
    )
    for minute in crowded.all():
        database.execute(_MERGE_FLOW, {"minute": minute})

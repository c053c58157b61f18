"""Batches of messages: release, take, give back, sweep. What became of the messages: `queries.outcomes`.

Those that wait one by one are gathered when they are due; planned batches (`queries.planned`) are released as they are.

All times here are the database's (`now()`): machines with different clocks must agree on leases.
Every change of a message is guarded by the batch it is in, so a late or doubled worker cannot overwrite a newer state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from db import placeholders
from db.engine import Database
from db.models import MessageStatus
from db.queries import planned
from db.queries.notifications import notify_work
from db.queries.outcomes import Outcome, apply_receipts, write_history
from db.queries.statements import as_array, rowcount
from db.windows import Window

# A batch that no worker takes in this time was lost on the way (RabbitMQ wiped, message dropped).
UNTAKEN_LEASE_SECONDS = 30
# A worker renews its leases twice a second; one that is silent for this long is dead or frozen.
TAKEN_LEASE_SECONDS = 10


# What the notification of a finished batch says: there is room to release another, and nothing else to do.
ROOM = "room"


class Recipient(NamedTuple):
    """One message of a taken batch, with what is needed to send it.

    `phone` is None when the client was deleted, `attributes` also when the text names none.
    """

    message_id: int
    client_id: int
    attempts: int
    phone: str | None
    timezone: str | None
    attributes: dict[str, Any] | None
    opted_out: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """What the batch's mailing says at the moment, as a worker learns with the batch and with each renewed lease."""

    may_send: bool  # the mailing runs; False: give the rest back
    ends_at: datetime
    window: Window | None


@dataclasses.dataclass(frozen=True, slots=True)
class TakenBatch:
    """A batch in a worker's hands."""

    id: int
    mailing_id: int
    text: str
    standing: Standing
    is_probe: bool
    recipients: list[Recipient]


class UnderWay(NamedTuple):
    """A batch that is not finished."""

    mailing_id: int
    messages: int
    is_taken: bool  # a worker has it
    is_begun: bool  # all its calls are


_UNDER_WAY = sa.text("SELECT mailing_id, cardinality(message_ids), worker_id IS NOT NULL, is_begun FROM batch")


def under_way(database: Database) -> list[UnderWay]:
    """The batches that are not finished."""
    return [UnderWay._make(row) for row in database.execute(_UNDER_WAY)]


class Released(NamedTuple):
    """A batch that was just released."""

    id: int
    mailing_id: int
    messages: int
    has_more: bool  # its mailing may have more to release


# The mailings are gone through in the order of the array, as many batches as fit.
_RELEASE_PLANNED = sa.text(f"""
    WITH next AS MATERIALIZED (
        SELECT planned.id, sum(cardinality(planned.message_ids)) OVER (ORDER BY wanted.turn) AS messages
        FROM unnest(CAST(:mailing_ids AS bigint[])) WITH ORDINALITY AS wanted (mailing_id, turn), LATERAL (
            SELECT id, message_ids FROM planned_batch
            WHERE mailing_id = wanted.mailing_id
              AND EXISTS (SELECT FROM mailing WHERE id = wanted.mailing_id AND state = 'running' AND ends_at > now())
            ORDER BY id LIMIT 1
        ) AS planned
    ), unplanned AS (
        DELETE FROM planned_batch WHERE id = ANY(ARRAY(
            SELECT planned_batch.id FROM planned_batch JOIN next ON next.id = planned_batch.id
            WHERE next.messages <= :size FOR UPDATE OF planned_batch SKIP LOCKED
        )) RETURNING *
    ), {planned.COUNTED_AS_SENDING}
    INSERT INTO batch (id, mailing_id, message_ids, lease_until)
    SELECT id, mailing_id, message_ids, now() + make_interval(secs => :lease) FROM unplanned
    RETURNING id, mailing_id, cardinality(message_ids), EXISTS (
        SELECT FROM planned_batch AS further WHERE further.mailing_id = batch.mailing_id AND further.id <> batch.id
    )
""")


def release_planned(database: Database, mailing_ids: Sequence[int], size: int) -> list[Released]:
    """Release the next planned batch of each of these running mailings, the first first, up to `size` messages."""
    rows = database.execute(
        _RELEASE_PLANNED, {"mailing_ids": as_array(mailing_ids), "size": size, "lease": UNTAKEN_LEASE_SECONDS}
    )
    return [Released._make(row) for row in rows]


# The mailings are gone through in the order of the array, each in that of its index, until there are enough: LATERAL
# leaves no other way. What is not needed any more is not even locked.
_RELEASE = sa.text("""
    WITH due AS MATERIALIZED (
        SELECT wanted.mailing_id, message.id
        FROM unnest(CAST(:mailing_ids AS bigint[])) AS wanted (mailing_id), LATERAL (
            SELECT id FROM message
            WHERE mailing_id = wanted.mailing_id AND next_attempt_at <= now()
              AND EXISTS (SELECT FROM mailing WHERE id = wanted.mailing_id AND state = 'running' AND ends_at > now())
            ORDER BY next_attempt_at LIMIT :size FOR UPDATE SKIP LOCKED
        ) AS message LIMIT :size
    ), name AS MATERIALIZED (
        SELECT mailing_id, nextval(pg_get_serial_sequence('batch', 'id')) AS batch_id
        FROM (SELECT DISTINCT mailing_id FROM due) AS found
    ), claimed AS (
        UPDATE message SET status = 'sending', batch_id = name.batch_id, next_attempt_at = NULL
        FROM due, name WHERE message.id = due.id AND name.mailing_id = due.mailing_id
        RETURNING message.id, message.mailing_id, message.batch_id
    )
    INSERT INTO batch (id, mailing_id, message_ids, lease_until, is_probe)
    SELECT batch_id, mailing_id, array_agg(id), now() + make_interval(secs => :lease), :is_probe
    FROM claimed GROUP BY batch_id, mailing_id
    RETURNING id, mailing_id, cardinality(message_ids) AS messages
""")


def release(database: Database, mailing_ids: Sequence[int], size: int, *, is_probe: bool = False) -> list[Released]:
    """Put up to `size` due messages of these running mailings into new batches, one for each mailing.

    The first comes first: another has a batch only if fewer than `size` are due of those before it. If nothing else is
    due, planned batches are taken apart: what is wanted is smaller than they are.
    """
    values = {"mailing_ids": as_array(mailing_ids), "size": size, "lease": UNTAKEN_LEASE_SECONDS, "is_probe": is_probe}
    rows = database.execute(_RELEASE, values).all()
    if not rows and planned.unplan(database, mailing_ids):
        rows = database.execute(_RELEASE, values).all()
    has_more = sum(row.messages for row in rows) == size
    return [Released(row.id, row.mailing_id, row.messages, has_more) for row in rows]


# A statement that changes several batches locks them in the order of their ids first. Changed in the order in which its
# plan finds them, two at once may each hold what the other waits for.
_IN_ORDER = "ANY(ARRAY(SELECT id FROM batch WHERE id = ANY(CAST(:ids AS bigint[])) ORDER BY id FOR UPDATE))"

_STANDING = "mailing.state = 'running' AS may_send, mailing.ends_at, mailing.window_from, mailing.window_to"

_TAKE = sa.text(f"""
    UPDATE batch SET worker_id = :worker_id, lease_until = now() + make_interval(secs => :lease)
    FROM mailing
    WHERE batch.id = {_IN_ORDER} AND batch.lease_until > now() AND mailing.id = batch.mailing_id
      AND (batch.worker_id IS NULL OR batch.worker_id = :worker_id AND batch.id = ANY(CAST(:again AS bigint[])))
    RETURNING batch.id, batch.mailing_id, batch.is_probe, mailing.text, {_STANDING}
""")

_RECIPIENTS = sa.text("""
    SELECT message.batch_id, message.id, message.client_id, message.attempts, client.phone, client.timezone,
           CASE WHEN :with_attributes THEN client.attributes END, client.opted_out_at IS NOT NULL
    FROM message LEFT JOIN client ON client.id = message.client_id
    WHERE message.id = ANY(ARRAY(SELECT unnest(message_ids) FROM batch WHERE id = ANY(CAST(:batch_ids AS bigint[]))))
      AND message.batch_id = ANY(CAST(:batch_ids AS bigint[])) AND message.status = 'sending'
""")


def take(database: Database, batch_ids: Sequence[int], worker_id: str, again: Iterable[int] = ()) -> list[TakenBatch]:
    """Make these batches this worker's; those that are taken, finished or swept already are missing.

    Those to have `again` may be this worker's already: it was not told whether it had them.
    """
    values = {
        "ids": as_array(batch_ids),
        "worker_id": worker_id,
        "again": as_array(again),
        "lease": TAKEN_LEASE_SECONDS,
    }
    rows = database.execute(_TAKE, values).all()
    if not rows:
        return []
    found = database.execute(
        _RECIPIENTS,
        {
            "batch_ids": as_array(row.id for row in rows),
            "with_attributes": any(placeholders.names(row.text) for row in rows),
        },
    )
    recipients: dict[int, list[Recipient]] = {row.id: [] for row in rows}
    for batch_id, *recipient in found.all():  # One by one they would take half as long again.
        recipients[batch_id].append(Recipient._make(recipient))
    return [
        TakenBatch(
            id=row.id,
            mailing_id=row.mailing_id,
            text=row.text,
            standing=_standing(row),
            is_probe=row.is_probe,
            recipients=recipients[row.id],
        )
        for row in rows
    ]


def note_begun(database: Database, batch_ids: Sequence[int]) -> None:
    """Have batches take no place any more, and wake the dispatcher: their calls have begun, some are slow to end."""
    # Not worth waiting for the disk, nor letting other notifications wait for it: lost, it costs a place for a while.
    database.execute(sa.text("SET LOCAL synchronous_commit = off"))
    database.execute(sa.text(f"UPDATE batch SET is_begun = true WHERE id = {_IN_ORDER}"), {"ids": as_array(batch_ids)})
    notify_work(database, ROOM)


_FINISH = sa.text(f"DELETE FROM batch WHERE id = {_IN_ORDER}")


def finish(database: Database, batch_ids: Sequence[int]) -> None:
    """Remove batches whose messages are all recorded; `tell_of_room` once that is committed."""
    if batch_ids:
        database.execute(_FINISH, {"ids": as_array(batch_ids)})


def tell_of_room(database: Database) -> None:
    """Wake the dispatcher: batches are finished.

    A transaction that notifies commits alone, as PostgreSQL locks all notifications until it is on disk: whoever adds a
    mailing would wait for every group of outcomes. One that does nothing else writes nothing and is over at once.
    """
    notify_work(database, ROOM)


_RECLAIM = sa.text("""
    UPDATE message SET status = 'pending', batch_id = NULL, next_attempt_at = now(),
           attempts = least(attempts + :counted, 32767)
    WHERE id = ANY(:ids) AND batch_id = :batch_id AND status = 'sending'
    RETURNING id
""")


_WITHDRAW = sa.text(f"""
    WITH planned AS (
        DELETE FROM batch WHERE id = {_IN_ORDER} AND worker_id IS NULL RETURNING id, mailing_id, message_ids
    ), {planned.COUNTED_AS_PENDING}
    INSERT INTO planned_batch (id, mailing_id, message_ids) SELECT * FROM planned
""")


def withdraw(database: Database, batch_ids: Sequence[int]) -> int:
    """Undo releases whose batches no worker has taken: they are planned (again); their count."""
    return rowcount(database.execute(_WITHDRAW, {"ids": as_array(batch_ids)}))


# A batch that no worker has taken, of a mailing that may not send any more.
STOPPED = """
    worker_id IS NULL AND NOT EXISTS (
        SELECT FROM mailing WHERE mailing.id = batch.mailing_id AND state = 'running' AND ends_at > now()
    )
"""


def withdraw_stopped(database: Database, limit: int = 50) -> int:
    """Undo releases of mailings that may not send any more, up to `limit`; their count."""
    stopped = sa.text(f"SELECT id FROM batch WHERE {STOPPED} ORDER BY id LIMIT :limit")
    return withdraw(database, database.scalars(stopped, {"limit": limit}).all())


_RENEW = sa.text(f"""
    UPDATE batch SET lease_until = now() + make_interval(secs => :lease)
    FROM mailing
    WHERE batch.id = {_IN_ORDER} AND batch.worker_id = :worker_id AND batch.lease_until > now()
      AND mailing.id = batch.mailing_id
    RETURNING batch.id, {_STANDING}
""")


def renew(database: Database, worker_id: str, batch_ids: Sequence[int]) -> dict[int, Standing]:
    """Prolong this worker's leases; a batch missing from the answer is lost, and its messages are another's."""
    rows = database.execute(_RENEW, {"ids": as_array(batch_ids), "worker_id": worker_id, "lease": TAKEN_LEASE_SECONDS})
    return {row.id: _standing(row) for row in rows}


def _standing(row: sa.Row[Any]) -> Standing:
    window = Window(row.window_from, row.window_to) if row.window_from is not None else None
    return Standing(row.may_send, row.ends_at, window)


# As an array: the planner may run `IN (SELECT ...)` once for each batch, and LIMIT then bounds nothing.
_LOST = sa.text("""
    DELETE FROM batch WHERE id = ANY(ARRAY(
        SELECT id FROM batch WHERE lease_until < now() ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED
    )) RETURNING id, message_ids, worker_id
""")


def sweep(database: Database, limit: int = 50) -> int:
    """Return the messages of batches whose lease ran out to pending; the count of messages.

    Messages of a batch that a worker had taken may have been sent: they get a counted attempt and a line of history.
    """
    total = 0
    for batch_id, ids, worker_id in database.execute(_LOST, {"limit": limit}).all():
        counted = worker_id is not None
        reclaimed = list(database.scalars(_RECLAIM, {"ids": ids, "batch_id": batch_id, "counted": int(counted)}))
        if counted:
            lost = [
                Outcome(message_id, MessageStatus.PENDING, True, outcome="lost", reason="worker_lost")
                for message_id in reclaimed
            ]
            write_history(database, lost)
            apply_receipts(database, reclaimed)
        total += len(reclaimed)
    return total


# Looks at the messages of the mailing only when the counters tell of more on the wire than its batches hold.
_SWEEP_ORPHANS = sa.text("""
    UPDATE message SET status = 'pending', batch_id = NULL, next_attempt_at = now()
    WHERE mailing_id = :mailing_id AND status = 'sending'
      AND NOT EXISTS (SELECT FROM batch WHERE batch.id = message.batch_id)
      AND NOT EXISTS (SELECT FROM planned_batch WHERE planned_batch.id = message.batch_id)
      AND (
        SELECT sum(amount) FROM status_count WHERE mailing_id = :mailing_id AND status = 'sending'
      ) > (
        SELECT count(*) FROM message AS held
        WHERE held.id = ANY(ARRAY(SELECT unnest(message_ids) FROM batch WHERE mailing_id = :mailing_id))
          AND held.status = 'sending'
      )
""")


def sweep_orphans(database: Database, mailing_id: int) -> int:
    """Return `sending` messages to pending whose batch no longer exists; nothing we know of leaves any."""
    return rowcount(database.execute(_SWEEP_ORPHANS, {"mailing_id": mailing_id}))

"""Planned batches: the messages that are due when they are written, by those that will go together.

They cost a message one change less (docs/decisions.md): it is `sending` in its batch from the beginning, and told and
counted as `pending` while that is only planned (`queries.messages.STATUS`). `audience.materialise_chunk` plans them,
`batches.release_planned` releases them, `batches.withdraw` plans again what it takes back. Whoever wants messages one
by one takes them out here.

Locks are taken on a batch before those on its messages.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from db.engine import Database
from db.queries.statements import as_array, rowcount

BATCH_SIZE = 1000  # messages

# To the trigger on `message` those in planned batches are `sending`: what plans a batch, or ends that, says how many
# are `pending` instead.
_COUNTED = """counted AS (
        INSERT INTO status_count (mailing_id, status, amount)
        SELECT mailing_id, change.status, change.step * cardinality(message_ids)
        FROM {batches}, (VALUES ('pending', {sign}1), ('sending', {other}1)) AS change (status, step)
    )"""
COUNTED_AS_PENDING = _COUNTED.format(batches="planned", sign="+", other="-")
COUNTED_AS_SENDING = _COUNTED.format(batches="unplanned", sign="-", other="+")

# The next planned batches of mailings are no more, and the statement goes on to say what becomes of their messages.
UNPLANNED = f"""
    WITH unplanned AS (
        DELETE FROM planned_batch WHERE id = ANY(ARRAY(
            SELECT next.id FROM unnest(CAST(:mailing_ids AS bigint[])) AS wanted (mailing_id), LATERAL (
                SELECT id FROM planned_batch WHERE mailing_id = wanted.mailing_id
                ORDER BY id LIMIT :batches FOR UPDATE SKIP LOCKED
            ) AS next
        )) RETURNING *
    ), {COUNTED_AS_SENDING}
"""
IS_UNPLANNED = "message.id = ANY(ARRAY(SELECT unnest(message_ids) FROM unplanned))"

_UNPLAN = sa.text(f"""
    {UNPLANNED}
    UPDATE message SET status = 'pending', batch_id = NULL, next_attempt_at = created_at WHERE {IS_UNPLANNED}
""")


def unplan(database: Database, mailing_ids: Sequence[int], batches: int = 1) -> int:
    """Have the messages of the next planned batches of each of these mailings wait one by one; their count."""
    return rowcount(database.execute(_UNPLAN, {"mailing_ids": as_array(mailing_ids), "batches": batches}))


_TAKE_OUT = f"""
    WITH planned AS MATERIALIZED (
        SELECT id FROM planned_batch
        WHERE id = ANY(ARRAY(SELECT batch_id FROM message WHERE id = ANY(CAST(:ids AS bigint[]))))
        ORDER BY id FOR UPDATE {{skip_locked}}
    ), unplanned AS (
        UPDATE planned_batch SET message_ids = array_remove(planned_batch.message_ids, message.id)
        FROM planned, message
        WHERE planned_batch.id = planned.id AND message.batch_id = planned.id
          AND message.id = ANY(CAST(:ids AS bigint[]))
        RETURNING planned.id AS batch_id, planned_batch.message_ids = '{{{{}}}}' AS is_empty,
                  message.mailing_id, ARRAY[message.id] AS message_ids
    ), {COUNTED_AS_SENDING}
    SELECT message_ids[1] AS id, batch_id, is_empty FROM unplanned
"""


def take_out(database: Database, message_ids: Sequence[int], *, skip_locked: bool = False) -> Sequence[int]:
    """Take those of a client's messages whose batches are only planned out of them; their ids.

    They are in no batch any more, and the caller must change them at once. Who holds a lock on messages must
    `skip_locked`, as all others lock batches first: a batch that somebody else has in hand is then left alone.
    """
    if not message_ids:
        return []
    statement = sa.text(_TAKE_OUT.format(skip_locked="SKIP LOCKED" if skip_locked else ""))
    taken_out = database.execute(statement, {"ids": as_array(message_ids)}).all()
    if empty := [row.batch_id for row in taken_out if row.is_empty]:
        database.execute(sa.text("DELETE FROM planned_batch WHERE id = ANY(:ids)"), {"ids": empty})
    return [row.id for row in taken_out]

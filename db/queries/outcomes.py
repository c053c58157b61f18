"""What became of the messages of batches: recorded, with a line of history where there is something to tell.

Every change is guarded by the batch the message is in, so a late or doubled worker cannot overwrite a newer state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa

from db.engine import Database
from db.models import MessageStatus
from db.queries.statements import as_array, rowcount


class Outcome(NamedTuple):
    """What became of one message of a batch. `history` asks for a row in the message's history."""

    message_id: int
    status: MessageStatus
    counted: bool = False  # as an attempt
    due_at: datetime | None = None  # exactly when the status is pending
    error: str | None = None
    outcome: str | None = None  # of the history row; None = no row
    reason: str | None = None
    http_status: int | None = None
    milliseconds: int | None = None
    at: datetime | None = None
    keeps_error: bool = False  # the message was not called for: the error of an earlier call stays


# The message is still in the batch that the outcome comes from. Were its status compared with a constant, statistics
# from before anything was sent would have the planner expect a single such message, and hold each against each outcome:
# nine million comparisons for a thousand outcomes.
_STILL_IN_BATCH = """message.id = outcome.message_id AND message.batch_id = outcome.batch_id
      AND message.status = CASE WHEN outcome.batch_id IS NOT NULL THEN 'sending' END"""

# What nearly every message comes to has a narrow statement of its own: two numbers a message, a third of the time.
_RECORD_SENT = sa.text(f"""
    UPDATE message SET
        status = 'sent', attempts = least(message.attempts + 1, 32767), last_error = NULL, sent_at = now(),
        batch_id = NULL
    FROM unnest(CAST(:ids AS bigint[]), CAST(:batch_ids AS bigint[])) AS outcome (message_id, batch_id)
    WHERE {_STILL_IN_BATCH}
""")

_RECORD = sa.text(f"""
    UPDATE message SET
        status = outcome.status,
        attempts = least(message.attempts + outcome.counted::int, 32767),
        next_attempt_at = outcome.due_at,
        last_error = coalesce(CASE WHEN outcome.keeps_error THEN message.last_error END, outcome.error),
        sent_at = CASE WHEN outcome.status = 'sent' THEN now() ELSE message.sent_at END,
        batch_id = NULL
    FROM unnest(
        CAST(:ids AS bigint[]), CAST(:batch_ids AS bigint[]), CAST(:statuses AS text[]), CAST(:counted AS boolean[]),
        CAST(:due AS timestamptz[]), CAST(:errors AS text[]), CAST(:keeps_error AS boolean[])
    ) AS outcome (message_id, batch_id, status, counted, due_at, error, keeps_error)
    WHERE {_STILL_IN_BATCH}
    RETURNING message.id
""")

_ANY_RECEIPT = sa.text("SELECT EXISTS (SELECT FROM receipt)")

# A receipt that overtook our own record (see `queries.receipts`) is applied here, in the same transaction.
_APPLY_RECEIPTS = sa.text("""
    WITH early AS (
        DELETE FROM receipt USING message
        WHERE message_id = ANY(CAST(:ids AS bigint[])) AND message.id = message_id AND message.status <> 'sending'
        RETURNING message_id, receipt.status, reason
    ), settled AS (
        UPDATE message SET
            status = early.status, sent_at = coalesce(message.sent_at, now()), next_attempt_at = NULL,
            last_error = CASE WHEN early.status = 'failed' THEN coalesce(early.reason, 'receipt') END
        FROM early WHERE message.id = early.message_id AND message.status IN ('sent', 'pending')
        RETURNING message.id, message.attempts, message.last_error
    )
    INSERT INTO attempt (message_id, at, attempt, outcome, reason)
    SELECT id, now(), attempts, 'receipt', last_error FROM settled WHERE last_error IS NOT NULL
""")

_HISTORY = sa.text("""
    INSERT INTO attempt (message_id, at, attempt, outcome, reason, http_status, milliseconds)
    SELECT message.id, coalesce(h.at, now()), message.attempts + h.uncounted::int, h.outcome, h.reason, h.http_status,
           h.milliseconds
    FROM unnest(
        CAST(:ids AS bigint[]), CAST(:uncounted AS boolean[]), CAST(:outcomes AS text[]), CAST(:reasons AS text[]),
        CAST(:http AS smallint[]), CAST(:ms AS integer[]), CAST(:at AS timestamptz[])
    ) AS h (message_id, uncounted, outcome, reason, http_status, milliseconds, at)
    JOIN message ON message.id = h.message_id
""")


def record(database: Database, outcomes: Sequence[tuple[int, Outcome]], sent: Sequence[tuple[int, int]] = ()) -> int:
    """Write outcomes, each with the id of the batch it comes from, of messages that still are in it; their count.

    `sent` are the messages accepted at the first attempt, as (batch id, message id): there is nothing more to say.
    """
    count = 0
    if sent:
        batch_ids, ids = zip(*sent, strict=True)
        count = rowcount(database.execute(_RECORD_SENT, {"ids": as_array(ids), "batch_ids": as_array(batch_ids)}))
    if outcomes:
        count += _record_outcomes(database, outcomes)
    if database.scalar(_ANY_RECEIPT):
        apply_receipts(
            database, sorted([message_id for _, message_id in sent] + [outcome.message_id for _, outcome in outcomes])
        )
    return count


def _record_outcomes(database: Database, outcomes: Sequence[tuple[int, Outcome]]) -> int:
    rows = [outcome for _, outcome in outcomes]
    changed = set(
        database.scalars(
            _RECORD,
            {
                "ids": [o.message_id for o in rows],
                "batch_ids": [batch_id for batch_id, _ in outcomes],
                "statuses": [o.status.value for o in rows],
                "counted": [o.counted for o in rows],
                "due": [o.due_at for o in rows],
                "errors": [o.error for o in rows],
                "keeps_error": [o.keeps_error for o in rows],
            },
        )
    )
    write_history(database, [o for o in rows if o.outcome and o.message_id in changed])
    return len(changed)


def apply_receipts(database: Database, message_ids: Iterable[int]) -> None:
    """Apply the receipts that overtook our own record of these messages."""
    database.execute(_APPLY_RECEIPTS, {"ids": as_array(message_ids)})


def write_history(database: Database, outcomes: Sequence[Outcome]) -> None:
    """Add a line for each to the history of its message, which is recorded already."""
    if not outcomes:
        return
    database.execute(
        _HISTORY,
        {
            "ids": [o.message_id for o in outcomes],
            "uncounted": [not o.counted for o in outcomes],
            "outcomes": [o.outcome for o in outcomes],
            "reasons": [o.reason for o in outcomes],
            "http": [o.http_status for o in outcomes],
            "ms": [o.milliseconds for o in outcomes],
            "at": [o.at for o in outcomes],
        },
    )

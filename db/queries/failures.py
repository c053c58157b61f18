"""Why messages of a mailing failed, ranked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

# More than any table of reasons is read for; beyond it, "at least" is said.
COUNTED_AT_MOST = 50_000
SHOWN = 20


class Reason(NamedTuple):
    """A reason and how many messages failed for it: at least so many, if it is not exact."""

    reason: str
    amount: int
    is_exact: bool


# Reason by reason along `ix_message_reason`: the next reason is one step away, however many share this one. Messages
# that expired, were cancelled or wait for another attempt have reasons, too; those nobody failed for are left out.
_RANKED = sa.text("""
    WITH RECURSIVE step (reason, number) AS (
        (SELECT last_error, 1 FROM message
         WHERE mailing_id = :mailing_id AND last_error IS NOT NULL ORDER BY last_error LIMIT 1)
        UNION ALL
        SELECT (SELECT last_error FROM message
                WHERE mailing_id = :mailing_id AND last_error > step.reason
                ORDER BY last_error LIMIT 1), number + 1
        FROM step WHERE step.reason IS NOT NULL AND number < 200
    )
    SELECT reason, amount FROM step CROSS JOIN LATERAL (
        SELECT count(*) AS amount FROM (
            SELECT FROM message WHERE mailing_id = :mailing_id AND status = 'failed' AND last_error = step.reason
            LIMIT :most
        ) AS found
    ) AS counted
    WHERE amount > 0 ORDER BY amount DESC, reason LIMIT :shown
""")


def ranked(session: Session, mailing_id: int) -> Sequence[Reason]:
    """The most frequent reasons, most frequent first."""
    rows = session.execute(_RANKED, {"mailing_id": mailing_id, "most": COUNTED_AT_MOST, "shown": SHOWN})
    return [Reason(reason, amount, amount < COUNTED_AT_MOST) for reason, amount in rows]

"""What is known of the remote gateway: how it answered lately, the breaker, the pace and the rate limit's slots."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

import sqlalchemy as sa

from db.engine import Database
from db.models import GatewayState

# Milliseconds within which an answer came; what took longer than the last is counted once more.
TIMING_BOUNDS = (5, 10, 20, 35, 50, 75, 100, 150, 200, 300, 500, 750, 1000, 1500, 2000, 3000, 5000, 10_000)


@dataclasses.dataclass(slots=True)
class Tally:
    """Counts of answers of one mailing's calls."""

    answered: int = 0
    troubled: int = 0
    slowed: int = 0
    blocked: int = 0
    reason: str | None = None
    timings: list[int] = dataclasses.field(default_factory=lambda: [0] * (len(TIMING_BOUNDS) + 1))

    def time(self, milliseconds: int) -> None:
        """Count how long an answer took."""
        self.timings[bisect.bisect_left(TIMING_BOUNDS, milliseconds)] += 1


def percentile(timings: Sequence[int], share: float) -> float | None:
    """Milliseconds within which this share of the answers came, about; None when there were none."""
    rank = sum(timings) * share
    passed, lower = 0, 0
    for upper, amount in zip((*TIMING_BOUNDS, 2 * TIMING_BOUNDS[-1]), timings, strict=False):
        if amount and passed + amount >= rank:
            return lower + (upper - lower) * (rank - passed) / amount
        passed, lower = passed + amount, upper
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class GatewayRow:
    """The shared row, with the database's time beside it."""

    state: GatewayState
    reason: str | None
    changed_at: datetime
    probe_at: datetime | None
    pace: float | None
    paced_at: datetime
    now: datetime


_ADD_TALLIES = sa.text(
    "INSERT INTO gateway_tally (mailing_id, answered, troubled, slowed, blocked, reason, timings)"
    " VALUES (:mailing_id, :answered, :troubled, :slowed, :blocked, :reason, :timings)"
)


def add_tallies(database: Database, tallies: Mapping[int, Tally]) -> None:
    """Add the answers of one recorded group, by mailing."""
    if tallies:
        database.execute(
            _ADD_TALLIES,
            [{"mailing_id": mailing_id, **dataclasses.asdict(tally)} for mailing_id, tally in tallies.items()],
        )


def read(database: Database) -> GatewayRow:
    """The shared row."""
    row = database.execute(
        sa.text("SELECT state, reason, changed_at, probe_at, pace, paced_at, clock_timestamp() FROM gateway")
    ).one()
    return GatewayRow(GatewayState(row[0]), *row[1:])


def recent(database: Database, seconds: float, since: datetime | None = None) -> dict[int, Tally]:
    """The answers of the last seconds, but not from before `since`, by mailing."""
    rows = database.execute(
        sa.text(
            "SELECT mailing_id, sum(answered), sum(troubled), sum(slowed), sum(blocked), max(reason) FROM gateway_tally"
            " WHERE at > greatest(now() - make_interval(secs => :seconds), CAST(:since AS timestamptz))"
            " GROUP BY mailing_id"
        ),
        {"seconds": seconds, "since": since},
    )
    return {row[0]: Tally(int(row[1]), int(row[2]), int(row[3]), int(row[4]), row[5]) for row in rows}


_FAILED_IN_A_ROW = sa.text("""
    SELECT coalesce(sum(troubled), 0) FROM gateway_tally
    WHERE at > greatest(CAST(:since AS timestamptz), (
        SELECT at FROM gateway_tally
        WHERE at > CAST(:since AS timestamptz) AND (answered > 0 OR slowed > 0 OR reason <> ALL(:reasons))
        ORDER BY at DESC LIMIT 1
    ))
""")


def failed_in_a_row(database: Database, reasons: Collection[str], since: datetime) -> int:
    """How many calls failed for these reasons since any ended otherwise; nothing is known of more than ten minutes."""
    return int(database.scalar(_FAILED_IN_A_ROW, {"since": since, "reasons": list(reasons)}) or 0)


def set_state(database: Database, state: GatewayState, reason: str | None, probe_after_seconds: float | None) -> None:
    """Move the breaker; with the time of the first probe when it is not closed."""
    database.execute(
        sa.text(
            "UPDATE gateway SET state = :state, reason = :reason, changed_at = clock_timestamp(),"
            " probe_at = clock_timestamp() + make_interval(secs => :probe_after)"
        ),
        {"state": state.value, "reason": reason, "probe_after": probe_after_seconds},
    )


def claim_probe(database: Database, interval_seconds: float) -> bool:
    """Whether a probe may go now; the next one may after the interval."""
    return (
        database.scalar(
            sa.text(
                "UPDATE gateway SET probe_at = now() + make_interval(secs => :interval)"
                " WHERE probe_at <= now() RETURNING 1"
            ),
            {"interval": interval_seconds},
        )
        is not None
    )


def set_pace(database: Database, pace: float | None) -> None:
    """Set the messages per second that a complaining gateway seems to bear; None = no longer limited by it."""
    database.execute(sa.text("UPDATE gateway SET pace = :pace, paced_at = now()"), {"pace": pace})


def lease_slots(database: Database, count: int, rate: float) -> float:
    """Reserve `count` sending slots at `rate` per second after those already given; seconds from now to the first.

    One row serves every sender, so the limit is exact however many there are. The answer may be negative by the time
    that the statement itself took.
    """
    return float(
        database.execute(
            sa.text(
                "UPDATE gateway SET next_slot_at = greatest(next_slot_at, clock_timestamp())"
                " + make_interval(secs => :length)"
                " RETURNING extract(epoch FROM next_slot_at - clock_timestamp())::float - :length"
            ),
            {"length": count / rate},
        ).scalar_one()
    )


def forget_old_tallies(database: Database, after_seconds: float = 600) -> None:
    """Remove tallies that nobody looks at any more."""
    database.execute(
        sa.text("DELETE FROM gateway_tally WHERE at < now() - make_interval(secs => :after)"),
        {"after": after_seconds},
    )

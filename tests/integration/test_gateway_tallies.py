"""What the tallies tell of the calls before."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from db.queries import gateway
from db.queries.gateway import Tally
from sender.breaker import AWAY_REASONS

REFUSED = Tally(troubled=2, reason="connection_refused")
UNKNOWN_NAME = Tally(troubled=1, reason="dns")
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("tallies", "failed"),
    [
        ([], 0),
        ([REFUSED], 2),
        ([REFUSED, UNKNOWN_NAME], 3),
        ([UNKNOWN_NAME, Tally(answered=1), REFUSED], 2),
        ([REFUSED, Tally(slowed=1, reason="http_429"), UNKNOWN_NAME], 1),
        ([REFUSED, Tally(troubled=1, reason="http_502")], 0),
        ([REFUSED, Tally(troubled=1, reason="timeout")], 0),
        ([Tally(troubled=1, reason="not_json"), REFUSED], 2),
    ],
)
def test_failures_in_a_row_end_with_every_answer_of_the_gateways_own(
    session: Session, tallies: list[Tally], failed: int
) -> None:
    for mailing_id, tally in enumerate(tallies):
        gateway.add_tallies(session, {mailing_id: tally})
        session.commit()  # `at` is the beginning of the transaction
    assert gateway.failed_in_a_row(session, AWAY_REASONS, LONG_AGO) == failed


def test_failures_before_the_breaker_moved_last_count_no_longer(session: Session) -> None:
    gateway.add_tallies(session, {1: REFUSED})
    session.commit()
    newest = session.execute(sa.text("SELECT max(at) FROM gateway_tally")).scalar_one()
    assert gateway.failed_in_a_row(session, AWAY_REASONS, newest - timedelta(microseconds=1)) == 2
    assert gateway.failed_in_a_row(session, AWAY_REASONS, newest) == 0

"""The rate limit's slots as they are leased from the database."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from db.models import Gateway
from sender.pacer import LEASE_SECONDS, Pacer

RATE = 1000.0
WHOLE_LEASE = round(RATE * LEASE_SECONDS)


@pytest.mark.parametrize(
    ("demand", "leased"), [(3, 3), (WHOLE_LEASE * 10, WHOLE_LEASE)], ids=["a few calls wait", "many calls wait"]
)
def test_no_more_slots_are_leased_than_calls_wait_for_them(engine: sa.Engine, demand: int, leased: int) -> None:
    # Slots far ahead are used by nobody here, so that the difference is what was leased.
    with Session(engine) as session, session.begin():
        session.execute(sa.update(Gateway).values(next_slot_at=sa.text("now() + interval '1 hour'")))
    before = next_slot(engine)
    pacer, woken = started_pacer(engine)

    pacer.demand = demand
    assert pacer.take(1, time.monotonic()) == 0
    assert woken.wait(10)
    pacer.stop()

    assert next_slot(engine) - before == timedelta(seconds=leased / RATE)


def test_nothing_is_leased_when_no_call_waits(engine: sa.Engine) -> None:
    before = next_slot(engine)
    pacer, woken = started_pacer(engine)

    assert pacer.take(1, time.monotonic()) == 0
    assert not woken.wait(0.3)
    pacer.stop()

    assert next_slot(engine) == before


def started_pacer(engine: sa.Engine) -> tuple[Pacer, threading.Event]:
    """A pacer at work, and the event of its first lease."""
    pacer, woken = Pacer(engine), threading.Event()
    pacer.rate = RATE
    pacer.wake = woken.set
    pacer.start()
    return pacer, woken


def next_slot(engine: sa.Engine) -> datetime:
    """When the next slot is, of those not leased yet."""
    with Session(engine) as session:
        return session.scalars(sa.select(Gateway.next_slot_at)).one()

"""The threads that a sending process cannot do without."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from db.queries import notifications
from db.queries.batches import Standing, TakenBatch
from sender.clock import DatabaseClock
from sender.delivery import Delivery
from sender.keeper import Keeper
from sender.outcomes import Terms
from sender.pacer import Pacer
from sender.recorder import Recorder
from tools.processes import wait_until

# What `select` cannot wait for.
HIGH_DESCRIPTOR = 1024
# Each is woken by the thread in question, in a way that nobody expects.
KEEPER = """
Keeper(engine, "a sender", 1, DatabaseClock(), Pacer(engine), None, wake=fail).start()
"""
PACER = """
pacer = Pacer(engine)
pacer.rate, pacer.demand, pacer.wake = 10.0, 1, fail
pacer.start()
pacer.take(1, time.monotonic())
"""
PROGRAM = """
import sys, threading, time
from db.engine import make_engine
from sender.clock import DatabaseClock
from sender.keeper import Keeper
from sender.pacer import Pacer

def fail():
    raise RuntimeError("nobody knew of this")

engine = make_engine(sys.argv[1], "mailings tests")
{start}
threading.Event().wait()
"""


@contextlib.contextmanager
def only_high_descriptors() -> Iterator[None]:
    """Have whatever is opened meanwhile get descriptors that `select` cannot wait for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * HIGH_DESCRIPTOR), hard))
    taken = [os.open(os.devnull, os.O_RDONLY)]
    while taken[-1] < HIGH_DESCRIPTOR:
        taken.append(os.dup(taken[0]))
    try:
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)


def test_the_keeper_hears_of_withdrawals_beside_a_thousand_calls(engine: sa.Engine, session: Session) -> None:
    clock = DatabaseClock()
    ends_at = datetime.now(UTC) + timedelta(hours=1)
    terms = Terms(ends_at, None, is_probe=False, max_attempts=20)
    batch = TakenBatch(1, 1, "Hello", Standing(True, ends_at, None), is_probe=False, recipients=[])
    delivery = Delivery(batch, terms, [], clock, 10.0, Recorder(engine, clock))
    keeper = Keeper(engine, "a sender", 1, clock, Pacer(engine), None, wake=lambda: None)
    keeper.add(delivery)
    with only_high_descriptors():
        keeper.start()
        assert keeper.ready.wait(10)
        notifications.notify_withdrawn(session, 17)
        session.commit()
        assert wait_until(lambda: 17 in delivery.withdrawn, 10)
        keeper.stop()


@pytest.mark.parametrize("start", [KEEPER, PACER], ids=["keeper", "pacer"])
def test_a_process_ends_when_a_thread_fails_that_it_cannot_do_without(database_url: str, start: str) -> None:
    command = [sys.executable, "-c", PROGRAM.format(start=start), database_url]
    with subprocess.Popen(command) as process:
        try:
            assert process.wait(timeout=20) == 70
        finally:
            process.kill()

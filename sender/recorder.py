"""One writer per sending process: the results of all its batches, in groups, each group one transaction.

A transaction costs as much as the rows of a hundred messages. So results gather while the one before is written, and a
little longer when they come fast.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from db.engine import cause_name, is_passing
from db.queries import batches, gateway
from db.queries.outcomes import Outcome, record
from sender.clock import DatabaseClock
from sender.delivery import Called, Delivery, Result, Settled, Skip
from sender.outcomes import add_to_tally, after_answer, is_sent_at_once, outside_window, taken_back

log = structlog.get_logger(__name__)
_T = TypeVar("_T")
_Group = list[tuple[Delivery, Sequence[Result]]]

GROUP_SIZE = 2000
# Groups are begun no more often than this, so that under load they are worth their commit; and half as often while
# nobody waits for the places of the calls that they tell of.
GROUP_SECONDS = 0.05
CALM_GROUP_SECONDS = 0.1
IDLE_SECONDS = 0.5
# The first pause when the database does not take a result; doubled up to the last.
PAUSES_SECONDS = (0.1, 2.0)


class GivenUpError(Exception):
    """The process ends and the database is still away: leases will run out, nothing is lost."""


def until_committed(engine: Engine, work: Callable[[Connection], _T], giving_up: threading.Event) -> _T:
    """Run and commit; while the database is away, wait for it: results in hand must not be lost.

    The work is done again also when it was committed and only the answer was lost: it must bear that. What is guarded
    by a batch does; who takes batches looks for those that it has already.
    Raises GivenUpError when the process ends meanwhile, and what else the database says against the work.
    """
    pause, longest = PAUSES_SECONDS
    while True:
        try:
            with engine.begin() as connection:
                return work(connection)
        except SQLAlchemyError as error:
            if not is_passing(error):
                raise
            if giving_up.is_set():
                raise GivenUpError from error
            log.warning("database_away", error=cause_name(error))
            giving_up.wait(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, longest)


class Recorder:
    """Takes results from the gateway's loop and brings them into the database on a thread of its own."""

    def __init__(self, engine: Engine, clock: DatabaseClock) -> None:
        self._engine = engine
        self._clock = clock
        # Called after each commit with the number of calls recorded, by mailing.
        self.on_recorded: Callable[[Counter[int]], None] = lambda _calls: None
        # Called with each delivery whose results are all written.
        self.on_done: Callable[[Delivery], None] = lambda _delivery: None
        self._results: deque[tuple[Delivery, Sequence[Result]]] = deque()
        self._damaged: set[Delivery] = set()  # results of theirs were lost
        self._wanted = threading.Event()
        self._hurried = threading.Event()
        self._giving_up = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Write what is there, then end the thread."""
        self._stopped = True
        self._wanted.set()
        self._hurried.set()
        self._thread.join(timeout=5)

    def give_up(self) -> None:
        """Stop waiting for a database that is away."""
        self._giving_up.set()

    def put(self, delivery: Delivery, results: Sequence[Result]) -> None:
        """Take in results; they are written soon."""
        self._results.append((delivery, results))
        self._wanted.set()

    def hurry(self) -> None:
        """Have the next group written soon: calls wait for the places of those before, or there are no more."""
        self._hurried.set()

    def _run(self) -> None:
        try:
            self._record_groups()
        except Exception:
            # Without its writer the process is useless: end it, its supervisor starts a new one and leases run out.
            log.exception("recorder_failed")
            os._exit(70)

    def _record_groups(self) -> None:
        while not self._stopped or self._results:
            self._wanted.clear()
            if not self._results:
                self._wanted.wait(IDLE_SECONDS)
                continue
            began = time.monotonic()
            self._hurried.clear()
            self._write(self._next_group())
            time.sleep(max(0.0, began + GROUP_SECONDS - time.monotonic()))
            self._hurried.wait(max(0.0, began + CALM_GROUP_SECONDS - time.monotonic()))

    def _next_group(self) -> _Group:
        group: _Group = []
        size = 0
        while self._results and size < GROUP_SIZE:
            group.append(self._results.popleft())
            size += len(group[-1][1])
        return group

    def _write(self, group: _Group) -> None:
        """Write a group; where something in it is refused, its halves, down to the result that cannot be written."""
        results: Counter[Delivery] = Counter()
        calls: Counter[int] = Counter()
        for delivery, part in group:
            results[delivery] += len(part)
            calls[delivery.mailing_id] += sum(isinstance(result, Called) for result in part)
        finished = [
            delivery
            for delivery, count in results.items()
            if delivery.recorded + count == delivery.size and delivery not in self._damaged
        ]
        found = self._sort(group)
        finished_ids = [delivery.batch_id for delivery in finished]
        try:
            until_committed(self._engine, lambda connection: _record(connection, *found, finished_ids), self._giving_up)
        except (GivenUpError, SQLAlchemyError) as error:
            if results.total() > 1 and not isinstance(error, GivenUpError):
                for half in _halves(group):
                    self._write(half)
                return
            # Their batches stay, the leases run out and the sweep has them.
            log.exception("results_lost", messages=results.total())
            for delivery in results:
                delivery.stop()
            self._damaged.update(results)
            finished.clear()
        for delivery, count in results.items():
            delivery.note_recorded(count)
            if delivery.done.is_set():
                self._damaged.discard(delivery)
                self.on_done(delivery)
        self.on_recorded(calls)
        if finished:
            self._tell_of_room()

    def _tell_of_room(self) -> None:
        # A hint: a dispatcher that misses it looks by itself soon.
        with contextlib.suppress(SQLAlchemyError), self._engine.begin() as connection:
            batches.tell_of_room(connection)

    def _sort(self, group: _Group) -> tuple[list[tuple[int, int]], list[tuple[int, Outcome]], dict[int, gateway.Tally]]:
        """The messages accepted at once, what to write of the others, and how the gateway answered, by mailing."""
        sent: list[tuple[int, int]] = []
        outcomes: list[tuple[int, Outcome]] = []
        tallies: dict[int, gateway.Tally] = {}
        now = self._clock.now()
        for delivery, results in group:
            tally = tallies.setdefault(delivery.mailing_id, gateway.Tally())
            for result in results:
                if isinstance(result, Called):
                    add_to_tally(tally, result.judgement)
                    tally.time(result.answer.milliseconds)
                    if is_sent_at_once(result.recipient, result.judgement):
                        sent.append((delivery.batch_id, result.recipient.message_id))
                        continue
                outcomes.append((delivery.batch_id, _outcome(delivery, result, now)))
        tallies = {mailing_id: tally for mailing_id, tally in tallies.items() if any(tally.timings)}
        return sent, outcomes, tallies


def _record(
    connection: Connection,
    sent: Sequence[tuple[int, int]],
    outcomes: Sequence[tuple[int, Outcome]],
    tallies: Mapping[int, gateway.Tally],
    finished: Sequence[int],
) -> None:
    # Nothing is recorded any more when all this was committed before, and only the answer was lost.
    if record(connection, outcomes, sent):
        gateway.add_tallies(connection, tallies)
    batches.finish(connection, finished)


def _halves(group: _Group) -> tuple[_Group, _Group]:
    single: _Group = [(delivery, [result]) for delivery, part in group for result in part]
    middle = len(single) // 2
    return single[:middle], single[middle:]


def _outcome(delivery: Delivery, result: Result, now: datetime) -> Outcome:
    if isinstance(result, Called):
        return after_answer(result.recipient, result.answer, result.judgement, delivery.terms, now)
    if isinstance(result, Settled):
        return result.outcome
    if result.skip is Skip.CLOSED:
        return outside_window(result.recipient, delivery.terms, now)
    # A withdrawn client's message goes back too: the next release reads what has become of the client.
    return taken_back(result.recipient, now)

"""A batch on its way through the gateway client: what is still to be called, and what came of each message."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, Protocol

from db.queries.batches import Outcome, Recipient, Standing, TakenBatch
from db.windows import is_open
from sender.answers import Answer, Judgement
from sender.clock import DatabaseClock
from sender.outcomes import Terms

# From the decision to make a call to its bytes on the wire some time goes by, most on a busy machine: the last calls
# before a mailing's end are decided so much earlier, so that none leaves after it.
END_GUARD_SECONDS = 0.05


class Skip(StrEnum):
    """Why a message was not called for."""

    RETURNED = "returned"  # it goes back, due at once, no attempt counted
    WITHDRAWN = "withdrawn"  # its client was deleted or opted out a moment ago
    CLOSED = "closed"  # the client's sending window is closed now


class Call(NamedTuple):
    """One message ready to be sent."""

    recipient: Recipient
    phone: int
    text: str


class Called(NamedTuple):
    """A finished call."""

    recipient: Recipient
    answer: Answer
    judgement: Judgement


class Skipped(NamedTuple):
    """A message that was not called for."""

    recipient: Recipient
    skip: Skip


class Settled(NamedTuple):
    """A message that was not worth a call, with what becomes of it."""

    recipient: Recipient
    outcome: Outcome


Result = Called | Skipped | Settled


class Sink(Protocol):
    """Where results go."""

    def put(self, delivery: Delivery, results: Sequence[Result]) -> None:
        """Take in the results of some messages of a delivery."""


class Delivery:
    """The messages of one batch on their way. The client's loop takes calls from it; every message gets one result."""

    def __init__(
        self,
        batch: TakenBatch,
        terms: Terms,
        calls: list[Call],
        clock: DatabaseClock,
        lease_seconds: float,
        sink: Sink,
    ) -> None:
        self.batch_id = batch.id
        self.mailing_id = batch.mailing_id
        self.terms = terms
        self.size = len(batch.recipients)
        self.begun = threading.Event()  # set when no call waits any more
        self.recorded = 0  # results that are in the database
        self.done = threading.Event()  # set when all are
        self.withdrawn: set[int] = set()  # client ids
        self._clock = clock
        self._sink = sink
        self._waiting = deque(calls)
        self._stopped = False
        self._lease_deadline = time.monotonic() + lease_seconds
        self._open_zones: dict[str, tuple[float, bool]] = {}
        self.ends_at = terms.ends_at
        self._note_begun()
        self.note_recorded(0)

    @property
    def ends_at(self) -> datetime:
        """The mailing's end; no call starts after it."""
        return self._ends_at

    @ends_at.setter
    def ends_at(self, instant: datetime) -> None:
        self._ends_at = instant
        self.end_deadline = self._clock.monotonic(instant) - END_GUARD_SECONDS

    def renewed(self, standing: Standing | None, lease_seconds: float, asked_at: float) -> None:
        """Take note of the lease, asked for at that monotonic time; None means that it is lost."""
        if standing is None or not standing.may_send:
            self.stop()
            return
        self._lease_deadline = asked_at + lease_seconds
        self.ends_at = standing.ends_at

    def stop(self) -> None:
        """Start no further call of this batch."""
        self._stopped = True

    def is_over(self, now: float) -> bool:
        """Whether nothing of this batch may be started any more at this monotonic time."""
        return self._stopped or now >= self._lease_deadline or now >= self.end_deadline

    @property
    def waiting(self) -> int:
        """How many of its calls were not started yet."""
        return len(self._waiting)

    def next_calls(self, most: int, now: float) -> list[Call]:
        """The next calls to start at this monotonic time; fewer than asked for only when no more are left."""
        if self.is_over(now):
            self.return_rest()
            return []
        calls: list[Call] = []
        skipped: list[Result] = []
        while self._waiting and len(calls) < most:
            call = self._waiting.popleft()
            if self.withdrawn and call.recipient.client_id in self.withdrawn:
                skipped.append(Skipped(call.recipient, Skip.WITHDRAWN))
            elif self.terms.window is not None and not self._window_is_open(call.recipient, now):
                skipped.append(Skipped(call.recipient, Skip.CLOSED))
            else:
                calls.append(call)
        self.put(skipped)
        self._note_begun()
        return calls

    def return_rest(self) -> None:
        """Report everything not yet called for as returned."""
        returned = [Skipped(call.recipient, Skip.RETURNED) for call in self._waiting]
        self._waiting.clear()
        self.put(returned)
        self._note_begun()

    def put(self, results: Sequence[Result]) -> None:
        """Pass on the results of some messages."""
        if results:
            self._sink.put(self, results)

    def _note_begun(self) -> None:
        if not self._waiting:
            self.begun.set()

    def note_recorded(self, count: int) -> None:
        """Take note that so many more results are in the database."""
        self.recorded += count
        if self.recorded == self.size:
            self.done.set()

    def _window_is_open(self, recipient: Recipient, now: float) -> bool:
        zone = recipient.timezone
        if zone is None or self.terms.window is None:
            return True
        checked = self._open_zones.get(zone)
        if checked is None or checked[0] < now:
            # One look per zone and second: a batch has hundreds of clients and a handful of zones.
            checked = self._open_zones[zone] = (now + 1.0, is_open(self.terms.window, zone, self._clock.now()))
        return checked[1]

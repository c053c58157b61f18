"""A batch on its way through the gateway client: what is still to be called, what has come back."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from db.queries.batches import Recipient, Standing, TakenBatch
from db.windows import is_open
from sender.answers import Answer, Judgement
from sender.clock import DatabaseClock
from sender.outcomes import Terms

# Results are recorded in groups: of so many as soon as they are there, of fewer when one has waited so long.
GROUP_SIZE = 200
GROUP_SECONDS = 0.03

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


Result = Called | Skipped


class Delivery:
    """The calls of one batch. The client's loop takes from it and puts results in, the actor's thread reads them.

    The actor is woken for a group of results, not for each: a thread switch costs more than a call.
    """

    def __init__(
        self, batch: TakenBatch, terms: Terms, calls: list[Call], clock: DatabaseClock, lease_seconds: float
    ) -> None:
        self.batch_id = batch.id
        self.mailing_id = batch.mailing_id
        self.terms = terms
        self.size = len(calls)
        self.withdrawn: set[int] = set()  # client ids
        self.results: deque[Result] = deque()
        self.group_due_at: float | None = None  # monotonic; None while there is nothing to record
        self._group_ready = threading.Event()
        self._put = 0
        self._clock = clock
        self._waiting = deque(calls)
        self._stopped = False
        self._lease_deadline = time.monotonic() + lease_seconds
        self._open_zones: dict[str, tuple[float, bool]] = {}
        self.ends_at = terms.ends_at

    @property
    def waiting(self) -> int:
        """How many of its calls were not started yet."""
        return len(self._waiting)

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
    def is_accounted_for(self) -> bool:
        """Whether every message has a result."""
        return self._put == self.size

    def next_call(self, now: float) -> Call | None:
        """The next call to start at this monotonic time, or None when none is left."""
        if self.is_over(now):
            self.return_rest()
            return None
        while self._waiting:
            call = self._waiting.popleft()
            if call.recipient.client_id in self.withdrawn:
                self.put(Skipped(call.recipient, Skip.WITHDRAWN))
            elif self.terms.window is not None and not self._window_is_open(call.recipient, now):
                self.put(Skipped(call.recipient, Skip.CLOSED))
            else:
                return call
        return None

    def return_rest(self) -> None:
        """Report everything not yet called for as returned."""
        while self._waiting:
            self.put(Skipped(self._waiting.popleft().recipient, Skip.RETURNED))

    def put(self, result: Result) -> None:
        """Take in a result; `hand_over` wakes the actor for it when its group is due."""
        self.results.append(result)
        self._put += 1
        if self.group_due_at is None:
            self.group_due_at = time.monotonic() + GROUP_SECONDS

    def hand_over(self, now: float) -> None:
        """Wake the actor if there is a group worth a commit, or one that has waited long enough."""
        if self.group_due_at is None:
            return
        if now >= self.group_due_at or len(self.results) >= GROUP_SIZE or self.is_accounted_for:
            self.group_due_at = None
            self._group_ready.set()

    def groups(self) -> Iterator[list[Result]]:
        """The results as they come, in groups worth a commit, until every message is accounted for."""
        left = self.size
        while left:
            self._group_ready.wait()
            self._group_ready.clear()
            group = [self.results.popleft() for _ in range(len(self.results))]
            left -= len(group)
            if group:
                yield group

    def _window_is_open(self, recipient: Recipient, now: float) -> bool:
        zone = recipient.timezone
        if zone is None or self.terms.window is None:
            return True
        checked = self._open_zones.get(zone)
        if checked is None or checked[0] < now:
            # One look per zone and second: a batch has hundreds of clients and a handful of zones.
            checked = self._open_zones[zone] = (now + 1.0, is_open(self.terms.window, zone, self._clock.now()))
        return checked[1]

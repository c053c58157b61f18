"""A batch on its way through the gateway client: what is still to be called, what has come back."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum
from queue import Empty, SimpleQueue
from typing import NamedTuple

from db.queries.batches import Recipient, Standing, TakenBatch
from db.windows import is_open
from sender.answers import Answer, Judgement
from sender.clock import DatabaseClock
from sender.outcomes import Terms

# Results are recorded in groups: at most so many, and none waits longer. A group costs one commit.
GROUP_SIZE = 200
GROUP_SECONDS = 0.03


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
    """The calls of one batch. The client's loop takes from it, the actor's thread reads the results."""

    def __init__(
        self, batch: TakenBatch, terms: Terms, calls: list[Call], clock: DatabaseClock, lease_seconds: float
    ) -> None:
        self.batch_id = batch.id
        self.mailing_id = batch.mailing_id
        self.terms = terms
        self.size = len(calls)
        self.withdrawn: set[int] = set()  # client ids
        self.results: SimpleQueue[Result] = SimpleQueue()
        self._clock = clock
        self._waiting = deque(calls)
        self._stopped = False
        self._lease_deadline = time.monotonic() + lease_seconds
        self._open_zones: dict[str, tuple[float, bool]] = {}
        self.ends_at = terms.ends_at

    @property
    def ends_at(self) -> datetime:
        """The mailing's end; no call starts after it."""
        return self._ends_at

    @ends_at.setter
    def ends_at(self, instant: datetime) -> None:
        self._ends_at = instant
        self.end_deadline = self._clock.monotonic(instant)

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

    def next_call(self, now: float) -> Call | None:
        """The next call to start at this monotonic time, or None when none is left."""
        if self._stopped or now >= self._lease_deadline or now >= self.end_deadline:
            self.return_rest()
            return None
        while self._waiting:
            call = self._waiting.popleft()
            if call.recipient.client_id in self.withdrawn:
                self.results.put(Skipped(call.recipient, Skip.WITHDRAWN))
            elif self.terms.window is not None and not self._window_is_open(call.recipient, now):
                self.results.put(Skipped(call.recipient, Skip.CLOSED))
            else:
                return call
        return None

    def return_rest(self) -> None:
        """Report everything not yet called for as returned."""
        while self._waiting:
            self.results.put(Skipped(self._waiting.popleft().recipient, Skip.RETURNED))

    def groups(self) -> Iterator[list[Result]]:
        """The results as they come, in groups worth a commit, until every message is accounted for."""
        left = self.size
        while left:
            group = [self.results.get()]
            deadline = time.monotonic() + GROUP_SECONDS
            while len(group) < min(left, GROUP_SIZE):
                try:
                    group.append(self.results.get(timeout=max(0.0, deadline - time.monotonic())))
                except Empty:
                    break
            left -= len(group)
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

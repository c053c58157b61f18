"""A batch on its way through the gateway client: what is still to be called, and what came of each message."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from enum import StrEnum
from typing import NamedTuple, Protocol

from db.queries.batches import Recipient, Standing, TakenBatch
from db.queries.outcomes import Outcome
from db.windows import Window, is_open
from sender.answers import Answer, Judgement
from sender.clock import DatabaseClock
from sender.outcomes import Terms

# From the decision to make a call to its bytes on the wire some time goes by, most on a busy machine: the last calls
# before a mailing's end, or a window's, are decided so much earlier, so that none leaves after it.
END_GUARD_SECONDS = 0.05
# Whether a window is open is asked so often, and for each call when it opens or closes within that time.
WINDOW_SECONDS = 1.0


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
        self.terms = terms
        self._note_begun()
        self.note_recorded(0)

    @property
    def terms(self) -> Terms:
        """What goes for its messages now: people may move a mailing's end and its window at any time."""
        return self._terms

    @terms.setter
    def terms(self, terms: Terms) -> None:
        self._terms = terms
        self._end_deadline = self._clock.monotonic(terms.ends_at) - END_GUARD_SECONDS
        self._open_zones: dict[str, tuple[float, bool]] = {}  # until when it is known, and whether it is open

    def renewed(self, standing: Standing | None, lease_seconds: float, asked_at: float) -> None:
        """Take note of the lease, asked for at that monotonic time; None means that it is lost."""
        if standing is None or not standing.may_send:
            self.stop()
            return
        self._lease_deadline = asked_at + lease_seconds
        self.terms = dataclasses.replace(self.terms, ends_at=standing.ends_at, window=standing.window)

    def stop(self) -> None:
        """Start no further call of this batch."""
        self._stopped = True

    def is_over(self, now: float) -> bool:
        """Whether nothing of this batch may be started any more at this monotonic time."""
        return self._stopped or now >= self._lease_deadline or now >= self._end_deadline

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
            skip = self._skip(call.recipient, now)
            if skip is None:
                calls.append(call)
            else:
                skipped.append(Skipped(call.recipient, skip))
        self.put(skipped)
        self._note_begun()
        return calls

    def objection(self, call: Call, now: float) -> Skip | None:
        """Why this call, which is about to leave, must not at this monotonic time; None when it may."""
        return Skip.RETURNED if self.is_over(now) else self._skip(call.recipient, now)

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

    def _skip(self, recipient: Recipient, now: float) -> Skip | None:
        if self.withdrawn and recipient.client_id in self.withdrawn:
            return Skip.WITHDRAWN
        window, zone = self._terms.window, recipient.timezone
        if window is not None and zone is not None and not self._is_open(window, zone, now):
            return Skip.CLOSED
        return None

    def _is_open(self, window: Window, zone: str, now: float) -> bool:
        until, opened = self._open_zones.get(zone, (now, False))
        if now < until:
            return opened
        # Seldom: a batch has hundreds of clients and a handful of zones.
        at = self._clock.now()
        soon = at + timedelta(seconds=END_GUARD_SECONDS)
        opened = is_open(window, zone, at) and is_open(window, zone, soon)
        if opened == is_open(window, zone, soon + timedelta(seconds=WINDOW_SECONDS)):
            self._open_zones[zone] = (now + WINDOW_SECONDS, opened)
        return opened

"""The gateway's client: one loop per process, with hundreds of calls in flight on one thread.

Which calls begin, and when, is decided here; how they are made, in `sender/exchanges.py`. What happens within a
millisecond is handled together: waking up, looking round and fighting for the interpreter's lock cost more than a call
does.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import Protocol

import structlog

from sender.answers import Answer, Fault, Verdict, judge
from sender.delivery import Called, Delivery, Skipped
from sender.exchanges import Exchange, Exchanges
from sender.limit import Limit

log = structlog.get_logger(__name__)

ROUND_SECONDS = 0.001  # The loop goes round no more often.
# And begins so many calls in a round at most: a gateway that answers at once is then spoken to over few connections,
# and a slow one still gets a hundred thousand calls a second.
STARTS_PER_ROUND = 128
TURN = 16  # calls of one mailing before the next one's
IDLE_SECONDS = 0.5  # Leases, ends and pauses are looked at this often even when nothing happens.
# One mailing may use this share of the calls in flight, so that one whose calls all hang leaves room for the others.
# With 0.9 another took twelve times as long beside it as alone.
MAILING_SHARE = 0.8
# The exponentially weighted share of failing calls, of every mailing, beyond which this process stops by itself.
TRIP_RATIO = 0.75
TRIP_WEIGHT = 0.05
TRIP_MEMORY_SECONDS = 10.0

_FAILED = frozenset({Verdict.TROUBLE, Verdict.UNKNOWN})
# What tells how long the gateway takes.
_HEARD = frozenset({Verdict.ACCEPTED, Verdict.REFUSED, Verdict.DEFERRED})
# Signs that it cannot take more connections.
_OVERLOADS = frozenset({Fault.REFUSED, Fault.CONNECT_TIMEOUT})


class Pace(Protocol):
    """Who says when the next call may go."""

    demand: int  # how many calls wait for it; kept up to date by the caller

    def take(self, most: int, now: float) -> int:
        """Take the permission to start up to `most` calls at this monotonic time; how many were given."""
        ...

    def give_back(self, count: int, now: float) -> None:
        """Return what was not used of it."""
        ...

    def wait_seconds(self, now: float) -> float:
        """Seconds until there may be more."""
        ...


class GatewayClient:
    """Sends the calls of many deliveries, `concurrency` at a time.

    A call counts as in flight until its outcome is recorded (`recorded`): so a killed process leaves at most that many
    messages that the gateway may have seen and the database does not know of.
    """

    def __init__(self, url: str, token: str | None, timeout_seconds: float, concurrency: int, pace: Pace) -> None:
        self._exchanges = Exchanges(url.rstrip("/"), token, timeout_seconds)
        # Called when no call can begin any more until something comes back: none waits, or none may go.
        self.on_waiting: Callable[[], None] = lambda: None
        self._pace = pace
        self._limit = Limit(concurrency, timeout_seconds)
        self._busy = 0  # in flight, or not yet recorded
        self._busy_of: defaultdict[int, int] = defaultdict(int)  # the same by mailing
        self._incoming: deque[Delivery] = deque()
        self._active: set[Delivery] = set()  # while they have calls that were not begun
        self._freed: deque[Counter[int]] = deque()
        self._ring: deque[int] = deque()  # mailing ids, in turn
        self._deliveries: dict[int, deque[Delivery]] = {}
        self._failing: dict[int, tuple[float, float]] = {}  # mailing id: weighted share of failures, when last heard
        self._draining = False
        self._closed = False
        self._next_round = 0.0
        self._pause = 0.0  # how long there is nothing to begin
        self._next_look = 0.0  # at what is being connected
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)

    # Called from other threads ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the loop's thread."""
        self._thread.start()

    def submit(self, delivery: Delivery) -> None:
        """Begin a delivery; its results go to its sink."""
        self._incoming.append(delivery)
        self._wake()

    def recorded(self, calls: Counter[int]) -> None:
        """Free the places of calls whose outcomes are in the database; their number by mailing."""
        self._freed.append(calls)
        self._wake()

    def wake(self) -> None:
        """Look at the deliveries and the pace again."""
        self._wake()

    def drain(self) -> None:
        """Start no further call: what is in flight ends, the rest is returned."""
        self._draining = True
        self._wake()

    def close(self) -> None:
        """End the loop at once and close every connection."""
        self._wake()
        self._closed = True
        self._thread.join(timeout=5)

    def _wake(self) -> None:
        if not self._closed:
            self._exchanges.wake()

    # The loop -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closed:
                self._round()
            self._exchanges.close()
        except Exception:
            # Without its loop the process is useless: end it, its supervisor starts a new one and leases run out.
            log.exception("gateway_loop_failed")
            os._exit(70)

    def _round(self) -> None:
        now = time.monotonic()
        if now < self._next_round:
            time.sleep(self._next_round - now)
        self._finish(self._exchanges.wait(self._pause))
        now = time.monotonic()
        self._next_round = now + ROUND_SECONDS
        self._take_in()
        self._return_what_is_over(now)
        self._pause = self._start_calls(now)

    def _return_what_is_over(self, now: float) -> None:
        """Give back paused, ended and lost batches at once, even while all places are taken."""
        for delivery in list(self._active):
            if delivery.is_over(now):
                delivery.return_rest()
            if not delivery.waiting:
                self._active.discard(delivery)
        if now >= self._next_look:
            self._next_look = now + IDLE_SECONDS
            self._exchanges.take_back(now)

    def _take_in(self) -> None:
        while self._freed:
            for mailing_id, calls in self._freed.popleft().items():
                self._free(mailing_id, calls)
        while self._incoming:
            delivery = self._incoming.popleft()
            if delivery.mailing_id not in self._deliveries:
                self._deliveries[delivery.mailing_id] = deque()
                self._ring.append(delivery.mailing_id)
            self._deliveries[delivery.mailing_id].append(delivery)
            self._active.add(delivery)
        if self._draining:
            self._return_everything()

    def _free(self, mailing_id: int, calls: int) -> None:
        self._busy -= calls
        self._busy_of[mailing_id] -= calls
        if not self._busy_of[mailing_id]:
            del self._busy_of[mailing_id]

    def _return_everything(self) -> None:
        for deliveries in self._deliveries.values():
            for delivery in deliveries:
                delivery.return_rest()
        self._deliveries.clear()
        self._ring.clear()

    def _start_calls(self, now: float) -> float:
        """Start what may start now; seconds until it is worth looking again."""
        share = max(1, int(self._limit.value * MAILING_SHARE))
        self._pace.demand = sum(delivery.waiting for queue in self._deliveries.values() for delivery in queue)
        room = STARTS_PER_ROUND
        skipped = 0
        while skipped < len(self._ring) and (free := int(self._limit.value) - self._busy) > 0:
            if not room:
                return 0.0
            mailing_id = self._ring[0]
            turn = min(TURN, room, free, share - self._busy_of[mailing_id])
            if turn <= 0:
                self._ring.rotate(-1)
                skipped += 1
                continue
            granted = self._pace.take(turn, now)
            if not granted:
                self.on_waiting()
                return min(self._pace.wait_seconds(now), IDLE_SECONDS)
            started = self._start_turn(mailing_id, granted, now)
            self._pace.give_back(granted - started, now)
            room -= started
            skipped = 0
        self.on_waiting()
        return IDLE_SECONDS

    def _start_turn(self, mailing_id: int, most: int, now: float) -> int:
        """Start the mailing's next calls and let the next mailing have its turn; their number."""
        deliveries = self._deliveries[mailing_id]
        started = 0
        while deliveries and started < most:
            delivery = deliveries[0]
            calls = delivery.next_calls(most - started, now)
            for call in calls:
                self._exchanges.begin(call, delivery, now)
            self._busy += len(calls)
            self._busy_of[mailing_id] += len(calls)
            started += len(calls)
            if not delivery.waiting:
                deliveries.popleft()
        self._ring.popleft()
        if deliveries:
            self._ring.append(mailing_id)
        else:
            del self._deliveries[mailing_id]
        return started

    def _finish(self, ended: list[Exchange]) -> None:
        if not ended:
            return
        now = time.monotonic()
        called: defaultdict[Delivery, list[Called]] = defaultdict(list)
        seconds: list[float] = []
        overloaded = False
        for exchange in ended:
            recipient, answer, delivery = exchange.call.recipient, exchange.answer, exchange.delivery
            if not isinstance(answer, Answer):
                assert answer is not None
                self._free(delivery.mailing_id, 1)
                delivery.put([Skipped(recipient, answer)])
                continue
            judgement = judge(answer)
            called[delivery].append(Called(recipient, answer, judgement))
            if judgement.verdict in _HEARD or answer.fault is Fault.TIMEOUT:
                seconds.append(answer.milliseconds / 1000)
            elif answer.fault in _OVERLOADS:
                overloaded = True
        if overloaded:
            self._limit.refused(now)
        if seconds:
            self._limit.answered(seconds, len(self._exchanges) + len(ended), now)
        for delivery, results in called.items():
            delivery.put(results)
            self._watch(delivery.mailing_id, results, now)

    def _watch(self, mailing_id: int, called: list[Called], now: float) -> None:
        """Stop by itself when nothing works any more: the breaker needs a second, a thousand calls a blink."""
        verdicts = [result.judgement.verdict for result in called]
        if Verdict.BLOCKED in verdicts:
            self._trip()
            return
        failed = sum(map(verdicts.count, _FAILED))
        if mailing_id not in self._failing:
            self._failing = {m: heard for m, heard in self._failing.items() if heard[1] > now - TRIP_MEMORY_SECONDS}
        ratio, _ = self._failing.get(mailing_id, (0.0, now))
        ratio += (1 - (1 - TRIP_WEIGHT) ** len(verdicts)) * (failed / len(verdicts) - ratio)
        self._failing[mailing_id] = (ratio, now)
        if failed and all(
            share > TRIP_RATIO for share, heard in self._failing.values() if heard > now - TRIP_MEMORY_SECONDS
        ):
            self._trip()

    def _trip(self) -> None:
        self._limit.trip()
        self._return_everything()

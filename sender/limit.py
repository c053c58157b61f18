"""How many calls may be in flight: few at first, then as many as the gateway bears."""

from __future__ import annotations

import math

FIRST = 50.0
LEAST = 10.0
DECREASE = 0.7
DECREASE_SECONDS = 0.5
INCREASE = 8.0  # a round of answers, beyond what was too much before
# Answers that take this share of the time-out are slow: half of what is missing to losing them.
SLOW_SHARE = 0.25
# Fewer calls that leave answers longer than this share of before were not what made them slow. When nearly all run
# into the time-out that cannot be told: then fewer, until it can.
HELPED = 0.85
# Answers within so much of the quickest average: calls do not queue, twice as many may go (HyStart++, RFC 9406). Within
# the second: a few more. Beyond it more calls would only wait longer, and each costs memory (TCP Vegas).
STEADY = (1.5, 0.02)  # times, plus seconds
QUEUEING = (2.0, 0.05)
QUICKEST_SECONDS = 120.0  # The quickest average is forgotten after so long: gateways change.
WEIGHT = 0.05  # of one answer in the moving average of their times
ENOUGH_ANSWERS = 40


class Limit:
    """The number of calls that may be in flight, `value`, from what became of those before.

    It doubles with every round of answers, so that no gateway meets a thousand connections at once, until answers take
    longer; from there on it grows little by little, and then not at all. A gateway that cannot be connected to gets
    fewer: the additive increase and multiplicative decrease of TCP (RFC 5681). So does one whose answers become really
    slow, unless fewer calls turn out not to quicken them: then it does not queue, it is just slow, and needs many.
    """

    def __init__(self, most: int, timeout_seconds: float) -> None:
        self.most = float(most)
        self.value = min(FIRST, self.most)
        self._timeout_seconds = timeout_seconds
        self._comfort = self.most  # up to here it may double
        self._decreased_at = 0.0  # monotonic
        self._slow_from = self._slow_from_first = timeout_seconds * SLOW_SHARE
        self._quickest = math.inf  # the least that the average was lately
        self._quickest_at = 0.0  # monotonic
        self._seconds = 0.0  # moving average of the answers to calls begun after the last decrease
        self._answers = 0  # their number
        self._before: tuple[float, float, float] | None = None  # value, comfort and seconds before the last decrease

    def answered(self, seconds: float, now: float, calls: int = 1) -> None:
        """Calls that took so long, on average, were answered or given up for their time-out at this monotonic time."""
        self._time(seconds, now, calls)
        if self._is_slow():
            self._heed_slowness(now)
        else:
            self.value = min(self.most, self.value + calls * self._step())

    def refused(self, now: float) -> None:
        """A connection was refused or not made in time: the sign of too many."""
        if now - self._decreased_at > DECREASE_SECONDS:
            self._decrease(now)

    def trip(self) -> None:
        """Nothing works any more: begin anew with one call, and hold nothing against the gateway, it was down."""
        self.value = 1.0
        self._comfort = self.most
        self._before = None
        self._quickest = math.inf
        self._answers = 0

    def _time(self, seconds: float, now: float, calls: int) -> None:
        if now - seconds < self._decreased_at:
            return  # It waited behind more calls than there are now.
        self._answers += calls
        self._seconds += (seconds - self._seconds) * max(1 - (1 - WEIGHT) ** calls, calls / self._answers)
        forgotten = now - self._quickest_at > QUICKEST_SECONDS
        if self._answers >= min(ENOUGH_ANSWERS, self.value) and (self._seconds < self._quickest or forgotten):
            self._quickest, self._quickest_at = self._seconds, now
        if self._seconds < self._slow_from_first:
            self._slow_from = self._slow_from_first
            self._before = None

    def _step(self) -> float:
        """What one answer adds."""
        if self.value < self._comfort and self._is_within(STEADY):
            return 1.0
        return INCREASE / self.value if self._is_within(QUEUEING) else 0.0

    def _is_within(self, bound: tuple[float, float]) -> bool:
        return self._seconds <= bound[0] * self._quickest + bound[1]

    def _is_slow(self) -> bool:
        return self._answers >= min(ENOUGH_ANSWERS, self.value) and self._seconds > self._slow_from

    def _heed_slowness(self, now: float) -> None:
        if self._before is not None and HELPED * self._before[2] < self._seconds < HELPED * self._timeout_seconds:
            self.value, self._comfort, _ = self._before
            self._slow_from = 2 * self._seconds
            self._quickest, self._quickest_at = self._seconds, now
            self._before = None
        else:
            self._before = (self.value, self._comfort, self._seconds)
            self._decrease(now)

    def _decrease(self, now: float) -> None:
        self._decreased_at = now
        self._answers = 0
        self._comfort = self.value = max(min(LEAST, self.value), self.value * DECREASE)

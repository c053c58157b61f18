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
# While answers take no longer than that, compared with the quickest time, calls do not queue (HyStart++, RFC 9406).
STEADY = 1.5
STEADY_SECONDS = 0.05
WEIGHT = 0.05  # of one answer in the moving average of their times
ENOUGH_ANSWERS = 40


class Limit:
    """The number of calls that may be in flight, `value`, from what became of those before.

    It doubles with every round of answers, so that no gateway meets a thousand connections at once, until answers take
    longer; from there on it grows little by little. A gateway that cannot be connected to gets fewer: the additive
    increase and multiplicative decrease of TCP (RFC 5681). So does one whose answers become really slow, unless fewer
    calls turn out not to quicken them: then it does not queue, it is just slow, and needs many.
    """

    def __init__(self, most: int, timeout_seconds: float) -> None:
        self.most = float(most)
        self.value = min(FIRST, self.most)
        self._timeout_seconds = timeout_seconds
        self._comfort = self.most  # up to here it may double
        self._decreased_at = 0.0  # monotonic
        self._slow_from = self._slow_from_first = timeout_seconds * SLOW_SHARE
        self._quickest = math.inf  # the least that the average was
        self._seconds = 0.0  # moving average of the answers to calls begun after the last decrease
        self._answers = 0  # their number
        self._before: tuple[float, float, float] | None = None  # value, comfort and seconds before the last decrease

    def answered(self, seconds: float, now: float) -> None:
        """A call that took so long was answered, or given up for its time-out, at this monotonic time."""
        self._time(seconds, now)
        if self._is_slow():
            self._heed_slowness(now)
        else:
            doubles = self.value < self._comfort and self._seconds < STEADY * self._quickest + STEADY_SECONDS
            step = 1.0 if doubles else INCREASE / self.value
            self.value = min(self.most, self.value + step)

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

    def _time(self, seconds: float, now: float) -> None:
        if now - seconds < self._decreased_at:
            return  # It waited behind more calls than there are now.
        self._answers += 1
        self._seconds += (seconds - self._seconds) * max(WEIGHT, 1.0 / self._answers)
        if self._answers >= min(ENOUGH_ANSWERS, self.value):
            self._quickest = min(self._quickest, self._seconds)
        if self._seconds < self._slow_from_first:
            self._slow_from = self._slow_from_first
            self._before = None

    def _is_slow(self) -> bool:
        return self._answers >= min(ENOUGH_ANSWERS, self.value) and self._seconds > self._slow_from

    def _heed_slowness(self, now: float) -> None:
        if self._before is not None and HELPED * self._before[2] < self._seconds < HELPED * self._timeout_seconds:
            self.value, self._comfort, _ = self._before
            self._slow_from = 2 * self._seconds
            self._quickest = self._seconds
            self._before = None
        else:
            self._before = (self.value, self._comfort, self._seconds)
            self._decrease(now)

    def _decrease(self, now: float) -> None:
        self._decreased_at = now
        self._answers = 0
        self._comfort = self.value = max(min(LEAST, self.value), self.value * DECREASE)

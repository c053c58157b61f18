"""How many calls may be in flight: few at first, then as many as the gateway bears."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

FIRST = 50.0
LEAST = 10.0
DECREASE = 0.7
DECREASE_SECONDS = 0.5
INCREASE = 8.0  # a round of answers, beyond what was too much before
# A round has as many answers as calls are in flight, between these; or after this time fewer, where they are slow.
ROUND_ANSWERS = (50, 1000)
LATE_ROUND = (10, 1.0)  # answers, seconds
# Answers within so much of the quickest round: calls do not queue, twice as many may go (HyStart++, RFC 9406). Within
# the second: a few more. Beyond it more calls would only wait longer, and each costs memory (TCP Vegas).
STEADY = (1.5, 0.02)  # times, plus seconds
QUEUEING = (2.0, 0.05)
# A limit is put to the test when no round of answers was STEADY for PATIENCE_SECONDS, or they take SLOW_SHARE of the
# time-out: TRIAL_SHARE of the calls goes on. If answers then take less than HELPED of before, calls were queueing.
PATIENCE_SECONDS = 120.0
SLOW_SHARE = 0.25
TRIAL_SHARE = 0.25
HELPED = 0.9
SPARE = 1.5  # times the calls that did not queue, where it helped
# When nearly all run into the time-out that cannot be told: then few, until it can.
HOPELESS_SHARE = 0.85


class _Round(NamedTuple):
    """How long answers took, in seconds: the quickest round has the least of each."""

    median: float
    # By Little's law: what all calls waited, by the number of answers. While more and more calls are begun, the answers
    # that came already are the quicker ones, and their median is too low where times vary; this is too high where they
    # do not. So calls queue if both say so.
    mean: float


class _Trial(NamedTuple):
    """What was before a trial with fewer calls."""

    value: float
    comfort: float
    median: float
    was_slow: bool


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
        self._decreased_at = -math.inf  # monotonic, as all times of a moment
        self._trial: _Trial | None = None
        self._heard_at = -math.inf
        self._round_from = -math.inf  # answers before that belong to no round
        self._seconds: list[float] = []  # of this round's answers
        self._waited = 0.0  # by all calls together, during this round
        self._forget()

    def answered(self, seconds: Sequence[float], in_flight: int, now: float) -> None:
        """Calls that took so long were answered or given up for their time-out; until then so many were in flight."""
        self.value = min(self.most, self.value + len(seconds) * self._step())
        if self._heard_at == -math.inf:
            self._round_from = now
        waited = in_flight * min(now - self._heard_at, max(seconds))
        self._heard_at = now
        if now >= self._round_from:
            self._seconds += seconds
            self._waited += waited
            if self._is_round_complete(now):
                self._end_round(now)

    def refused(self, now: float) -> None:
        """A connection was refused or not made in time: the sign of too many."""
        if now - self._decreased_at > DECREASE_SECONDS:
            self._decreased_at = now
            self._lower(self.value * DECREASE)
            self._trial = None
            self._begin_round(now)

    def trip(self) -> None:
        """Nothing works any more: begin anew with one call, and hold nothing against the gateway, it was down."""
        self.value = 1.0
        self._forget()

    def _forget(self) -> None:
        self._comfort = self.most  # up to here it may double
        self._quickest = self._latest = _Round(math.inf, math.inf)
        self._slow_from = self._timeout_seconds * SLOW_SHARE
        self._steady_at = math.inf  # when calls did not queue last
        self._trial = None
        self._heard_at = -math.inf
        self._begin_round(-math.inf)

    def _step(self) -> float:
        """What one answer adds."""
        if self._trial is not None or self._is_hopeless() or not self._is_within(QUEUEING):
            return 0.0
        return 1.0 if self.value < self._comfort and self._is_within(STEADY) else INCREASE / self.value

    def _is_hopeless(self) -> bool:
        return HOPELESS_SHARE * self._timeout_seconds < self._latest.median < math.inf

    def _is_within(self, bound: tuple[float, float]) -> bool:
        return any(now <= bound[0] * least + bound[1] for now, least in zip(self._latest, self._quickest, strict=True))

    def _lower(self, value: float) -> None:
        self._comfort = self.value = max(min(LEAST, self.value), value)

    # Rounds -------------------------------------------------------------------------------------------------------

    def _begin_round(self, since: float) -> None:
        self._round_from = since
        self._round_size = self.value
        self._seconds = []
        self._waited = 0.0

    def _is_round_complete(self, now: float) -> bool:
        count = len(self._seconds)
        least, most = ROUND_ANSWERS
        few, late = LATE_ROUND
        return count >= min(most, max(least, self._round_size)) or (count >= few and now - self._round_from > late)

    def _end_round(self, now: float) -> None:
        ordered = sorted(self._seconds)
        median, slowest = ordered[len(ordered) // 2], ordered[len(ordered) * 9 // 10]
        self._latest = _Round(median, self._waited / len(ordered))
        self._begin_round(now)
        if self._trial is not None:
            self._end_trial(self._trial)
            self._trial = None
            self._steady_at = now
            self._begin_round(now + 2 * slowest)  # Calls begun at once are not what will be usual.
            return
        self._quickest = _Round(*map(min, self._latest, self._quickest))
        if median < self._timeout_seconds * SLOW_SHARE:
            self._slow_from = self._timeout_seconds * SLOW_SHARE
        if self._is_within(STEADY):
            self._steady_at = now
        is_slow = median > self._slow_from or self._is_hopeless()
        if is_slow or now - self._steady_at > PATIENCE_SECONDS:
            self._trial = _Trial(self.value, self._comfort, median, is_slow)
            self._lower(self.value * TRIAL_SHARE)
            self._begin_round(now + 2 * slowest)  # What waited behind more calls is not looked at.

    def _end_trial(self, before: _Trial) -> None:
        median = self._latest.median
        made_no_difference = HELPED < median / before.median < 1 / HELPED and not self._is_hopeless()
        if made_no_difference:
            self._quickest = self._latest
            self._slow_from = max(self._slow_from, 2 * median)
        if made_no_difference or not before.was_slow:
            self.value, self._comfort = before.value, before.comfort
        elif median < before.median:
            self._lower(before.value * min(DECREASE, max(TRIAL_SHARE, SPARE * median / before.median)))

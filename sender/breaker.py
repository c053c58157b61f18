"""The circuit breaker and the pace: what recent answers say about the gateway. Pure rules, no database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from db.models import GatewayState
from db.queries.gateway import Tally
from sender.answers import AMBIGUOUS_FAULTS, Fault

WINDOWS_SECONDS = (0.5, 2.0, 10.0)
ENOUGH_CALLS = 10  # of all mailings together
ENOUGH_CALLS_OF_ONE = 3
HEARING_SECONDS = 2.0
FAILURE_RATIO = 0.7
# Where so few calls are made that the rest of this does not apply, as many failures in a row are enough, if the gateway
# was not reached at all. Any other may be about the message, and the limit of attempts is there for that.
ENOUGH_IN_A_ROW = 2
AWAY_REASONS = frozenset(Fault) - AMBIGUOUS_FAULTS

PROBE_SECONDS = 2.0  # while the gateway is down; probes do not wait for each other, a hung one costs its timeout
BLOCKED_PROBE_SECONDS = 10.0

SLOWEST_PACE = 1.0  # messages per second
PACE_DROP = 0.5
PACE_CLIMB = 1.25  # a second
FULL_PACE = 100_000.0


def probe_seconds(state: GatewayState) -> float | None:
    """How long after a change to this state the first probe goes, and each after the one before; None: no probes."""
    return {GatewayState.OPEN: PROBE_SECONDS, GatewayState.BLOCKED: BLOCKED_PROBE_SECONDS}.get(state)


def reason_of(tallies: Mapping[int, Tally]) -> str | None:
    """A reason for the trouble that these tell of; None when there is none."""
    return max((tally.reason for tally in tallies.values() if tally.reason), default=None)


def are_few(lately: Mapping[int, Tally]) -> bool:
    """Whether fewer calls failed than `Suspicion` judges by."""
    return sum(tally.troubled for tally in lately.values()) < ENOUGH_CALLS


def is_away(failed_in_a_row: int, on_the_wire: int) -> bool:
    """Whether the gateway is away, where few calls are made.

    So many failed since any call ended otherwise, and so many more may not have been heard yet.
    """
    return failed_in_a_row >= max(ENOUGH_IN_A_ROW, on_the_wire)


class Suspicion:
    """Whether the gateway fails, from how calls went lately.

    It is suspect when most calls failed of every mailing under way that was heard. That is sure when all were heard, or
    had the time to be since it was suspect: one that has only just begun may be the one that proves the gateway alive.
    """

    def __init__(self) -> None:
        self._since: float | None = None

    def forget(self) -> None:
        """Begin anew."""
        self._since = None

    def is_sure(self, windows: Sequence[Mapping[int, Tally]], under_way: AbstractSet[int], now: float) -> bool:
        """Whether the gateway fails at this monotonic time; the windows are the shortest first.

        One mailing whose calls succeed proves the gateway alive: another that fails entirely is then not its fault. So
        each is judged by the newest of its calls that are enough to judge by.
        """
        heard = {mailing_id: tally for mailing_id in windows[-1] if (tally := _newest(windows, mailing_id))}
        concerned = {mailing_id: tally for mailing_id, tally in heard.items() if mailing_id in under_way} or heard
        calls = sum(tally.answered + tally.troubled for tally in concerned.values())
        if calls < ENOUGH_CALLS or not all(map(is_troubled, concerned.values())):
            self._since = None
            return False
        if self._since is None:
            self._since = now
        return now - self._since >= HEARING_SECONDS or under_way <= heard.keys()


def is_troubled(tally: Tally) -> bool:
    """Whether most of these calls failed."""
    return tally.troubled >= FAILURE_RATIO * (tally.answered + tally.troubled)


def mailing_to_probe(due: Iterable[int], lately: Mapping[int, Tally], last_served: Mapping[int, int]) -> int:
    """The due mailing whose message asks whether the gateway is back.

    One whose calls do not all fail by themselves finds it alive at once; among equals they take turns.
    """
    troubled = {mailing_id for mailing_id, tally in lately.items() if is_troubled(tally)}
    return min(due, key=lambda mailing_id: (mailing_id in troubled, last_served.get(mailing_id, 0)))


def _newest(windows: Sequence[Mapping[int, Tally]], mailing_id: int) -> Tally | None:
    """The mailing's tally of the shortest window with enough calls, else of the longest; None when it has no calls."""
    tallies = [window[mailing_id] for window in windows if mailing_id in window]
    enough = (tally for tally in tallies if tally.answered + tally.troubled >= ENOUGH_CALLS_OF_ONE)
    newest = next(enough, tallies[-1])
    return newest if newest.answered + newest.troubled else None


def lowered_pace(current: float | None, calls_per_second: float) -> float:
    """The pace after the gateway asked to slow down: half of what was really going on."""
    base = min(current, calls_per_second) if current is not None else calls_per_second
    return max(SLOWEST_PACE, base * PACE_DROP)


def raised_pace(current: float, limit: float | None) -> float | None:
    """The pace a second later without a complaint; None when it no longer limits anything."""
    raised = current * PACE_CLIMB
    return None if raised >= (limit or FULL_PACE) else raised

"""The circuit breaker and the pace: what recent answers say about the gateway. Pure rules, no database."""

from __future__ import annotations

from collections.abc import Mapping

from db.queries.gateway import Tally

# Looked at from the shortest window on: the first with enough calls decides.
WINDOWS_SECONDS = (0.5, 2.0, 10.0)
ENOUGH_CALLS = 10
FAILURE_RATIO = 0.7

PROBE_SECONDS = 2.0  # while the gateway is down; probes do not wait for each other, a hung one costs its timeout
BLOCKED_PROBE_SECONDS = 10.0

SLOWEST_PACE = 1.0  # messages per second
PACE_DROP = 0.5
PACE_CLIMB = 1.25  # a second
FULL_PACE = 100_000.0


def is_failing(tallies: Mapping[int, Tally]) -> bool | None:
    """Whether most calls of every mailing failed; None when there were too few to say.

    One mailing whose calls succeed proves the gateway alive: another that fails entirely is then not its fault.
    """
    heard = {mailing_id: tally for mailing_id, tally in tallies.items() if tally.answered or tally.troubled}
    if sum(tally.answered + tally.troubled for tally in heard.values()) < ENOUGH_CALLS:
        return None
    return all(tally.troubled >= FAILURE_RATIO * (tally.answered + tally.troubled) for tally in heard.values())


def lowered_pace(current: float | None, calls_per_second: float) -> float:
    """The pace after the gateway asked to slow down: half of what was really going on."""
    base = min(current, calls_per_second) if current is not None else calls_per_second
    return max(SLOWEST_PACE, base * PACE_DROP)


def raised_pace(current: float, limit: float | None) -> float | None:
    """The pace a second later without a complaint; None when it no longer limits anything."""
    raised = current * PACE_CLIMB
    return None if raised >= (limit or FULL_PACE) else raised

"""The sending window: from when to when a client may be written to, by the clock on the client's own wall.

The rule is the plainest one: an instant is inside when the local clock then shows a time in [from, to). A window whose
`to` is earlier than its `from` goes over midnight. Daylight saving needs no rule of its own.
"""

from __future__ import annotations

import functools
from datetime import UTC, datetime, time, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError


class Window(NamedTuple):
    """Local clock times; `opens` is inside, `closes` is not."""

    opens: time
    closes: time


def is_open(window: Window, zone: str, at: datetime) -> bool:
    """Whether a client in this IANA zone may be written to at this instant."""
    clock = at.astimezone(_rules(zone)).time()
    if window.opens < window.closes:
        return window.opens <= clock < window.closes
    return clock >= window.opens or clock < window.closes


def next_opening(window: Window, zone: str, at: datetime) -> datetime:
    """The first instant not before `at` that is inside the window."""
    if is_open(window, zone, at):
        return at
    today = at.astimezone(_rules(zone)).date()
    candidates = (
        instant
        for days in range(3)
        for instant in _openings(window.opens, zone, datetime.combine(today, time()) + timedelta(days))
    )
    return min(instant for instant in candidates if instant > at and is_open(window, zone, instant))


@functools.cache
def _rules(zone: str) -> ZoneInfo:
    """The rules of a zone; those of UTC where this installation knows none of that name (any more)."""
    try:
        return ZoneInfo(zone)
    except ZoneInfoNotFoundError:
        return ZoneInfo("UTC")


def _openings(opens: time, zone: str, day: datetime) -> list[datetime]:
    """When the clock passes `opens` on this day: once, twice in an autumn night, at the jump in a spring night."""
    local = datetime.combine(day.date(), opens, _rules(zone))
    instants = [local.replace(fold=fold).astimezone(UTC) for fold in (0, 1)]
    if instants[0] > instants[1]:  # A time that the clock skips: PEP 495 puts the two readings the other way round.
        return [_jump(instants[1], instants[0], zone)]
    return instants


def _jump(before: datetime, after: datetime, zone: str) -> datetime:
    """The instant between the two at which the zone's offset changes, to the second."""
    offset = before.astimezone(_rules(zone)).utcoffset()
    while after - before > timedelta(seconds=1):
        middle = before + (after - before) / 2
        if middle.astimezone(_rules(zone)).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after.replace(microsecond=0)

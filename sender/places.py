"""The places for batches: how many there are, how much of one a batch takes, and whose turn it is.

Pure functions; the dispatcher asks them in each round of releasing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from db.queries.planned import BATCH_SIZE

# Small batches go to a worker together, so many where one of full size would: one transaction and one of the broker's
# messages for all. Each takes as much of a place.
BATCHES_TOGETHER = 8
# Of all places for batches, what one mailing may hold: one whose calls all hang leaves room for the others.
MAILING_SHARE = 0.75
# And what those together may hold that have some: the rest is for a mailing that has none, which would otherwise wait
# for a whole batch of another, minutes where the gateway is slow.
SHARE_OF_ALL = 5 / 6
# Under a rate limit no more is released than so many seconds' worth, so that the next mailing need not wait long.
PIPELINE_SECONDS = 3.0


def places(capacity: int, rate: float | None) -> tuple[int, int]:
    """How many batches may be under way, and of what size; `rate` is in messages per second, None without a limit.

    Under a limit all processes get through their batches at one pace, so each must have the next at hand when one ends:
    small ones for half of the places, rather than a few large ones that end all at once.
    """
    if rate is None or not capacity:
        return capacity, BATCH_SIZE
    messages = PIPELINE_SECONDS * rate
    size = min(BATCH_SIZE, math.ceil(messages / max(1, capacity // 2)))
    return min(capacity, math.ceil(messages / size)), size


def share_of_place(messages: int, size: int) -> float:
    """How much of a place for batches of this size one of so many messages takes."""
    return min(1.0, max(1 / BATCHES_TOGETHER, messages / size))


def may_hold_another(held: float, total: float, room: int) -> bool:
    """Whether a mailing that holds so many of all places taken may have another batch, where there are `room`."""
    if not held:
        return total < room
    return held < math.ceil(room * MAILING_SHARE) and total < math.ceil(room * SHARE_OF_ALL)


def in_turn(due: Iterable[int], held: Mapping[int, float], last_served: Mapping[int, int], room: int) -> list[int]:
    """The mailings whose next batches go together now; `held` are the places that each has.

    Those that hold least come first; among equals the one whose turn was longest ago.
    """
    chosen: list[int] = []
    total = sum(held.values())
    for mailing_id in sorted(due, key=lambda m: (held.get(m, 0), last_served.get(m, 0))):
        if may_hold_another(held.get(mailing_id, 0), total + len(chosen) / BATCHES_TOGETHER, room):
            chosen.append(mailing_id)
    return chosen[:BATCHES_TOGETHER]

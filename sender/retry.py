"""When to try again."""

from __future__ import annotations

import random
from collections.abc import Callable

BASE_SECONDS = 2.0
CAP_SECONDS = 300.0
# A Retry-After beyond this is taken as this: a typo of the gateway must not park a message for a year.
LONGEST_DEFERRAL_SECONDS = 3600.0
DEFAULT_DEFERRAL_SECONDS = 2.0


def backoff_seconds(attempt: int, uniform: Callable[[float, float], float] = random.uniform) -> float:
    """Seconds to wait after the `attempt`-th failed attempt (1, 2, ...): exponential with full jitter.

    Full jitter (a uniform choice between zero and the exponential bound) spreads a crowd of failures best; see
    "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    bound = min(CAP_SECONDS, BASE_SECONDS * 2.0 ** min(attempt - 1, 30))
    return uniform(0.0, bound)


def deferral_seconds(retry_after: float | None, uniform: Callable[[float, float], float] = random.uniform) -> float:
    """Seconds to wait after the gateway asked to slow down, not less than it asked for, a little spread."""
    asked = DEFAULT_DEFERRAL_SECONDS if retry_after is None else min(retry_after, LONGEST_DEFERRAL_SECONDS)
    return asked + uniform(0.0, 0.1 * asked + 0.5)

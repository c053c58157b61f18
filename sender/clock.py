"""The database's clock, as seen from a process whose own may be wrong or jump."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

# Answers that took longer are too vague to set a clock by.
TRUSTED_SECONDS = 0.25


class DatabaseClock:
    """Tells the database's time from the monotonic clock and the last time that was read."""

    def __init__(self) -> None:
        # Until the first `sync`, the system's clock.
        self._offset = time.time() - time.monotonic()
        self._is_synced = False

    def sync(self, database_now: datetime, asked_at: float) -> None:
        """Set the clock by a `clock_timestamp()` that was asked for at this monotonic time and has just arrived.

        Counted from the question, the clock may be fast by what the answer took, and never slow: the end of a mailing
        comes early rather than late. An answer that took long says little, the first one is taken whatever it took.
        """
        if self._is_synced and time.monotonic() - asked_at > TRUSTED_SECONDS:
            return
        self._offset = database_now.timestamp() - asked_at
        self._is_synced = True

    def now(self) -> datetime:
        """The database's time now, to some milliseconds."""
        return datetime.fromtimestamp(time.monotonic() + self._offset, UTC)

    def monotonic(self, instant: datetime) -> float:
        """The reading of `time.monotonic()` at an instant of the database's clock."""
        return instant.timestamp() - self._offset

    def after(self, seconds: float) -> datetime:
        """The database's time in some seconds."""
        return self.now() + timedelta(seconds=seconds)

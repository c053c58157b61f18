"""The database's clock, as seen from a process whose own may be wrong or jump."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta


class DatabaseClock:
    """Tells the database's time from the monotonic clock and the last time that was read."""

    def __init__(self) -> None:
        # Until the first `sync`, the system's clock.
        self._offset = time.time() - time.monotonic()

    def sync(self, database_now: datetime) -> None:
        """Set the clock by a `clock_timestamp()` that has just arrived."""
        self._offset = database_now.timestamp() - time.monotonic()

    def now(self) -> datetime:
        """The database's time now, to some milliseconds."""
        return datetime.fromtimestamp(time.monotonic() + self._offset, UTC)

    def monotonic(self, instant: datetime) -> float:
        """The reading of `time.monotonic()` at an instant of the database's clock."""
        return instant.timestamp() - self._offset

    def after(self, seconds: float) -> datetime:
        """The database's time in some seconds."""
        return self.now() + timedelta(seconds=seconds)

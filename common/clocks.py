"""Instants on the clocks of a time zone."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


def local(instant: datetime, zone: ZoneInfo) -> datetime:
    """The instant on the clocks of a zone; beyond their calendar, its first or last moment.

    Nobody may hand in such an instant, but one that the database holds must not cost a whole page or report.
    """
    try:
        return instant.astimezone(zone)
    except OverflowError:
        return (_FIRST if instant.year == 1 else _LAST).replace(tzinfo=zone)

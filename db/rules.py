"""Limits on what people hand in, the same for the API, the admin UI and the import."""

from __future__ import annotations

import functools
import re
import zoneinfo
from datetime import datetime

NAME_LENGTH = 200
TEXT_LENGTH = 2000
FILLED_TEXT_LENGTH = 10_000  # 65 SMS; a thousand of them, a batch, still fit into a sender's memory.
REASON_LENGTH = 200
TAGS = 100
TAG_LENGTH = 64
ATTRIBUTES = 100
ATTRIBUTE_NAME_LENGTH = 64
ATTRIBUTES_BYTES = 16 * 1024
FILTER_CODES = 1000
# Of times. Calendars in most languages end with the year 9999: there every zone needs a day to spare.
FIRST_YEAR, LAST_YEAR = 1970, 9998

# [0-9], not \d, which takes any script's digits; \Z, not $, which lets a newline through.
OPERATOR_CODE_PATTERN = r"[0-9]{2,10}"
OPERATOR_CODE = re.compile(OPERATOR_CODE_PATTERN + r"\Z")


def is_known_year(instant: datetime) -> bool:
    """Whether every zone's calendar has this time, given in any of them."""
    return FIRST_YEAR <= instant.year <= LAST_YEAR


@functools.cache
def timezones() -> frozenset[str]:
    """Every IANA name that this installation can compute with; not that of its own zone, which is another elsewhere."""
    return frozenset(zoneinfo.available_timezones() - {"localtime"})

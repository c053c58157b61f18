"""Limits on what people hand in, the same for the API, the admin UI and the import."""

from __future__ import annotations

import functools
import re
import zoneinfo

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

# [0-9], not \d, which takes any script's digits; \Z, not $, which lets a newline through.
OPERATOR_CODE_PATTERN = r"[0-9]{2,10}"
OPERATOR_CODE = re.compile(OPERATOR_CODE_PATTERN + r"\Z")


@functools.cache
def timezones() -> frozenset[str]:
    """Every IANA name that this installation can compute with."""
    return frozenset(zoneinfo.available_timezones())

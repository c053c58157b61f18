"""Pages of lists: by number with the `X-Pagination` header, or by key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

Paged = tuple[Any, dict[str, str]]

X_PAGINATION = {
    "X-Pagination": {
        "description": "A JSON object: `total` rows, `total_pages`, `first_page`, `last_page`, `page`, `previous_page`,"
        " `next_page` (the latter only where there is one).",
        "schema": {"type": "string"},
        "example": '{"total": 120, "total_pages": 3, "first_page": 1, "last_page": 3, "page": 1, "next_page": 2}',
    }
}


def offset_of(query: Mapping[str, int]) -> int:
    """How many rows come before the page."""
    return (query["page"] - 1) * query["page_size"]


def paged(body: Any, total: int, query: Mapping[str, int]) -> Paged:
    """The body with the header that tells where in the list it is."""
    page, pages = query["page"], -(-total // query["page_size"])
    header = {"total": total, "total_pages": pages}
    if pages:
        header |= {"first_page": 1, "last_page": pages, "page": page}
        if 1 < page <= pages + 1:
            header["previous_page"] = page - 1
        if page < pages:
            header["next_page"] = page + 1
    return body, {"X-Pagination": orjson.dumps(header).decode()}


def next_key(items: Sequence[Mapping[str, Any]], limit: int) -> int | None:
    """What `after` is to be for the next page; None when this was the last."""
    return items[-1]["id"] if len(items) == limit else None

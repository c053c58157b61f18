"""Charts as SVG, drawn here: no script, and nothing that a strict Content-Security-Policy would mind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flask import Flask, render_template
from markupsafe import Markup

from admin.labels import STATUSES
from admin.locale import number
from admin.texts import gettext
from db.models import MessageStatus

# From the bottom of a column to its top, and from left to right in a bar.
PROGRESS_ORDER = (
    MessageStatus.DELIVERED,
    MessageStatus.SENT,
    MessageStatus.SENDING,
    MessageStatus.PENDING,
    MessageStatus.EXPIRED,
    MessageStatus.CANCELLED,
    MessageStatus.FAILED,
)
_HEIGHT = 100.0
_BAR_WIDTH = 1000.0


class Column(NamedTuple):
    """A moment and what happened then, by status."""

    label: str
    amounts: Mapping[MessageStatus, int]


def columns(title: str, data: Sequence[Column], statuses: Sequence[MessageStatus]) -> Markup:
    """Stacked columns with a scale, a legend and the same numbers as a table."""
    top = _nice_top(max((sum(column.amounts.get(status, 0) for status in statuses) for column in data), default=0))
    shapes = [(column, _stack(column, statuses, top), _describe(column, statuses)) for column in data]
    totals = {status: sum(column.amounts.get(status, 0) for column in data) for status in statuses}
    return Markup(  # noqa: S704  # A template escapes what it is given.
        render_template(
            "parts/columns.html",
            title=title,
            shapes=shapes,
            top=top,
            statuses=statuses,
            totals=totals,
            marks=_marks(data),
            width=len(data),
        )
    )


def _stack(column: Column, statuses: Sequence[MessageStatus], top: int) -> list[tuple[MessageStatus, str, str]]:
    """For every part its status, its upper edge and its height."""
    parts, floor = [], _HEIGHT
    for status in statuses:
        amount = column.amounts.get(status, 0)
        if amount:
            height = max(_HEIGHT * amount / top, 0.6)
            floor -= height
            parts.append((status, f"{max(floor, 0):.2f}", f"{height:.2f}"))
    return parts


def _describe(column: Column, statuses: Sequence[MessageStatus]) -> str:
    parts = [f"{STATUSES[s]}: {number(column.amounts[s])}" for s in statuses if column.amounts.get(s)]
    return f"{column.label} – {', '.join(parts) if parts else gettext('nothing')}"


def _nice_top(highest: int) -> int:
    """The end of the scale: a round number that can be halved, not below the highest column."""
    if highest <= 2:
        return 2
    magnitude = 10 ** math.floor(math.log10(highest))
    return next(int(step * magnitude) for step in (1, 2, 3, 4, 6, 8, 10) if step * magnitude >= highest)


def _marks(data: Sequence[Column]) -> list[str]:
    """Labels below the columns: the first, the middle and the last."""
    if len(data) < 3:
        return [column.label for column in data]
    return [data[0].label, data[len(data) // 2].label, data[-1].label]


def progress(counts: Mapping[str, int]) -> Markup:
    """A bar that shows how a mailing's messages divide into statuses."""
    total = sum(counts.values())
    parts, left = [], 0.0
    for status in PROGRESS_ORDER:
        amount = counts.get(status.value, 0)
        if amount:
            width = _BAR_WIDTH * amount / total
            parts.append((status, f"{left:.2f}", f"{width:.2f}"))
            left += width
    label = ", ".join(
        f"{STATUSES[status]}: {number(counts[status.value])}" for status in PROGRESS_ORDER if counts.get(status.value)
    )
    return Markup(render_template("parts/progress.html", parts=parts, label=label or gettext("no messages yet")))  # noqa: S704


def init(app: Flask) -> None:
    """Offer the small ones to templates."""
    app.jinja_env.globals.update(progress=progress)

"""The list of mailings."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from flask import Response, url_for

from admin.database import session
from admin.locale import zone
from admin.texts import lazy_gettext as _
from admin.views.base import Keyset, Page, argument_choice, argument_id, argument_text, expose, keyset, part
from db.models import Mailing, MailingState
from db.queries import mailings, statistics

SHOWN = 25


class Mailings(Page):
    """All mailings, newest first, by state and date."""

    def __init__(self) -> None:
        super().__init__(_("Mailings"), endpoint="mailings", url="/mailings", menu_icon_value="send")

    @expose("/")
    def index(self) -> Any:
        """Return a page of the list."""
        wanted, arguments = _filter()
        # Not all of what the address holds: url_for would take some names for its own.
        place: dict[str, Any] = {name: argument_id(name) for name in ("before", "after")}
        return self.render(
            "mailings.html",
            wanted=wanted,
            arguments=arguments,
            live_url=url_for("mailings.refresh", **arguments, **place),
            states=MailingState,
            **_rows(wanted),
        )

    @expose("/live")
    def refresh(self) -> Response:
        """Return the same rows as they are now."""
        wanted, arguments = _filter()
        return self.live(rows=part("mailing_rows", wanted=wanted, arguments=arguments, **_rows(wanted)))


def _rows(wanted: mailings.Filter) -> dict[str, Any]:
    def load(beyond: int | None, limit: int, newer: bool) -> Sequence[Mailing]:
        return mailings.latest(session(), wanted, beyond, limit, newer=newer)

    found: Keyset = keyset(load, SHOWN)
    return {"page": found, "counts": statistics.by_mailing(session(), [mailing.id for mailing in found.rows])}


def _filter() -> tuple[mailings.Filter, dict[str, Any]]:
    first, last = _day("from"), _day("to")
    wanted = mailings.Filter(
        state=argument_choice("state", MailingState),
        starts_from=_midnight(first) if first else None,
        starts_before=_midnight(last + timedelta(days=1)) if last else None,
        is_test=argument_text("kind") == "test",
    )
    arguments = {
        "state": wanted.state.value if wanted.state else "",
        "from": first.isoformat() if first else "",
        "to": last.isoformat() if last else "",
        "kind": "test" if wanted.is_test else "",
    }
    return wanted, arguments


def _day(name: str) -> date | None:
    try:
        found = date.fromisoformat(argument_text(name))
    except ValueError:
        return None
    # Further off, a day more or a time zone would leave the calendar.
    return found if 1900 < found.year < 9000 else None


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), zone()).astimezone(UTC)

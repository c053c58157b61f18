"""One mailing: live counts, why messages failed, how fast it goes, who did what; and the levers to control it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from flask import Response, abort
from sqlalchemy.orm import Session

from admin import charts, labels
from admin.access import logged_in, requires
from admin.database import session
from admin.locale import clock, number, to_the_minute
from admin.texts import gettext, ngettext
from admin.views.base import EXPORTED_AT_ONCE, Page, apply, csv_download, expose, go, notify, part
from db.models import Mailing, MessageStatus, Role
from db.queries import audit, dashboard, failures, gateway, mailings, messages, previews, statistics
from db.queries.messages import MessageRow

HISTORY_SHOWN = 30
CHARTED = (MessageStatus.SENT, MessageStatus.FAILED, MessageStatus.EXPIRED, MessageStatus.CANCELLED)
_COLUMNS_AT_MOST = 90
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 240, 480, 1440)  # minutes that a column may stand for
_PREVIEW_PATIENCE_SECONDS = 2.0

# In the order of the buttons.
_ACTIONS = ("start", "pause", "resume", "retry-failed", "cancel")
# The others are done at once: they can be taken back.
CONFIRMED = ("start", "cancel", "retry-failed", "delete")


class OneMailing(Page):
    """A mailing's page and all that it leads to."""

    in_menu = False
    main_view = "show"

    def __init__(self) -> None:
        super().__init__("", endpoint="mailing", url="/mailings")

    @expose("/<id:mailing_id>/")
    def show(self, mailing_id: int) -> Any:
        """Return the page."""
        mailing = mailings.get(session(), mailing_id)
        readings = [previews.read(mailing.text, client) for client in _sample(mailing)]
        return self.render(
            "mailing.html", mailing=mailing, reading=next(iter(readings), None), fragments=_fragments(mailing)
        )

    @expose("/<id:mailing_id>/live")
    def refresh(self, mailing_id: int) -> Response:
        """Return what has changed."""
        return self.live(**_fragments(mailings.get(session(), mailing_id)))

    @expose("/<id:mailing_id>/confirm/<action>")
    @requires(Role.OPERATOR)
    def confirm(self, mailing_id: int, action: str) -> Any:
        """Return the question before something that cannot be taken back, with the numbers it is about."""
        mailing = mailings.get(session(), mailing_id)
        if action not in CONFIRMED:
            abort(404)
        audience = None
        # Nothing is written before the start: the number is that of those who match now.
        if action == "start" or (mailing.started_at is None and mailing.finished_at is None):
            audience = previews.preview(
                session(), mailing.text, mailing.operator_codes, mailing.tags, 1, _PREVIEW_PATIENCE_SECONDS
            )
        counts = statistics.of_mailing(session(), mailing_id)
        return self.render("mailing_confirm.html", mailing=mailing, action=action, counts=counts, preview=audience)

    @expose("/<id:mailing_id>/<action>", methods=("POST",))
    @requires(Role.OPERATOR)
    def act(self, mailing_id: int, action: str) -> Any:
        """Do it."""
        now = datetime.now(UTC)
        if action == "delete":
            done = apply(lambda: mailings.delete(session(), mailing_id, now), gettext("The mailing is deleted."))
            return go("mailings.index") if done else go("mailing.show", mailing_id=mailing_id)
        if action == "retry-failed":
            apply(_retrying(mailing_id, now))
        elif action in _ACTIONS:
            success = {
                "start": gettext("The mailing is scheduled."),
                "pause": gettext("The mailing is paused: nothing more is sent until it is resumed."),
                "resume": gettext("The mailing goes on."),
                "cancel": gettext("The mailing is cancelled. Messages that were already on the wire may still arrive."),
            }[action]
            apply(lambda: mailings.control(session(), mailing_id, action, now), success)
        else:
            abort(404)
        return go("mailing.show", mailing_id=mailing_id)

    @expose("/<id:mailing_id>/results.csv")
    def results(self, mailing_id: int) -> Response:
        """Return every message as CSV."""
        mailing = mailings.get(session(), mailing_id)
        audit.record(session(), "mailing.export", f"mailing:{mailing.id}")
        session.commit()
        header = ["id", "client_id", "phone", "status", "attempts", "created_at", "sent_at", "last_error", "reason"]
        wanted = messages.Filter(mailing_id=mailing.id)

        def load(reading: Session, last: int) -> Sequence[MessageRow]:
            return messages.page(reading, wanted, last, EXPORTED_AT_ONCE)

        return csv_download(f"mailing-{mailing.id}-results.csv", header, load, _result_cells)


def possible_actions(mailing: Mailing, failed: int, now: datetime) -> list[str]:
    """What this person can do with this mailing now."""
    if not logged_in().may(Role.OPERATOR):
        return []
    found = [name for name in _ACTIONS if mailing.state in mailings.ACTIONS[name]]
    if not failed or mailing.ends_at <= now:
        found = [name for name in found if name != "retry-failed"]
    return found


def _retrying(mailing_id: int, now: datetime) -> Callable[[], None]:
    def retry() -> None:
        _mailing, retried = mailings.retry_failed(session(), mailing_id, None, now)
        notify(
            ngettext(
                "%(shown)s message will be tried again.",
                "%(shown)s messages will be tried again.",
                retried,
                shown=number(retried),
            )
        )

    return retry


def _sample(mailing: Mailing) -> Any:
    if mailing.is_test or mailing.started_at is not None:
        return []
    return previews.sample(session(), mailing.operator_codes, mailing.tags, 1)


def _fragments(mailing: Mailing) -> dict[str, str]:
    now = datetime.now(UTC)
    counts = statistics.of_mailing(session(), mailing.id)
    rate = dashboard.rates(session(), [mailing.id], now).get(mailing.id, 0.0)
    resting_until = dashboard.resting(session(), [mailing.id], now).get(mailing.id)
    left = counts["pending"] + counts["sending"]
    reasons = failures.ranked(session(), mailing.id) if counts["failed"] else []
    history = audit.page(session(), audit.Filter(subject=f"mailing:{mailing.id}"), None, HISTORY_SHOWN)
    return {
        "head": part(
            "mailing_head",
            mailing=mailing,
            actions=possible_actions(mailing, counts["failed"], now),
            now=now,
            gateway=gateway.read(session()),
        ),
        "progress": part(
            "mailing_progress",
            mailing=mailing,
            counts=counts,
            total=sum(counts.values()),
            left=left,
            rate=rate,
            resting_until=resting_until,
            statuses=MessageStatus,
        ),
        "reasons": part("mailing_reasons", mailing=mailing, reasons=reasons, failed=counts["failed"]),
        "chart": _chart(mailing.id),
        "history": part("history", entries=history),
    }


def _chart(mailing_id: int) -> str:
    """Throughput from the first minute to the last, in columns of a length that suits."""
    span = dashboard.flow_span(session(), mailing_id)
    if span is None:
        return ""
    minutes = (span[1] - span[0]).total_seconds() / 60 + 1
    step = next((step for step in _STEPS if minutes / step <= _COLUMNS_AT_MOST), _STEPS[-1])
    amounts: dict[datetime, dict[MessageStatus, int]] = defaultdict(dict)
    for flow in dashboard.flow(session(), span[0], timedelta(minutes=step), mailing_id):
        amounts[flow.begin.astimezone(UTC)][flow.status] = flow.amount
    begins = sorted(amounts)
    filled: list[datetime] = []
    at = begins[0]
    while at <= begins[-1] and len(filled) <= 4 * _COLUMNS_AT_MOST:
        filled.append(at)
        at += timedelta(minutes=step)
    # A few minutes alone would make columns as wide as doors.
    while len(filled) < 12:
        filled.append(filled[-1] + timedelta(minutes=step))
    label = to_the_minute if minutes >= 24 * 60 else clock
    data = [charts.Column(label(begin), amounts.get(begin, {})) for begin in filled]
    title = ngettext("Messages per minute", "Messages per %(num)s minutes", step)
    return charts.columns(title, data, CHARTED)


def _result_cells(row: Any) -> list[str]:
    return [
        str(row.id),
        str(row.client_id),
        row.phone or "",
        str(row.status),
        str(row.attempts),
        row.created_at.astimezone(UTC).isoformat(timespec="seconds"),
        row.sent_at.astimezone(UTC).isoformat(timespec="seconds") if row.sent_at else "",
        row.last_error or "",
        labels.reason(row.last_error),
    ]

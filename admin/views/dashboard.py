"""The first page: how things stand, without reloading."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from flask import Response

from admin import charts
from admin.database import session
from admin.flow import FlowHistory, by_day
from admin.locale import clock, day, zone
from admin.texts import gettext
from admin.texts import lazy_gettext as _
from admin.views.base import Page, expose, part
from db.models import MessageStatus
from db.queries import dashboard, directory, gateway, mailings, processes, report_deliveries, statistics

RUNNING_SHOWN = 8
UPCOMING_SHOWN = 5
ANSWERS_OF = timedelta(minutes=5)
# A message that a receipt confirms was sent before: only what was accepted is counted as sent.
CHARTED = (MessageStatus.SENT, MessageStatus.FAILED, MessageStatus.EXPIRED)


class Dashboard(Page):
    """Numbers, charts, what runs and what comes."""

    def __init__(self) -> None:
        super().__init__(_("Dashboard"), endpoint="dashboard", url="/", menu_icon_value="home")
        self._history = FlowHistory()

    @expose("/")
    def index(self) -> Any:
        """Return the whole page."""
        if self._is_empty():
            return self.render("first_steps.html", has_clients=directory.estimated_size(session()) > 0)
        return self.render("dashboard.html", fragments=self._fragments())

    @expose("/live/dashboard")
    def refresh(self) -> Response:
        """Return what has changed."""
        return self.live(**self._fragments())

    def _is_empty(self) -> bool:
        everything = [mailings.Filter(), mailings.Filter(is_test=True)]
        return not any(mailings.latest(session(), wanted, None, 1) for wanted in everything)

    def _fragments(self) -> dict[str, str]:
        now = datetime.now(UTC)
        totals = statistics.totals(session())
        days = by_day(self._history.read(session(), now), zone(), now)
        return {
            "gateway": part("gateway", **gateway_state(now)),
            "mail_trouble": part("mail_trouble", troubles=report_deliveries.troubles(session())),
            "numbers": part("numbers", periods=_periods(days), waiting=totals["pending"] + totals["sending"]),
            "running": part("running", **_running(now)),
            "upcoming": part("upcoming", mailings=dashboard.upcoming(session(), UPCOMING_SHOWN)),
            "minutes": _minutes_chart(now),
            "days": charts.columns(
                gettext("Messages per day, last 30 days"),
                [charts.Column(day(date), amounts) for date, amounts in days.items()],
                CHARTED,
            ),
        }


def _periods(days: Mapping[Any, Mapping[MessageStatus, int]]) -> list[tuple[str, dict[str, int]]]:
    per_day = list(days.values())
    return [(gettext("Today"), _sums(per_day[-1:])), (gettext("Last 7 days"), _sums(per_day[-7:]))]


def _sums(days: list[Mapping[MessageStatus, int]]) -> dict[str, int]:
    sums = {status.value: sum(amounts.get(status, 0) for amounts in days) for status in MessageStatus}
    sums["decided"] = sums["sent"] + sums["failed"]
    return sums


def _running(now: datetime) -> dict[str, Any]:
    found = dashboard.in_progress(session(), RUNNING_SHOWN + 1)
    shown = found[:RUNNING_SHOWN]
    ids = [mailing.id for mailing in shown]
    return {
        "mailings": shown,
        "counts": statistics.by_mailing(session(), ids),
        "rates": dashboard.rates(session(), ids, now),
        "resting": dashboard.resting(session(), ids, now),
        "has_more": len(found) > RUNNING_SHOWN,
    }


def gateway_state(now: datetime) -> dict[str, Any]:
    """What is known of the gateway and of the processes that talk to it."""
    answers = dashboard.answers(session(), now - ANSWERS_OF)
    beats = dashboard.heartbeats(session())
    alive = [beat for beat in beats if beat.silent_seconds < processes.SILENT_AFTER_SECONDS]
    return {
        "gateway": gateway.read(session()),
        "answers": answers,
        "p50": gateway.percentile(answers.timings, 0.5),
        "p95": gateway.percentile(answers.timings, 0.95),
        "dispatchers": sum(beat.kind == "dispatcher" for beat in alive),
        "senders": sum(beat.kind == "sender" for beat in alive),
        "silent": [beat for beat in beats if beat not in alive],
    }


def _minutes_chart(now: datetime) -> str:
    first = now.replace(second=0, microsecond=0) - timedelta(minutes=59)
    amounts: dict[datetime, dict[MessageStatus, int]] = defaultdict(dict)
    for flow in dashboard.flow(session(), first, timedelta(minutes=1)):
        amounts[flow.begin.astimezone(UTC)][flow.status] = flow.amount
    minutes = [first + timedelta(minutes=minute) for minute in range(60)]
    data = [charts.Column(clock(minute), amounts.get(minute, {})) for minute in minutes]
    return charts.columns(gettext("Messages per minute, last hour"), data, CHARTED)

"""From facts to a letter: subject, HTML, its plain twin and a CSV. Pure functions; the texts are in `words`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import jinja2

from common import clocks, csv_export
from db.models import MessageStatus
from db.queries.reports import MailingInPeriod
from db.queries.statistics import Counts
from reporter.facts import Facts
from reporter.periods import Kind
from reporter.words import Words

# In the order in which people read them; `pending` stands for the messages written.
SHOWN = ("pending", "sent", "delivered", "failed", "expired", "cancelled")
# Gmail cuts a mail off after 102 KB; the CSV has all mailings.
SHOWN_MAILINGS = 30
CHART_PIXELS = 96
STATUS_COLOURS = {
    "delivered": "#0f766e",
    "sent": "#2563eb",
    "waiting": "#cbd5e1",
    "failed": "#dc2626",
    "expired": "#d97706",
    "cancelled": "#6b7280",
}
# Of the CSV; never translated, programs read it.
COLUMNS = (
    "mailing_id",
    "name",
    "state",
    "starts_at",
    "ends_at",
    "audience",
    "written",
    *SHOWN[1:],
    "first_sent",
    "last_sent",
    "share_within_10_s",
    *(f"now_{status.value}" for status in MessageStatus),
)


@dataclasses.dataclass(frozen=True)
class Letter:
    """A mail without addresses."""

    subject: str
    html: str
    text: str
    attachment: tuple[str, bytes] | None = None  # the name of a CSV file, and the file


class _Total(NamedTuple):
    label: str
    number: str
    change: str | None
    average: str | None


class _Column(NamedTuple):
    label: str  # below it; empty for most hours
    title: str
    sent: int  # pixels
    lost: int
    rest: int


class _Part(NamedTuple):
    """A piece of a mailing's bar."""

    colour: str
    percent: float


_templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=jinja2.select_autoescape(("html",)),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def compose(facts: Facts, language: str, admin_url: str | None) -> Letter:
    """The report."""
    words = Words(language, facts.period.zone)
    subject = _subject(facts, words)
    values = _values(facts, words, admin_url) | {"subject": subject}
    return Letter(
        subject,
        html=_templates.get_template("report.html").render(values),
        text=_templates.get_template("report.txt").render(values),
        attachment=(f"mailings-{facts.period.key}.csv", table(facts)),
    )


def compose_alert(
    name: str, detail: Mapping[str, Any], now: datetime, zone: str, language: str, admin_url: str | None
) -> Letter:
    """The warning about one kind of trouble."""
    words = Words(language, zone)
    subject = words("alert", what=words(f"alert_{name}"))
    values = {
        "words": words,
        "subject": subject,
        "warnings": alert_lines(name, detail, words, admin_url),
        "admin_url": admin_url,
        "footer": words("alert_footer", now=words.moment(now), zone=zone),
    }
    return Letter(
        subject,
        html=_templates.get_template("alert.html").render(values),
        text=_templates.get_template("alert.txt").render(values),
    )


def alert_lines(name: str, detail: Mapping[str, Any], words: Words, admin_url: str | None) -> list[tuple[str, str]]:
    """What an alert has to say, each with the address of the page to look at (or nothing)."""
    if "mailings" in detail:
        return [
            (
                words(name, name=mailing["name"], count=words.number(mailing["messages"])),
                mailing_link(admin_url, mailing["id"]),
            )
            for mailing in detail["mailings"]
        ]
    since = words.moment(datetime.fromisoformat(detail["since"]))
    return [(words(name, reason=detail["reason"] or words("reason_unknown"), since=since), admin_url or "")]


def mailing_link(admin_url: str | None, mailing_id: int) -> str:
    """The page of a mailing in the admin UI; empty when nobody said where that is."""
    return f"{admin_url}/mailings/{mailing_id}/" if admin_url else ""


def table(facts: Facts) -> bytes:
    """The CSV: a row per mailing, with what happened in the period and, as `now_…`, what the API says of it."""
    zone = ZoneInfo(facts.period.zone)

    def local(at: datetime | None) -> str:
        return clocks.local(at, zone).isoformat() if at else ""

    rows = [list(COLUMNS)]
    for mailing in facts.mailings:
        prompt = facts.promptness.get(mailing.id)
        numbers = (mailing.audience, *(mailing.arrivals[status] for status in SHOWN))
        counts = (mailing.counts[status.value] for status in MessageStatus)
        rows.append(
            [
                str(mailing.id),
                mailing.name,
                mailing.state.value,
                local(mailing.starts_at),
                local(mailing.ends_at),
                *map(str, numbers),
                local(mailing.first_sent),
                local(mailing.last_sent),
                f"{prompt.share:.4f}" if prompt else "",
                *map(str, counts),
            ]
        )
    return (csv_export.BYTE_ORDER_MARK + csv_export.lines(rows)).encode()


def _subject(facts: Facts, words: Words) -> str:
    period = facts.period
    day = words.day(period.first) if period.kind is Kind.DAILY else words.days(period.first, period.last)
    if facts.is_unfinished:
        day = f"{day} {words('so_far')}"
    if facts.is_empty:
        return words("subject_empty", period=day)
    counts = {status: words.number(facts.totals[status]) for status in SHOWN}
    subject = words("subject", period=day, **counts)
    return subject + words("subject_expired", **counts) if facts.totals["expired"] else subject


def _values(facts: Facts, words: Words, admin_url: str | None) -> dict[str, Any]:
    period = facts.period
    daily = period.kind is Kind.DAILY
    title = words.long_day(period.first) if daily else words.days(period.first, period.last)
    return {
        "words": words,
        "facts": facts,
        "admin_url": admin_url,
        "kind": words(period.kind.value),
        "title": f"{title}, {words('so_far')}" if facts.is_unfinished else title,
        "warnings": _warnings(facts, words, admin_url),
        "totals": _totals(facts, words),
        "change": words(f"change_{period.kind.value}"),
        "average": words(f"average_{period.kind.value}", count=facts.averaged),
        "chart": words(f"chart_{period.kind.value}"),
        "columns": _columns(facts, words),
        "busiest": words.number(max(map(_height, (counts for _, counts in facts.columns)), default=0)),
        "mailings": [_mailing(facts, mailing, words, admin_url) for mailing in facts.mailings[:SHOWN_MAILINGS]],
        "more_mailings": max(0, len(facts.mailings) - SHOWN_MAILINGS),
        "reasons": _reasons(facts, words),
        "waiting": [
            {
                "name": row.name,
                "link": mailing_link(admin_url, row.id),
                "state": words(f"state_{row.state.value}"),
                "line": words("waiting_line", count=words.number(row.messages), until=words.moment(row.ends_at)),
            }
            for row in facts.waiting[:SHOWN_MAILINGS]
        ],
        "upcoming": [
            {"name": row.name, "link": mailing_link(admin_url, row.id), "at": words.clock(row.starts_at)}
            for row in facts.upcoming[:SHOWN_MAILINGS]
        ],
        "footer": words("footer", zone=period.zone, now=words.moment(facts.now)),
    }


def _warnings(facts: Facts, words: Words, admin_url: str | None) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if not facts.gateway_is_well:
        detail = {"reason": facts.gateway.reason or "", "since": facts.gateway.changed_at.isoformat()}
        found += alert_lines(f"gateway_{facts.gateway.state.value}", detail, words, admin_url)
    expired = [
        {"id": mailing.id, "name": mailing.name, "messages": mailing.arrivals["expired"]}
        for mailing in facts.mailings
        if mailing.arrivals["expired"]
    ]
    found += alert_lines("mailing_expired", {"mailings": expired[:SHOWN_MAILINGS]}, words, admin_url)
    if len(expired) > SHOWN_MAILINGS:
        found.append((words("and_more", count=words.number(len(expired) - SHOWN_MAILINGS)), ""))
    return found


def _totals(facts: Facts, words: Words) -> list[_Total]:
    return [
        _Total(
            label=words(status),
            number=words.number(facts.totals[status]),
            change=words.change(facts.totals[status], facts.previous[status]) if facts.previous else None,
            average=words.number(facts.average[status]) if facts.average else None,
        )
        for status in SHOWN
    ]


def _height(counts: Counts) -> int:
    return counts["sent"] + counts["failed"] + counts["expired"]


def _columns(facts: Facts, words: Words) -> list[_Column]:
    highest = max(map(_height, (counts for _, counts in facts.columns)), default=0)
    daily = facts.period.kind is Kind.DAILY
    found = []
    for start, counts in facts.columns:
        label = words.clock(start) if daily else words.weekday(start)
        numbers = {status: words.number(counts[status]) for status in ("sent", "failed")}
        lost = _pixels(counts["failed"] + counts["expired"], highest)
        sent = min(_pixels(counts["sent"], highest), CHART_PIXELS - lost)
        found.append(
            _Column(
                # A label for every third hour; on days of 23 and 25 hours, where the clock is at such an hour.
                label=(label[:2] if int(label[:2]) % 3 == 0 and label.endswith(":00") else "") if daily else label,
                title=words("column", label=label, **numbers),
                sent=sent,
                lost=lost,
                rest=CHART_PIXELS - sent - lost,
            )
        )
    return found


def _pixels(count: int, highest: int) -> int:
    # Something is never drawn as nothing.
    return max(2, round(count / highest * CHART_PIXELS)) if count else 0


def _mailing(facts: Facts, mailing: MailingInPeriod, words: Words, admin_url: str | None) -> dict[str, Any]:
    prompt = facts.promptness.get(mailing.id)
    times = None
    if mailing.first_sent and mailing.last_sent:
        show = words.clock if facts.period.kind is Kind.DAILY else words.moment
        key = "sending_minute" if mailing.first_sent == mailing.last_sent else "sending_time"
        times = words(key, first=show(mailing.first_sent), last=show(mailing.last_sent))
    return {
        "name": mailing.name,
        "link": mailing_link(admin_url, mailing.id),
        "state": words(f"state_{mailing.state.value}"),
        "audience": words.number(mailing.audience),
        "numbers": [
            (words(status), words.number(mailing.arrivals[status]), STATUS_COLOURS[status])
            for status in SHOWN[1:]
            if mailing.arrivals[status] or status == "sent"
        ],
        "bar": _bar(mailing),
        "times": times,
        "prompt": prompt
        and words("prompt_estimate" if prompt.is_estimate else "prompt", share=words.percent(prompt.share)),
    }


def _bar(mailing: MailingInPeriod) -> list[_Part]:
    """Where all messages of the mailing stand now."""
    counts = {status: mailing.counts[status] for status in STATUS_COLOURS if status != "waiting"}
    counts["waiting"] = mailing.counts["pending"] + mailing.counts["sending"]
    return [
        _Part(colour, round(counts[status] / mailing.audience * 100, 2))
        for status, colour in STATUS_COLOURS.items()
        if counts[status]
    ]


def _reasons(facts: Facts, words: Words) -> Sequence[dict[str, Any]]:
    most = max((count for _, count in facts.reasons), default=0)
    return [
        {"reason": words.reason(reason), "count": words.number(count), "percent": max(1, round(count / most * 100))}
        for reason, count in facts.reasons
    ]

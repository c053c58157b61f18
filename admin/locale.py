"""Language, time zone and the look of numbers and times, as the person at the other end wants them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import babel.dates
import babel.numbers
import flask_babel
from flask import Flask, current_app, request, session
from markupsafe import Markup

from admin.access import person
from admin.texts import gettext, ngettext
from common import clocks
from db import rules
from db.models import Mailing, MailingState

LANGUAGES = {"en": "English", "ru": "Русский"}
THEMES = ("auto", "light", "dark")
# Written by the pages' own script, since only a browser knows.
ZONE_COOKIE = "zone"


def language() -> str:
    """The language of this page: chosen, or the one the browser prefers."""
    someone = person()
    chosen = (someone.account.language if someone else None) or session.get("language")
    if chosen in LANGUAGES:
        return str(chosen)
    return request.accept_languages.best_match(list(LANGUAGES)) or "en"


def zone_name() -> str:
    """The time zone of this page: chosen, or the browser's, or the installation's."""
    someone = person()
    for name in (someone.account.timezone if someone else None, request.cookies.get(ZONE_COOKIE)):
        if name in rules.timezones():
            return str(name)
    return str(current_app.config["DEFAULT_TIMEZONE"])


def zone() -> ZoneInfo:
    """The same as an object."""
    return ZoneInfo(zone_name())


def local(instant: datetime) -> datetime:
    """The instant on this person's clock."""
    return clocks.local(instant, zone())


def zone_label(instant: datetime | None = None) -> str:
    """The zone and its offset, e.g. `Europe/Moscow (UTC+3)`."""
    offset = local(instant or datetime.now(UTC)).utcoffset() or timedelta()
    minutes = int(offset.total_seconds()) // 60
    sign = "+" if minutes >= 0 else "−"
    hours, rest = divmod(abs(minutes), 60)
    return f"{zone_name()} (UTC{sign}{hours}{f':{rest:02}' if rest else ''})"


def _locale() -> Any:
    return flask_babel.get_locale()


def number(value: float | None) -> str:
    """A number with its thousands set apart."""
    if value is None:
        return "–"
    return str(babel.numbers.format_decimal(value, locale=_locale(), decimal_quantization=False))


def share(value: float, whole: float) -> str:
    """A part as a percentage; never 0 % of something, nor 100 % of less than all."""
    locale = _locale()
    # Languages differ in the space before the sign.
    usual = locale.percent_formats[None].pattern
    if not whole or not value:
        return str(babel.numbers.format_percent(0, usual, locale))
    ratio = min(max(value / whole, 0.001), 1.0 if value >= whole else 0.999)
    return str(babel.numbers.format_percent(ratio, usual if ratio == 1 else usual.replace("0", "0.0"), locale))


def moment(instant: datetime | None) -> Markup:
    """Date and time on this person's clock, with the exact instant for machines and the zone for the curious."""
    if instant is None:
        return Markup("–")
    title = f"{local(instant):%Y-%m-%d %H:%M:%S} {zone_label(instant)}"
    exact = instant.astimezone(UTC).isoformat(timespec="seconds")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(exact, title, to_the_minute(instant))


def exact_moment(instant: datetime | None) -> Markup:
    """The same to the second."""
    if instant is None:
        return Markup("–")
    exact = instant.astimezone(UTC).isoformat(timespec="milliseconds")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(exact, zone_label(instant), to_the_second(instant))


def clock(instant: datetime) -> str:
    """The time of day on this person's clock."""
    return f"{local(instant):%H:%M}"


def to_the_minute(instant: datetime) -> str:
    """Date and time on this person's clock, without markup."""
    return f"{day(local(instant).date())}, {clock(instant)}"


def to_the_second(instant: datetime) -> str:
    """The same to the second."""
    at = local(instant)
    return f"{day(at.date())}, {at:%H:%M:%S}"


def day(value: date) -> str:
    """A date; the year only if it is not this one."""
    pattern = "d MMM" if value.year == local(datetime.now(UTC)).year else "d MMM y"
    return str(babel.dates.format_date(value, pattern, locale=_locale()))


def duration(seconds: float) -> str:
    """A length of time in its two largest units, e.g. `2 h 5 min`."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return gettext("%(number)s s", number=seconds)
    minutes = seconds // 60
    if minutes < 60:
        return gettext("%(number)s min", number=minutes)
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        text = gettext("%(number)s h", number=hours)
        return f"{text} {gettext('%(number)s min', number=minutes)}" if minutes else text
    return ngettext("%(num)s day", "%(num)s days", hours // 24)


def start(mailing: Mailing) -> datetime | None:
    """When the mailing starts, or did. A draft whose time has passed, or that was given none, has to be started."""
    if mailing.state is MailingState.DRAFT and mailing.starts_at <= datetime.now(UTC):
        return None
    return mailing.starts_at


def input_value(instant: datetime | None) -> str:
    """The instant as a `datetime-local` field wants it."""
    return f"{local(instant):%Y-%m-%dT%H:%M}" if instant else ""


def init(app: Flask) -> None:
    """Choose the language for every request, and offer these functions to templates."""
    app.config["BABEL_TRANSLATION_DIRECTORIES"] = "translations"
    flask_babel.Babel(app, locale_selector=language, timezone_selector=zone_name)
    app.jinja_env.filters.update(
        number=number,
        moment=moment,
        exact_moment=exact_moment,
        day=day,
        duration=duration,
        start=start,
        input_value=input_value,
    )
    app.jinja_env.globals.update(
        # Called as in the code, where `make translate` looks for it.
        _in=app.jinja_env.globals["pgettext"],
        share=share,
        languages=LANGUAGES,
        current_language=language,
        zone_label=zone_label,
        chosen_theme=chosen_theme,
    )


def chosen_theme() -> str:
    """Light or dark, or whatever the system says: kept in the browser, where the switch works without a request."""
    chosen = request.cookies.get("theme")
    return chosen if chosen in THEMES else "auto"

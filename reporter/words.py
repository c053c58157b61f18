"""The reporter's two languages: its sentences, and how numbers, days and times are written."""

from __future__ import annotations

import re
from datetime import date, datetime
from zoneinfo import ZoneInfo

from babel import Locale
from babel.dates import format_date
from babel.numbers import format_decimal, format_percent

from common import clocks

LANGUAGES = ("en", "ru")

# Each text as (English, Russian).
TEXTS = {
    "daily": ("Daily report", "Отчёт за день"),
    "weekly": ("Weekly report", "Отчёт за неделю"),
    "so_far": ("so far", "на этот час"),
    "subject": ("{period}: {sent} sent, {failed} failed", "{period}: отправлено {sent}, ошибок {failed}"),
    "subject_expired": (", {expired} expired", ", просрочено {expired}"),
    "subject_empty": ("{period}: nothing was sent", "{period}: ничего не отправлялось"),
    "empty": (
        "Nothing happened: no messages were written or sent.",
        "Ничего не произошло: сообщения не создавались и не отправлялись.",
    ),
    "open": ("Open Mailings", "Открыть «Рассылки»"),
    "attention": ("Needs a person", "Требует внимания"),
    "gateway_blocked": (
        "The gateway refuses our credentials ({reason}) since {since}. Nothing is sent until they are right.",
        "Шлюз не принимает наши учётные данные ({reason}) с {since}. Пока это не исправлено, ничего не отправляется.",
    ),
    "gateway_open": (
        "The gateway does not work ({reason}) since {since}. Messages wait, and go out when it is back.",
        "Шлюз не работает ({reason}) с {since}. Сообщения ждут и уйдут, когда он вернётся.",
    ),
    "mailing_expired": (
        "“{name}” ended before everything was sent; expired messages: {count}.",
        "«{name}»: срок рассылки вышел раньше, чем всё ушло; просрочено сообщений: {count}.",
    ),
    "mailing_failing": (
        "“{name}”: nothing was accepted in the last ten minutes; failed calls and messages: {count}.",
        "«{name}»: за последние десять минут ничего не принято; неудачных вызовов и сообщений: {count}.",
    ),
    "look": ("Look", "Посмотреть"),
    "and_more": ("and {count} more", "и ещё {count}"),
    "totals": ("Totals", "Итоги"),
    "status": ("Messages", "Сообщения"),
    "change_daily": ("Against the day before", "К пред. дню"),
    "change_weekly": ("Against the week before", "К пред. неделе"),
    "average_daily": ("{count}-day average", "Среднее за {count} дн."),
    "average_weekly": ("{count}-week average", "Среднее за {count} нед."),
    "pending": ("Written", "Создано"),
    "sent": ("Sent", "Отправлено"),
    "delivered": ("Delivered", "Доставлено"),
    "failed": ("Failed", "Ошибки"),
    "expired": ("Expired", "Просрочено"),
    "cancelled": ("Cancelled", "Отменено"),
    "chart_daily": ("Messages per hour", "Сообщения по часам"),
    "chart_weekly": ("Messages per day", "Сообщения по дням"),
    "column": ("{label}: {sent} sent, {failed} failed", "{label}: отправлено {sent}, ошибок {failed}"),
    "not_sent": ("Failed or expired", "Ошибки и просрочено"),
    "mailings": ("Mailings", "Рассылки"),
    "audience": ("Audience", "Получатели"),
    "sending_minute": ("sent {first}", "отправка {first}"),
    "sending_time": ("sent {first}–{last}", "отправка {first}–{last}"),
    "prompt": ("{share} within 10 s of being due", "{share} за 10 с от срока"),
    "prompt_estimate": ("about {share} within 10 s of being due", "около {share} за 10 с от срока"),
    "more_mailings": ("{count} more are in the attached table.", "Ещё {count} — в приложенной таблице."),
    "reasons": ("Why messages failed", "Причины ошибок"),
    "reason_http": ("the gateway answered {code}", "шлюз ответил {code}"),
    "reason_code": ("the gateway refused it with code {code}", "шлюз отказал с кодом {code}"),
    "reason_placeholder": ("the client has no “{name}”", "у клиента нет «{name}»"),
    "reason_unknown": ("no reason given", "причина не указана"),
    "waiting": ("Still waiting", "Ждут отправки"),
    "waiting_line": ("{count} waiting, until {until}", "ждут {count}, до {until}"),
    "upcoming": ("Starts today", "Начнутся сегодня"),
    "footer": (
        "Days and hours are those of {zone}. The numbers are what happened in this time, as of {now}.",
        "Дни и часы — по времени {zone}. Числа — то, что произошло за это время, по состоянию на {now}.",
    ),
    "footer_both": (
        "A message that was sent and then delivered counts as both.",
        "Сообщение, отправленное и затем доставленное, учтено в обоих числах.",
    ),
    "state_draft": ("draft", "черновик"),
    "state_scheduled": ("scheduled", "запланирована"),
    "state_running": ("running", "идёт"),
    "state_paused": ("paused", "на паузе"),
    "state_completed": ("completed", "завершена"),
    "state_cancelled": ("cancelled", "отменена"),
    "alert": ("Mailings: {what}", "Рассылки: {what}"),
    "alert_gateway_blocked": ("the gateway refuses our credentials", "шлюз не принимает учётные данные"),
    "alert_gateway_open": ("the gateway does not work", "шлюз не работает"),
    "alert_mailing_expired": ("a mailing ended with unsent messages", "рассылка завершилась, не всё отправлено"),
    "alert_mailing_failing": ("a mailing does not get through", "рассылка не уходит"),
    "alert_footer": (
        "Noticed {now}, time zone {zone}. At most one mail an hour tells of each kind of trouble.",
        "Замечено {now}, часовой пояс {zone}. О каждом виде неполадок сообщается не чаще раза в час.",
    ),
}

REASONS = {
    "timeout": ("no answer in time", "нет ответа вовремя"),
    "timeout_connect": ("no connection in time", "нет соединения вовремя"),
    "timeout_body": ("the answer did not end in time", "ответ не закончился вовремя"),
    "connection_refused": ("connection refused", "в соединении отказано"),
    "connection_reset": ("connection reset", "соединение сброшено"),
    "connection_closed": ("connection closed without an answer", "соединение закрыто без ответа"),
    "dns": ("the gateway's name was not found", "имя шлюза не найдено"),
    "tls": ("no secure connection", "нет защищённого соединения"),
    "truncated": ("the answer was cut short", "ответ оборвался"),
    "body_too_large": ("the answer was too large", "ответ слишком велик"),
    "not_http": ("the answer was not HTTP", "ответ не HTTP"),
    "transport": ("the connection failed", "ошибка соединения"),
    "redirect": ("the gateway answered with a redirect", "шлюз ответил перенаправлением"),
    "not_json": ("the answer could not be read", "ответ не читается"),
    "empty_body": ("the answer was empty", "ответ пуст"),
    "wrong_shape": ("the answer could not be understood", "ответ непонятен"),
    "wrong_code": ("the answer had an unknown code", "в ответе неизвестный код"),
    "text_too_long": ("filled in, the text is too long", "после подстановки текст слишком длинный"),
    "receipt": ("not delivered, says the receipt", "не доставлено, по отчёту о доставке"),
}

_NUMBERED_REASON = re.compile(r"(http|code)_([0-9]{3})")
_PLACEHOLDER_REASON = "missing_placeholder:"


class Words:
    """One language, in one time zone."""

    def __init__(self, language: str, zone: str) -> None:
        self.language = language
        self._number = LANGUAGES.index(language)
        self._locale = Locale.parse(language)
        self._zone = ZoneInfo(zone)

    def __call__(self, key: str, **values: object) -> str:
        """The text of this name, with its blanks filled in."""
        return TEXTS[key][self._number].format(**values)

    def number(self, value: float) -> str:
        """A count, or an average with as many digits as it is worth."""
        pattern = "#,##0.#" if value != int(value) and value < 100 else "#,##0"
        return format_decimal(value, pattern, locale=self._locale)

    def change(self, now: float, before: float) -> str:
        """A difference with its sign, and how much that is."""
        if now == before:
            return "±0"
        difference = format_decimal(now - before, "+#,##0;−#,##0", locale=self._locale)
        return f"{difference} ({self.percent((now - before) / before, signed=True)})" if before else difference

    def percent(self, share: float, *, signed: bool = False) -> str:
        """A share; never rounded to all or nothing when it is neither."""
        fine = abs(share) < 0.1 or 0.99 < share < 1
        places = ".#" if fine and share else ""
        inside = min(max(share, 0.001), 0.999) if 0 < share < 1 else share
        space = "\N{NO-BREAK SPACE}" if self.language == "ru" else ""
        pattern = f"+#,##0{places}{space}%;−#,##0{places}{space}%" if signed else f"#,##0{places}{space}%"
        return format_percent(inside, pattern, locale=self._locale)

    def day(self, day: date) -> str:
        """A date as in a subject: 22 Nov."""
        return format_date(day, "d MMM", locale=self._locale)

    def long_day(self, day: date) -> str:
        """A date in full: Sunday, 22 November 2026."""
        text = format_date(day, "EEEE, d MMMM y", locale=self._locale)
        return text[0].upper() + text[1:]

    def days(self, first: date, last: date) -> str:
        """A range of dates as in a subject: 16–22 Nov."""
        begin = format_date(first, "d" if first.month == last.month else "d MMM", locale=self._locale)
        return f"{begin}–{self.day(last)}"

    def weekday(self, at: datetime) -> str:
        """The column of a day: Mon 16."""
        return format_date(clocks.local(at, self._zone).date(), "EEE d", locale=self._locale)

    def clock(self, at: datetime) -> str:
        """A time of day."""
        return f"{clocks.local(at, self._zone):%H:%M}"

    def moment(self, at: datetime) -> str:
        """A day and time."""
        return f"{self.day(clocks.local(at, self._zone).date())} {self.clock(at)}"

    def reason(self, reason: str) -> str:
        """What a stored reason means, as far as that can be said; the gateway's own words as they are."""
        if not reason:
            return self("reason_unknown")
        if reason.startswith(_PLACEHOLDER_REASON):
            return self("reason_placeholder", name=reason.removeprefix(_PLACEHOLDER_REASON))
        if answer := _NUMBERED_REASON.fullmatch(reason):
            return f"{self(f'reason_{answer[1]}', code=answer[2])} ({reason})"
        return f"{REASONS[reason][self._number]} ({reason})" if reason in REASONS else reason

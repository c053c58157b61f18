"""The letter: what it says of a busy day and of an empty one, in both languages, and that nothing breaks out of it."""

from __future__ import annotations

import csv
import dataclasses
import io
import string
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from db.models import GatewayState, MailingState, MessageStatus
from db.queries.gateway import GatewayRow
from db.queries.reports import MailingInPeriod, Promptness, Upcoming, Waiting
from db.queries.statistics import Counts, no_counts
from reporter.facts import Facts
from reporter.letter import COLUMNS, SHOWN_MAILINGS, compose, compose_alert
from reporter.periods import Kind, Period
from reporter.words import TEXTS, Words

DAY = Period(Kind.DAILY, date(2026, 11, 22), "Europe/Moscow")
NOW = datetime(2026, 11, 23, 4, 30, tzinfo=UTC)
ADMIN = "https://mailings.example.com"


def counts(**values: int) -> Counts:
    return no_counts() | values


def mailing(number: int = 7, name: str = "Sale", **values: Any) -> MailingInPeriod:
    arrivals = counts(pending=12_511, sent=12_480, delivered=12_000, failed=31)
    row = MailingInPeriod(
        id=number,
        name=name,
        state=MailingState.COMPLETED,
        starts_at=DAY.start + timedelta(hours=9),
        ends_at=DAY.start + timedelta(hours=20),
        window=None,
        arrivals=arrivals,
        counts=counts(sent=480, delivered=12_000, failed=31),
        first_sent=DAY.start + timedelta(hours=9),
        last_sent=DAY.start + timedelta(hours=9, minutes=14),
    )
    return row._replace(**values)


def gateway(state: GatewayState = GatewayState.CLOSED, reason: str | None = None) -> GatewayRow:
    return GatewayRow(state, reason, NOW - timedelta(hours=1), None, None, NOW, NOW)


def empty() -> Facts:
    return Facts(
        period=DAY,
        now=NOW,
        totals=no_counts(),
        previous=None,
        average=None,
        averaged=0,
        columns=[(start, no_counts()) for start in DAY.columns()],
        mailings=[],
        promptness={},
        reasons=[],
        waiting=[],
        upcoming=[],
        gateway=gateway(),
    )


def busy(**values: Any) -> Facts:
    columns = [(start, no_counts()) for start in DAY.columns()]
    columns[9] = (columns[9][0], counts(sent=12_480, failed=31))
    facts = dataclasses.replace(
        empty(),
        totals=counts(pending=12_511, sent=12_480, delivered=12_000, failed=31),
        previous=counts(pending=10_000, sent=10_000, delivered=9_000, failed=62),
        average=dict.fromkeys(no_counts(), 0.0) | {"sent": 9_500.0, "failed": 12.4},
        averaged=7,
        columns=columns,
        mailings=[mailing()],
        promptness={7: Promptness(0.9994, is_estimate=False)},
        reasons=[("http_400", 20), ("timeout", 10), ("", 1)],
        waiting=[Waiting(8, "Slow one", MailingState.RUNNING, NOW + timedelta(hours=5), 504)],
        upcoming=[Upcoming(9, "Cyber Monday", NOW + timedelta(hours=4, minutes=30))],
    )
    return dataclasses.replace(facts, **values)


def test_the_subject_has_the_day_and_the_headline() -> None:
    assert compose(busy(), "en", None).subject == "22 Nov: 12,480 sent, 31 failed"
    assert compose(busy(), "ru", None).subject == "22 нояб.: отправлено 12\N{NO-BREAK SPACE}480, ошибок 31"


def test_a_day_with_nothing_says_so_in_one_line() -> None:
    letter = compose(empty(), "en", None)

    assert letter.subject == "22 Nov: nothing was sent"
    assert letter.text.count("Nothing happened") == letter.html.count("Nothing happened") == 1
    assert "Messages per hour" not in letter.html
    assert "%" not in letter.text


@pytest.mark.parametrize("language", ["en", "ru"])
def test_html_and_text_tell_the_same_numbers(language: str) -> None:
    letter = compose(busy(), language, ADMIN)
    words = Words(language, "Europe/Moscow")

    for told in (
        words.number(12_480),
        words.number(12_000),
        words.change(12_480, 10_000),
        words.change(31, 62),
        words.number(9_500),
        words.number(12.4),
        words("prompt", share=words.percent(0.9994)),
        words("sending_time", first="09:00", last="09:14"),
        words.reason("http_400"),
        words("reason_unknown"),
        words("waiting_line", count="504", until=words.moment(NOW + timedelta(hours=5))),
        "Cyber Monday",
        "12:00",
        f"{ADMIN}/mailings/7/",
    ):
        assert told in letter.text
        assert told in letter.html


def test_without_an_address_of_the_admin_pages_there_are_no_links() -> None:
    letter = compose(busy(), "en", None)

    assert "href" not in letter.html
    assert "http" not in letter.text.replace("http_400", "")


def test_names_cannot_bring_markup_into_the_mail() -> None:
    letter = compose(busy(mailings=[mailing(name="<script>alert(1)</script>&")]), "en", ADMIN)

    assert "<script>" not in letter.html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;" in letter.html
    assert "<script>alert(1)</script>&" in letter.text


def test_a_mail_loads_nothing_from_anywhere() -> None:
    html = compose(busy(), "en", None).html

    assert "<img" not in html
    assert "url(" not in html
    assert "src=" not in html


def test_a_thousand_mailings_fit_below_what_mail_programs_cut_off() -> None:
    many = [mailing(number, f"Mailing {number} with a rather long name for customers") for number in range(1000)]
    letter = compose(busy(mailings=many, promptness={}), "ru", ADMIN)

    assert len(letter.html.encode()) < 100_000
    assert letter.html.count("Mailing ") == SHOWN_MAILINGS
    assert "970" in letter.html
    assert letter.attachment is not None
    assert letter.attachment[1].count(b"Mailing ") == 1000


def test_the_table_has_a_row_per_mailing_and_is_safe_in_a_spreadsheet() -> None:
    letter = compose(busy(mailings=[mailing(name="=HYPERLINK(1)"), mailing(9, "Лето; распродажа")]), "ru", None)

    assert letter.attachment is not None
    name, content = letter.attachment
    assert name == "mailings-2026-11-22.csv"
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"))))
    assert tuple(rows[0]) == COLUMNS
    assert [row["name"] for row in rows] == ["'=HYPERLINK(1)", "Лето; распродажа"]
    assert rows[0]["sent"] == "12480"
    assert rows[0]["now_sent"] == "480"
    assert rows[0]["audience"] == "12511"
    assert rows[0]["first_sent"] == "2026-11-22T09:00:00+03:00"
    assert rows[0]["share_within_10_s"] == "0.9994"
    assert rows[1]["share_within_10_s"] == ""
    assert sum(int(rows[0][f"now_{status.value}"]) for status in MessageStatus) == 12_511


@pytest.mark.parametrize("zone", ["Europe/Moscow", "America/New_York"])
def test_a_time_beyond_the_calendar_of_the_zone_does_not_cost_the_report(zone: str) -> None:
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    facts = busy(
        period=dataclasses.replace(DAY, zone=zone),
        mailings=[mailing(starts_at=first, ends_at=last)],
        waiting=[Waiting(8, "Slow one", MailingState.RUNNING, last, 504)],
    )

    letter = compose(facts, "en", ADMIN)

    assert "31 Dec" in letter.text
    assert letter.attachment
    assert b",9999-12-31T" in letter.attachment[1]
    assert b",0001-01-01T" in letter.attachment[1]


def test_a_blocked_gateway_and_an_expired_mailing_are_warned_of() -> None:
    late = mailing(arrivals=counts(sent=1, expired=1_200))
    letter = compose(busy(mailings=[late], gateway=gateway(GatewayState.BLOCKED, "http_401")), "en", ADMIN)

    assert "The gateway refuses our credentials (http_401) since 23 Nov 06:30." in letter.html
    assert "“Sale” ended before everything was sent; expired messages: 1,200." in letter.html
    assert letter.html.count("Needs a person") == 1


def test_a_day_that_is_not_over_says_so_and_compares_nothing() -> None:
    letter = compose(busy(now=DAY.start + timedelta(hours=12), previous=None, average=None), "en", None)

    assert letter.subject == "22 Nov so far: 12,480 sent, 31 failed"
    assert "Against the day before" not in letter.html


def test_the_chart_of_an_autumn_day_has_25_hours_and_its_labels_are_the_clocks() -> None:
    period = Period(Kind.DAILY, date(2026, 10, 25), "Europe/Berlin")
    columns = [(start, counts(sent=10)) for start in period.columns()]

    text = compose(busy(period=period, columns=columns), "en", None).text

    assert text.count("10 sent, 0 failed") == 25
    assert text.count("02:00: 10 sent") == 2


@pytest.mark.parametrize("language", ["en", "ru"])
@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("gateway_blocked", {"since": NOW.isoformat(), "reason": "http_403"}),
        ("gateway_open", {"since": NOW.isoformat(), "reason": ""}),
        ("mailing_expired", {"mailings": [{"id": 7, "name": "A & B", "messages": 1200}]}),
        ("mailing_failing", {"mailings": [{"id": 7, "name": "A & B", "messages": 12}]}),
    ],
)
def test_every_alert_has_its_words(name: str, detail: Mapping[str, Any], language: str) -> None:
    letter = compose_alert(name, detail, NOW, "Europe/Moscow", language, ADMIN)

    assert Words(language, "UTC")(f"alert_{name}") in letter.subject
    assert ("A &amp; B" in letter.html) == ("A & B" in letter.text) == ("mailings" in detail)
    assert ADMIN in letter.html


@pytest.mark.parametrize("key", TEXTS)
def test_both_languages_say_everything_with_the_same_blanks(key: str) -> None:
    blanks = [{field for _, field, _, _ in string.Formatter().parse(text) if field} for text in TEXTS[key]]

    assert all(TEXTS[key])
    assert blanks[0] == blanks[1]


@pytest.mark.parametrize(
    ("share", "english", "russian"),
    [
        (1, "100%", "100 %"),
        (0.9996, "99.9%", "99,9 %"),
        (0.5, "50%", "50 %"),
        (0.0001, "0.1%", "0,1 %"),
        (0, "0%", "0 %"),
    ],
)
def test_a_share_is_never_rounded_to_all_or_nothing(share: float, english: str, russian: str) -> None:
    assert Words("en", "UTC").percent(share) == english
    assert Words("ru", "UTC").percent(share).replace("\N{NO-BREAK SPACE}", " ") == russian

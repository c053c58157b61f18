"""Which requests a fault concerns, when, and what is refused with which words."""

from random import Random
from typing import Any

import pytest

from simulator.answers import ACCEPTED, Then
from simulator.faults import KINDS, Latency, RateLimit
from simulator.rules import Rule, RuleError, Rules, parse, parse_one

NOW = 1_800_000_000.0
PHONE = 79161234567


def rules(*specs: object) -> Rules:
    return Rules(Random(7), parse(list(specs), NOW))


def labels(made: Rules, message_ids: range, attempt: int = 1, at: float = NOW) -> list[str]:
    return [made.decide(message_id, PHONE, attempt, at)[1].label for message_id in message_ids]


def test_without_faults_every_message_is_accepted_at_once() -> None:
    assert rules().decide(1, PHONE, 1, NOW) == (0.0, ACCEPTED)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_ordered_with_little_more_than_its_name(kind: str) -> None:
    needed = {"latency": {"milliseconds": 5}, "rate_limit": {"per_second": 1}}

    assert parse_one({"kind": kind, **needed.get(kind, {})}, NOW).fault.kind == kind


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("status", "must be an object"),
        ({"status": 503}, "unknown kind None; known are latency, status"),
        ({"kind": []}, r"unknown kind \[\]"),
        ({"kind": "status", "sttus": 503}, "unknown field 'sttus'; known are accepted, status"),
        ({"kind": "html", "prepared": {}}, "unknown field 'prepared'"),
        ({"kind": "status", "status": "503"}, "status must be an integer"),
        ({"kind": "status", "status": True}, "status must be an integer"),
        ({"kind": "status", "status": 99}, "status must be between 200 and 599"),
        ({"kind": "status", "retry_after": "2\r\nX: y"}, "retry_after must be printable ASCII"),
        ({"kind": "status", "retry_after": 1, "retry_after_date": 1}, "not both"),
        ({"kind": "unauthorized", "status": 404}, "401 or 403"),
        ({"kind": "latency"}, "missing .* 'milliseconds'"),
        ({"kind": "latency", "milliseconds": float("nan")}, "must be between"),
        ({"kind": "latency", "milliseconds": 5, "distribution": "uniform"}, "needs max_milliseconds"),
        ({"kind": "latency", "milliseconds": 5, "distribution": "normal"}, "one of fixed, uniform, lognormal"),
        ({"kind": "hang", "share": 1.5}, "share must be between 0 and 1"),
        ({"kind": "hang", "ids": "1-5"}, "ids must be a list of an integer or a string"),
        ({"kind": "hang", "ids": ["1"]}, 'ranges such as "100-200"'),
        ({"kind": "hang", "times": 0}, "times must be between 1"),
        ({"kind": "hang", "every_seconds": 5}, "every_seconds needs for_seconds"),
        ({"kind": "hang", "every_seconds": 5, "for_seconds": 5}, "longer than for_seconds"),
        ({"kind": "refuse", "share": 0.5}, "concerns all connections"),
    ],
)
def test_a_wrong_fault_is_refused_with_a_reason(spec: Any, words: str) -> None:
    with pytest.raises(RuleError, match=words):
        parse([spec], NOW)


def test_faults_must_be_a_list() -> None:
    with pytest.raises(RuleError, match="must be a list"):
        parse({"kind": "hang"}, NOW)


def test_ids_and_phones_select() -> None:
    by_id = rules({"kind": "html", "ids": [2, "4-5"]})
    by_phone = rules({"kind": "html", "phones": [PHONE, "7917*"]})

    assert labels(by_id, range(1, 7)) == ["200", "html", "200", "html", "html", "200"]
    assert [by_phone.decide(1, phone, 1, NOW)[1].label for phone in (PHONE, 79170000000, 79180000000)] == [
        "html",
        "html",
        "200",
    ]


def test_times_concerns_only_the_first_attempts_so_that_faults_can_be_scripted() -> None:
    made = rules({"kind": "html", "times": 1}, {"kind": "reset", "times": 3})

    assert [made.decide(1, PHONE, attempt, NOW)[1].label for attempt in (1, 2, 3, 4)] == [
        "html",
        "reset",
        "reset",
        "200",
    ]


def test_a_share_of_the_attempts_is_drawn_anew_each_time() -> None:
    made = rules({"kind": "html", "share": 0.3})

    first, second = labels(made, range(10_000)), labels(made, range(10_000), attempt=2)

    assert first != second
    assert 2_800 < first.count("html") < 3_200


def test_a_share_of_the_ids_is_the_same_at_each_attempt() -> None:
    made = rules({"kind": "html", "share": 0.3, "share_of": "ids"})

    first, second = labels(made, range(10_000)), labels(made, range(10_000), attempt=2)

    assert first == second
    assert 2_800 < first.count("html") < 3_200


@pytest.mark.parametrize(
    ("when", "on"),
    [
        ({}, [0, 1, 5, 14, 100]),
        ({"for_seconds": 5}, [0, 1]),
        ({"after_seconds": 5}, [5, 14, 100]),
        ({"after_seconds": 1, "for_seconds": 5}, [1, 5]),
        # 100 - 1 = 99 = 9 * 11, the beginning of the tenth outage; 14 - 1 = 13 = 11 + 2, two seconds into the second.
        ({"after_seconds": 1, "for_seconds": 3, "every_seconds": 11}, [1, 14, 100]),
    ],
)
def test_a_fault_is_on_in_its_window(when: dict[str, float], on: list[int]) -> None:
    rule = parse_one({"kind": "refuse", **when}, NOW)

    assert [seconds for seconds in (0, 1, 5, 14, 100) if rule.is_on(NOW + seconds)] == on
    assert (Rules(Random(7), [rule]).outage(NOW + 1) is not None) == (1 in on)


def test_delays_add_up_and_the_first_bad_answer_wins() -> None:
    made = rules(
        {"kind": "latency", "milliseconds": 100},
        {"kind": "status", "status": 503},
        {"kind": "latency", "milliseconds": 50},
        {"kind": "hang"},
    )

    delay, answer = made.decide(1, PHONE, 1, NOW)

    assert delay == pytest.approx(0.15)
    assert answer.label == "503"
    assert [described["hits"] for described in made.describe(NOW)] == [1, 1, 1, 0]


def test_any_bad_answer_may_come_after_accepting() -> None:
    _, answer = rules({"kind": "reset", "accepted": True}).decide(1, PHONE, 1, NOW)

    assert (answer.label, answer.accepted, answer.then) == ("reset after accepting", True, Then.RESET)


def test_latencies_follow_their_distribution() -> None:
    random = Random(7)
    uniform = Latency(milliseconds=100, max_milliseconds=300, distribution="uniform")
    lognormal = Latency(milliseconds=100, distribution="lognormal", max_milliseconds=1000)
    flat = sorted(uniform.seconds(random) for _ in range(2001))
    long_tail = sorted(lognormal.seconds(random) for _ in range(2001))

    assert 0.1 <= flat[0] < 0.11
    assert 0.29 < flat[-1] <= 0.3
    assert long_tail[1000] == pytest.approx(0.1, rel=0.1)
    assert long_tail[-1] > 0.3


def test_rate_limit_lets_so_many_pass_in_any_sliding_second() -> None:
    limit = RateLimit(per_second=2, retry_after=3)
    times = (0.0, 0.9, 0.95, 1.0, 1.5, 1.9)  # At 1.0 the first one is a second old; at 1.9 the second one is.

    answers = [limit.answer(NOW + seconds) for seconds in times]

    assert [answer and answer.label for answer in answers] == [None, None, "429", None, "429", None]
    assert answers[2] is not None
    assert b"Retry-After: 3\r\n" in answers[2].payload


def test_retry_after_can_be_an_http_date() -> None:
    _, answer = rules({"kind": "status", "status": 503, "retry_after_date": 60}).decide(1, PHONE, 1, 0.0 + NOW)

    assert b"Retry-After: Fri, 15 Jan 2027 08:01:00 GMT\r\n" in answer.payload


def test_huge_is_as_long_as_it_says() -> None:
    rule: Rule = parse_one({"kind": "huge", "megabytes": 3}, NOW)
    _, answer = Rules(Random(7), [rule]).decide(1, PHONE, 1, NOW)

    head, _, body = answer.payload.partition(b"\r\n\r\n")
    assert len(body) == 3_000_000
    assert b"Content-Length: 3000000" in head

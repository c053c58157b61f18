"""The table that classifies every answer of a gateway."""

from __future__ import annotations

import pytest

from sender.answers import AMBIGUOUS_FAULTS, Answer, Fault, Verdict, judge

OK = b'{"code": 0, "message": "OK"}'


@pytest.mark.parametrize(
    ("status", "body", "verdict", "reason"),
    [
        (200, OK, Verdict.ACCEPTED, None),
        (201, b'{"code":0}', Verdict.ACCEPTED, None),
        (200, b"<html>busy</html>", Verdict.UNKNOWN, "not_json"),
        (200, b"", Verdict.UNKNOWN, "empty_body"),
        (204, b"", Verdict.UNKNOWN, "empty_body"),
        (200, b'{"code": 0, "mess', Verdict.UNKNOWN, "not_json"),
        (200, b'"OK"', Verdict.UNKNOWN, "wrong_shape"),
        (200, b"[0]", Verdict.UNKNOWN, "wrong_shape"),
        (200, b'{"status": "fine"}', Verdict.UNKNOWN, "wrong_shape"),
        (200, b'{"code": "0"}', Verdict.UNKNOWN, "wrong_shape"),
        (200, b'{"code": false}', Verdict.UNKNOWN, "wrong_shape"),  # False == 0 in Python
        (200, b'{"code": null}', Verdict.UNKNOWN, "wrong_shape"),
        (200, b'{"code": 1}', Verdict.UNKNOWN, "wrong_code"),
        (200, b'{"code": -1}', Verdict.UNKNOWN, "wrong_code"),
        (200, b'{"code": 422, "message": "no such number"}', Verdict.REFUSED, "code_422"),
        (200, b"\xff\xfe", Verdict.UNKNOWN, "not_json"),
        (400, b"", Verdict.REFUSED, "http_400"),
        (404, OK, Verdict.REFUSED, "http_404"),
        (409, b"", Verdict.REFUSED, "http_409"),
        (413, b"", Verdict.REFUSED, "http_413"),
        (422, b"", Verdict.REFUSED, "http_422"),
        (401, b"", Verdict.BLOCKED, "http_401"),
        (403, b"", Verdict.BLOCKED, "http_403"),
        (429, b"", Verdict.DEFERRED, "http_429"),
        (503, b"", Verdict.TROUBLE, "http_503"),
        (500, OK, Verdict.TROUBLE, "http_500"),
        (502, b"<html>", Verdict.TROUBLE, "http_502"),
        (405, b"", Verdict.TROUBLE, "http_405"),
        (408, b"", Verdict.TROUBLE, "http_408"),
        (302, b"", Verdict.TROUBLE, "redirect"),
        (308, b"", Verdict.TROUBLE, "redirect"),
    ],
)
def test_a_whole_answer_is_classified_by_status_and_body(
    status: int, body: bytes, verdict: Verdict, reason: str | None
) -> None:
    judgement = judge(Answer(5, None, status, body))
    assert (judgement.verdict, judgement.reason) == (verdict, reason)


def test_a_503_that_says_when_to_come_back_is_a_request_to_slow_down() -> None:
    assert judge(Answer(5, None, 503, b"", retry_after=3.0)).verdict is Verdict.DEFERRED


@pytest.mark.parametrize("fault", list(Fault))
def test_a_broken_call_has_the_fault_as_its_reason(fault: Fault) -> None:
    judgement = judge(Answer(5, fault))
    assert judgement.reason == fault.value
    assert judgement.verdict is (Verdict.UNKNOWN if fault in AMBIGUOUS_FAULTS else Verdict.TROUBLE)


@pytest.mark.parametrize("fault", [Fault.DNS, Fault.REFUSED, Fault.TLS, Fault.CONNECT_TIMEOUT])
def test_a_call_that_never_reached_the_gateway_is_not_ambiguous(fault: Fault) -> None:
    assert judge(Answer(5, fault)).verdict is Verdict.TROUBLE


@pytest.mark.parametrize("fault", [Fault.TRUNCATED, Fault.TOO_LARGE, Fault.BODY_TIMEOUT])
def test_a_clear_refusal_stays_one_when_its_body_is_broken(fault: Fault) -> None:
    assert judge(Answer(5, fault, 400)).verdict is Verdict.REFUSED
    assert judge(Answer(5, fault, 401)).verdict is Verdict.BLOCKED
    assert judge(Answer(5, fault, 200)).verdict is Verdict.UNKNOWN

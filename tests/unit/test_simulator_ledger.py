"""What the simulator remembers of the messages it received."""

from array import array

import pytest

from simulator.ledger import Ledger

PHONE = 79161234567


def record(ledger: Ledger, message_id: int, at: float, label: str = "200", text: str = "Hello") -> bool:
    return ledger.record(message_id, PHONE, text, label, accepted=label == "200", now=at)


def test_attempts_acceptances_and_repeats_are_counted_apart() -> None:
    ledger = Ledger()

    firsts = [record(ledger, 1, 10.0, "503"), record(ledger, 1, 11.0), record(ledger, 1, 12.0), record(ledger, 2, 13.0)]

    assert firsts == [False, True, False, True]
    summary = ledger.summary()
    assert (summary["requests"], summary["ids"], summary["accepted"], summary["repeats"]) == (4, 2, 2, 1)
    assert summary["by_answer"] == {"503": 1, "200": 3}
    assert (summary["first_at"], summary["last_at"]) == (10.0, 13.0)


def test_one_id_tells_all_its_attempts() -> None:
    ledger = Ledger()
    record(ledger, 1, 10.0, "503")
    record(ledger, 2, 10.5)
    record(ledger, 1, 11.0)

    assert ledger.one(1) == {
        "id": 1,
        "phone": PHONE,
        "text": "Hello",
        "accepted": 1,
        "attempts": 2,
        "first_accepted_at": 11.0,
        "conflicting": False,
        "log": [{"at": 10.0, "answer": "503"}, {"at": 11.0, "answer": "200"}],
        "log_complete": True,
    }


def test_a_repeat_with_another_text_is_a_conflict_and_the_first_text_stays() -> None:
    ledger = Ledger()
    record(ledger, 1, 10.0)
    record(ledger, 1, 11.0, text="Goodbye")

    assert ledger.summary()["conflicts"] == 1
    assert (ledger.one(1)["text"], ledger.one(1)["conflicting"]) == ("Hello", True)


def test_when_too_many_attempts_came_only_their_numbers_are_kept() -> None:
    ledger = Ledger(kept_attempts=2)
    for at in (1.0, 2.0, 3.0):
        record(ledger, 1, at)

    one = ledger.one(1)

    assert (one["attempts"], one["accepted"], one["log_complete"]) == (3, 3, False)
    assert [attempt["at"] for attempt in one["log"]] == [1.0, 2.0]


def test_the_busiest_sliding_second_is_found_across_full_seconds() -> None:
    ledger = Ledger()
    # Two in the second from 0.0, three in that from 1.0, but four between 0.6 and 1.4.
    for number, at in enumerate((0.1, 0.6, 1.2, 1.3, 1.4, 2.25)):
        record(ledger, number + 1, at)

    assert ledger.summary()["max_per_second"] == 4


def test_the_timeline_counts_by_tenths_and_arrivals_are_exact() -> None:
    ledger = Ledger()
    for number, at in enumerate((10.01, 10.05, 10.31)):
        record(ledger, number + 1, at)
    ledger.complain(400, "no JSON", "/send/1", 10.35)

    assert ledger.timeline() == [(10.0, 2), (10.3, 2)]
    assert ledger.timeline(since=10.2) == [(10.3, 2)]
    assert array("d", ledger.arrivals()).tolist() == [10.01, 10.05, 10.31]


def test_pages_follow_the_order_of_arrival() -> None:
    ledger = Ledger()
    for message_id in (5, 3, 9, 1):
        record(ledger, message_id, float(message_id))

    assert [item["id"] for item in ledger.page(None, 2)] == [5, 3]
    assert [item["id"] for item in ledger.page(3, 10)] == [9, 1]
    assert [item["id"] for item in ledger.latest(2)] == [1, 9]
    with pytest.raises(KeyError):
        ledger.page(77, 1)


def test_refused_requests_are_kept_with_their_reason() -> None:
    ledger = Ledger()
    ledger.complain(400, "no JSON", "/send/1", 10.0)
    ledger.complain(401, "wrong token", "/send/2", 11.0)

    summary = ledger.summary()

    assert (summary["bad_requests"], summary["unauthorized"], summary["ids"]) == (1, 1, 0)
    assert summary["complaints"][0] == {"at": 10.0, "status": 400, "reason": "no JSON", "path": "/send/1"}


def test_forgetting_keeps_only_what_is_in_flight() -> None:
    ledger = Ledger()
    ledger.started()
    ledger.started()
    record(ledger, 1, 10.0)
    ledger.finished(abandoned=True)

    ledger.forget()
    summary = ledger.summary()

    assert (summary["in_flight"], summary["max_in_flight"], summary["requests"], summary["abandoned"]) == (1, 1, 0, 0)
    assert ledger.page(None, 10) == []

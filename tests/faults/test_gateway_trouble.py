"""The gateway is away, slow, lying, limited, or refuses our token."""

from __future__ import annotations

import time
from typing import Any

import pytest
import sqlalchemy as sa

from tests.conftest import SystemMaker
from tests.system import CONCURRENCY, GATEWAY_TOKEN, LATENCY, SENDING_PROCESSES, System, at_this_load

HALFWAY = 7_000

# Everything that an answer can be, a small share of each; some of it after the message was accepted all the same.
LIES: list[dict[str, Any]] = [
    {"kind": "html"},
    {"kind": "truncated", "accepted": True},
    {"kind": "wrong_shape", "body": ["OK"]},
    {"kind": "wrong_shape", "body": {"code": "0", "message": "OK"}, "accepted": True},
    {"kind": "wrong_code", "code": 7},
    {"kind": "empty", "accepted": True},
    {"kind": "huge", "megabytes": 10},
    {"kind": "drip", "seconds": 1},
    {"kind": "reset"},
    {"kind": "reset", "accepted": True},
    {"kind": "close", "accepted": True},
    {"kind": "redirect"},
    {"kind": "hang", "accepted": True},
    {"kind": "status", "status": 500, "accepted": True},
    {"kind": "status", "status": 502, "body": "<h1>Bad gateway</h1>", "content_type": "text/html"},
    {"kind": "status", "status": 418},
]
LIE_REASONS = {
    "body_too_large",
    "connection_closed",
    "connection_reset",
    "empty_body",
    "http_418",
    "http_500",
    "http_502",
    "not_json",
    "redirect",
    "timeout",
    "timeout_body",
    "truncated",
    "wrong_code",
    "wrong_shape",
}


@pytest.mark.faults
def test_an_outage_costs_two_attempts_at_most_and_full_speed_is_back_in_ten_seconds(make_system: SystemMaker) -> None:
    with make_system() as system:
        mailing = system.start_mailing(30_000)
        system.wait_for_accepted(HALFWAY)
        before = system.rate_between(time.time() - 3, time.time())
        system.simulator.add({"kind": "refuse"})
        system.wait(lambda: gateway_state(system)[0] == "open", 30)
        # What was on the wire was reset, what came after was refused: either may be what most calls heard last.
        assert gateway_state(system)[1] in ("connection_refused", "connection_reset")
        time.sleep(15)
        returned = time.time()
        system.simulator.control(LATENCY)
        system.wait_for_end(mailing)
        full_speed_after = next(
            (seconds for seconds in range(60) if rate_after(system, returned + seconds) > before * 0.7), None
        )
        system.check(
            mailing,
            "gateway refuses for 15 s",
            repeats=CONCURRENCY * SENDING_PROCESSES,  # It resets the connections on which it owes an answer.
            note=f"{before:.0f}/s before, full speed again {full_speed_after} s after its return",
        )
        # The last one is the attempt that succeeded.
        assert most_attempts(system) <= 2 + 1
        assert full_speed_after is not None
        assert full_speed_after <= 10


def test_an_outage_costs_a_message_with_hardly_another_beside_it_two_attempts_at_most(make_system: SystemMaker) -> None:
    with make_system(faults=[{"kind": "refuse"}], gateway_max_attempts=3) as system:
        mailing = system.start_mailing(2)
        # One call more than both messages have attempts.
        system.wait(lambda: mailing.finished_after or system.scalar("SELECT count(*) FROM attempt") > 2 * 3)
        system.simulator.control(LATENCY)
        system.check(mailing, "gateway refuses two messages until they were tried seven times")
        assert most_attempts(system) <= 2 + 1


@pytest.mark.faults
def test_a_message_that_the_gateway_always_answers_badly_fails_in_the_end(make_system: SystemMaker) -> None:
    with make_system(faults=[{"kind": "status", "status": 500}], gateway_max_attempts=3) as system:
        mailing = system.start_mailing(1)
        system.check(mailing, "gateway answers 500 to a single message", statuses=("failed",))
        assert most_attempts(system) == 3
        assert system.logged("gateway_state") == 0


@pytest.mark.faults
def test_a_gateway_that_answers_too_late_costs_two_attempts_at_most(make_system: SystemMaker) -> None:
    with make_system(gateway_timeout=2) as system:
        mailing = system.start_mailing(20_000)
        system.wait_for_accepted(HALFWAY)
        system.simulator.add({"kind": "latency", "milliseconds": 5_000})
        system.wait(lambda: gateway_state(system) == ("open", "timeout"), 30)
        time.sleep(10)
        system.simulator.control(LATENCY)
        # It accepts what it answers too late: those are repeated, under the same ids.
        system.check(mailing, "gateway answers after our timeout for 10 s", repeats=None)
        assert most_attempts(system) <= 2 + 1


@pytest.mark.faults
def test_a_slow_gateway_slows_and_nothing_else(make_system: SystemMaker) -> None:
    with make_system() as system:
        mailing = system.start_mailing(20_000)
        system.wait_for_accepted(HALFWAY)
        system.simulator.add({"kind": "latency", "milliseconds": 3_000, "for_seconds": 12})
        system.check(mailing, "gateway takes 3 s for each answer for 12 s")
        assert most_attempts(system) == 1


@pytest.mark.faults
def test_a_few_calls_that_hang_hold_up_nobody_else(make_system: SystemMaker) -> None:
    hangs = {"kind": "hang", "share": 0.005, "times": 1}
    with make_system(faults=[hangs, LATENCY], gateway_timeout=20, gateway_concurrency=1_000) as system:
        mailing = system.start_mailing(30_000)
        began = time.monotonic()
        system.wait_for_accepted(29_500)
        took = time.monotonic() - began
        assert system.scalar("SELECT count(*) FROM attempt") == 0  # Not one of those that hang was given up yet.
        system.check(mailing, "one call in 200 hangs", note=f"29,500 of the others after {took:.1f} s")


@pytest.mark.faults
def test_a_lying_gateway_is_asked_again_under_the_same_id(make_system: SystemMaker) -> None:
    lies = [{**lie, "share": 0.02, "times": 3} for lie in LIES]
    with make_system(faults=[*lies, LATENCY], gateway_timeout=4) as system:
        mailing = system.start_mailing(20_000)
        system.check(mailing, "gateway lies in every known way to a quarter of the calls", repeats=None)
        assert {
            row[0] for row in system.rows("SELECT DISTINCT reason FROM attempt WHERE reason IS NOT NULL")
        } == LIE_REASONS
        sent_again = system.scalar("SELECT count(*) FROM message WHERE attempts > 1")
        told = system.scalar("SELECT count(DISTINCT message_id) FROM attempt WHERE outcome = 'sent'")
        assert sent_again == told > 3_000


@pytest.mark.faults
def test_a_refused_token_blocks_the_gateway_visibly_and_burns_nothing(make_system: SystemMaker) -> None:
    with make_system() as system:
        mailing = system.start_mailing(20_000)
        system.wait_for_accepted(HALFWAY)
        system.simulator.control(LATENCY, token="another")
        system.wait(lambda: gateway_state(system) == ("blocked", "http_401"), 30)
        system.wait(lambda: system.simulator.received()["in_flight"] == 0)  # Calls that were on the wire already.
        refused = system.simulator.received()["unauthorized"]
        assert refused <= SENDING_PROCESSES * CONCURRENCY
        assert 'mailing_gateway_state{state="blocked"} 1.0' in system.get_plain("/metrics")
        assert system.logged('"state":"blocked"') >= 1
        time.sleep(4)
        assert system.simulator.received()["unauthorized"] <= refused + 3  # Only probes knock.
        system.simulator.control(LATENCY, token=GATEWAY_TOKEN)
        seconds = system.wait(lambda: gateway_state(system) == ("closed", None), 30)
        # Late answers to calls from before the trouble do not open the gate again: once blocked, once closed.
        assert system.logged("gateway_state") == 2
        system.check(
            mailing,
            "gateway refuses our token for 5 s",
            note=f"{refused} calls were refused; open again after {seconds:.1f} s",
        )
        assert most_attempts(system) == 1


@pytest.mark.faults
@pytest.mark.parametrize("senders", [1, 3])
@pytest.mark.parametrize("limit", [200, 1000])
def test_the_rate_limit_is_held_and_reached(make_system: SystemMaker, limit: int, senders: int) -> None:
    with make_system(senders=senders, gateway_rate_limit=limit) as system:
        mailing = system.start_mailing(limit * 20)
        system.wait_for_end(mailing)
        arrivals = system.simulator.arrivals()
        most = system.simulator.received()["max_per_second"]
        average = (len(arrivals) - 1) / (arrivals[-1] - arrivals[0])
        system.check(
            mailing,
            f"limit of {limit}/s, {senders} sender{'s' if senders > 1 else ''}",
            note=f"{most} in the fullest second, {average:.0f}/s on average",
        )
        assert most <= limit * 1.05
        assert average >= limit * 0.98


@pytest.mark.faults
def test_a_sender_that_does_not_know_the_time_and_the_limit_makes_no_call(make_system: SystemMaker) -> None:
    limit = 50
    with make_system(gateway_rate_limit=limit) as system:
        (sender,) = system.senders
        sender.stop()
        system.execute("INSERT INTO process (id, kind, capacity) VALUES ('expected soon', 'sender', 6)")
        mailing = system.start_mailing(limit * 4)
        system.wait(lambda: system.scalar("SELECT count(*) FROM batch") > 0)
        with system.session() as session:
            # It can take batches, but cannot beat, which is when it reads the clock and the pace.
            session.execute(sa.text("LOCK TABLE process IN EXCLUSIVE MODE"))
            sender.launch()
            with pytest.raises(TimeoutError):
                system.simulator.wait_for(lambda seen: seen["requests"] > 0, 10)
        system.check(mailing, "sender started while the database hardly answers")
        assert system.simulator.received()["max_per_second"] <= limit * 1.05


@pytest.mark.faults
def test_a_complaining_gateway_is_spared_and_then_given_full_speed_again(make_system: SystemMaker) -> None:
    with make_system() as system:
        mailing = system.start_mailing(20_000)
        system.wait_for_accepted(4_000)
        system.simulator.control({"kind": "rate_limit", "per_second": 200}, LATENCY)
        system.wait(lambda: (pace := system.scalar("SELECT pace FROM gateway")) and pace < 300, 30)
        time.sleep(12)
        complaints = system.simulator.received()["by_answer"]["429"]
        system.simulator.control(LATENCY)
        system.wait(lambda: system.scalar("SELECT pace IS NULL OR pace > 1000 FROM gateway"), 60)
        system.check(mailing, "gateway bears 200/s only for 12 s", note=f"{complaints} calls were deferred (429)")
        # A complaint defers, it costs no attempt; and most of what we send is not complained about.
        assert most_attempts(system) == 1


@pytest.mark.faults
def test_large_mailings_leave_room_for_a_small_one_at_a_slow_gateway(make_system: SystemMaker) -> None:
    # Twenty calls a second: the batches of the large ones take minutes.
    with make_system(faults=[{"kind": "latency", "milliseconds": 2_000}], gateway_concurrency=20) as system:
        large = [system.start_mailing(7_000, code) for code in ("916", "917")]
        system.wait(lambda: system.scalar("SELECT count(*) FROM message") == 14_000)
        system.wait(lambda: system.scalar("SELECT count(DISTINCT mailing_id) FROM batch HAVING count(*) >= 10") == 2)
        small = system.start_mailing(10, "918")
        system.wait_for_end(small, 60)
        assert small.finished_after
        for mailing in large:
            assert system.call("POST", f"/mailing/{mailing.id}/cancel/").status_code == 200
        note = f"one of 10 took {small.finished_after:.1f} s beside them"
        system.check(large[0], "two mailings before a slow gateway", statuses=("sent", "cancelled"), note=note)
        assert small.finished_after < at_this_load(20), note


@pytest.mark.faults
@pytest.mark.parametrize("trouble", ["hang", "reset"])
def test_a_mailing_in_trouble_does_not_slow_another(make_system: SystemMaker, trouble: str) -> None:
    with make_system(gateway_concurrency=1000) as system:
        alone = system.start_mailing(6_000, "916")
        system.wait_for_end(alone)
        assert alone.finished_after
        system.simulator.control({"kind": trouble, "phones": ["7917*"]}, LATENCY)
        troubled = system.start_mailing(20_000, "917")
        system.wait(lambda: system.simulator.received()["by_answer"].get(trouble, 0) > 300)
        other = system.start_mailing(6_000, "918")
        system.wait_for_end(other)
        assert other.finished_after
        note = f"another of 6,000 took {other.finished_after:.1f} s beside it, {alone.finished_after:.1f} s alone"
        assert system.call("POST", f"/mailing/{troubled.id}/cancel/").status_code == 200
        system.check(
            troubled, f"all calls of one mailing {trouble}", statuses=("cancelled", "failed"), note=note, repeats=None
        )
        system.check_sums(other, ("sent",))
        assert other.finished_after < alone.finished_after * 2.5 + 3, note


@pytest.mark.faults
def test_a_mailing_that_hangs_from_the_first_call_on_does_not_hold_up_another(make_system: SystemMaker) -> None:
    """The senders know nothing of the gateway yet, and may have few calls in flight."""
    with make_system(faults=[{"kind": "hang", "phones": ["7917*"]}, LATENCY], gateway_concurrency=1000) as system:
        system.add_clients(6_000, "918")
        troubled = system.start_mailing(20_000, "917")
        system.wait(lambda: system.simulator.received()["by_answer"].get("hang", 0) > 30)
        other = system.start_mailing(6_000, "918", are_there=True)
        system.wait_for_end(other, 30)
        note = f"another of 6,000 took {other.finished_after:.1f} s beside it"
        assert system.call("POST", f"/mailing/{troubled.id}/cancel/").status_code == 200
        system.check(
            troubled,
            "all calls of one mailing hang from the start",
            statuses=("cancelled", "failed"),
            note=note,
            repeats=None,
        )
        system.check_sums(other, ("sent",))


@pytest.mark.faults
def test_a_mailing_that_begins_while_another_keeps_the_breaker_open_closes_it(make_system: SystemMaker) -> None:
    with make_system(gateway_concurrency=1000) as system:
        system.simulator.control({"kind": "reset", "phones": ["7917*"]}, LATENCY)
        troubled = system.start_mailing(20_000, "917")
        system.wait(lambda: gateway_state(system)[0] == "open", 30)
        other = system.start_mailing(6_000, "918")
        system.wait(lambda: gateway_state(system)[0] == "closed", 5)  # By the first probe, which is within 2 s.
        system.wait_for_end(other)
        note = f"the other of 6,000 took {other.finished_after:.1f} s"
        assert system.call("POST", f"/mailing/{troubled.id}/cancel/").status_code == 200
        system.check(
            troubled,
            "a mailing begins beside one in trouble",
            statuses=("cancelled", "failed"),
            note=note,
            repeats=None,
        )
        system.check_sums(other, ("sent",))


def rate_after(system: System, instant: float) -> float:
    """Arrivals per second in the two seconds after an instant of `time.time()`."""
    return system.rate_between(instant, instant + 2)


def gateway_state(system: System) -> tuple[str, str | None]:
    """The breaker's state and its reason."""
    row = system.rows("SELECT state, reason FROM gateway")[0]
    return row.state, row.reason


def most_attempts(system: System) -> int:
    """The largest number of counted attempts that any message took."""
    return int(system.scalar("SELECT max(attempts) FROM message"))

"""The main job through real processes: API, PostgreSQL, dispatcher, RabbitMQ, worker, gateway, statistics."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.system import LATENCY, Servers, System, at_this_load

# With all that is started for the first of them.
pytestmark = pytest.mark.timeout(300)

# What people's files really look like: a BOM, semicolons, quotes, spellings of numbers, doubles, blanks and nonsense.
PEOPLE = """\ufeffphone;operator_code;tags;timezone;name
+7 (916) 000-00-01;;vip|new;Europe/Moscow;Anna
8 916 000 00 02;916;vip;Asia/Kathmandu;"Bo ""the"" Boss"
79160000003;;;;Яна
89170000004;;vip;;
not a number;;vip;;Nobody
+79160000005;;vip;Mars/Base;Nobody
+79160000001;;vip|again;;Anna-Maria
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, servers: Servers) -> Iterator[System]:
    """Everything, running; the tests here have operators of their own."""
    with System(tmp_path_factory.mktemp("system"), servers, faults=(LATENCY | {"milliseconds": 5},)) as running:
        yield running


def upload(system: System, content: bytes) -> dict[str, Any]:
    """Import a file and wait for the end of its job."""
    answer = system.upload(content)
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()

    def is_over() -> bool:
        job.update(system.call("GET", f"/client/import/{job['id']}/").json())
        return job["state"] in ("completed", "failed")

    system.wait(is_over)
    return job


def received(system: System, mailing_id: int) -> dict[int, str]:
    """Phone to text of what the gateway got for a mailing; each exactly once."""
    ids = {row[0] for row in system.rows("SELECT id FROM message WHERE mailing_id = :id", id=mailing_id)}
    got = [message for message in system.simulator.ids() if message["id"] in ids]
    assert all(message["accepted"] == 1 for message in got)
    assert max(Counter(message["phone"] for message in got).values(), default=1) == 1
    return {message["phone"]: message["text"] for message in got}


def mailing(system: System, **fields: Any) -> dict[str, Any]:
    """A new mailing to nobody in particular, for an hour."""
    body = {"name": "Main job", "text": "Hello", "ends_at": (datetime.now(UTC) + timedelta(hours=1)).isoformat()}
    answer = system.call("POST", "/mailing/", body | fields)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def detail(system: System, mailing_id: int) -> dict[str, Any]:
    """The mailing's own page of the API."""
    found: dict[str, Any] = system.call("GET", f"/message/{mailing_id}/retrieveMessagesForMailing/").json()
    return found


def wait_until_done(system: System, mailing_id: int) -> dict[str, Any]:
    system.wait(lambda: detail(system, mailing_id)["mailing"]["state"] == "completed")
    return detail(system, mailing_id)


def seconds_to_first_message(system: System, operator_code: str) -> float:
    """Make a mailing and wait for its first message at the gateway, then for its end."""
    before = system.simulator.received()["requests"]
    began = time.monotonic()
    made = mailing(system, filter={"operator_codes": [operator_code]})
    system.simulator.wait_for(lambda seen: seen["requests"] > before, 20)
    seconds = time.monotonic() - began
    wait_until_done(system, made["id"])
    return seconds


def test_from_a_file_of_people_to_the_statistics(system: System) -> None:
    job = upload(system, PEOPLE.encode())
    assert (job["state"], job["total"], job["created"], job["updated"], job["rejected"]) == ("completed", 7, 4, 1, 2)
    assert [error["line"] for error in job["errors"]] == [6, 7]
    made = mailing(system, text="Hi {name|there}!", filter={"operator_codes": ["916"], "tags": ["vip"]})
    done = wait_until_done(system, made["id"])
    assert received(system, made["id"]) == {79160000001: "Hi Anna-Maria!", 79160000002: 'Hi Bo "the" Boss!'}
    assert done["messages"] == 2
    assert done["by_status"] == dict.fromkeys(done["by_status"], 0) | {"sent": 2}
    assert [(item["phone"], item["status"], item["attempts"]) for item in done["items"]] == [
        ("+79160000001", "sent", 1),
        ("+79160000002", "sent", 1),
    ]
    overall = system.call("GET", "/mailing/mailingsStatisticsOverall/?page_size=500").json()
    (line,) = [line for line in overall["mailings"] if line["id"] == made["id"]]
    assert (line["messages"], line["by_status"]["sent"]) == (2, 2)
    assert system.simulator.received()["unauthorized"] == 0


def test_a_text_that_is_too_long_for_a_client_fails_for_this_client_alone(system: System) -> None:
    upload(system, f"phone,tags,name\n+79270000001,long,Anna\n+79270000002,long,{'x' * 16_000}\n".encode())
    made = mailing(system, text="{name}" * 300, filter={"operator_codes": ["927"]})
    done = wait_until_done(system, made["id"])
    assert done["by_status"] | {"sent": 1, "failed": 1} == done["by_status"]
    (failed,) = [item for item in done["items"] if item["status"] == "failed"]
    assert failed["last_error"] == "text_too_long"
    assert received(system, made["id"]) == {79270000001: "Anna" * 300}


def test_a_client_without_the_attribute_fails_with_a_reason_that_can_be_read(system: System) -> None:
    upload(system, b"phone,tags,name\n+79260000001,lack,Anna\n+79260000002,lack,\n")
    made = mailing(system, text="Dear {name}", filter={"operator_codes": ["926"]})
    done = wait_until_done(system, made["id"])
    assert done["by_status"] | {"sent": 1, "failed": 1} == done["by_status"]
    (failed,) = [item for item in done["items"] if item["status"] == "failed"]
    assert failed["last_error"] == "missing_placeholder:name"
    history = system.call("GET", f"/message/{failed['id']}/").json()["history"]
    assert [(line["outcome"], line["reason"]) for line in history] == [("failed", "missing_placeholder:name")]
    assert received(system, made["id"]) == {79260000001: "Dear Anna"}


def test_the_first_message_is_at_the_gateway_at_once(system: System) -> None:
    system.add_clients(3, "936")
    seconds = [seconds_to_first_message(system, "936") for _ in range(3)]
    # Half a second is the promise on an idle machine; the best of three says whether anything polls or sleeps.
    assert min(seconds) < at_this_load(1.0)


def test_a_start_in_the_future_needs_nobody(system: System) -> None:
    system.add_clients(2, "937")
    before = system.simulator.received()["requests"]
    starts_at = datetime.now(UTC) + timedelta(seconds=5)  # far enough away for a slow answer to the next line
    made = mailing(system, filter={"operator_codes": ["937"]}, starts_at=starts_at.isoformat())
    assert made["state"] == "scheduled"
    system.simulator.wait_for(lambda seen: seen["requests"] > before, 20)
    late = system.simulator.arrivals()[before] - starts_at.timestamp()
    assert 0 <= late < at_this_load(2.0)
    wait_until_done(system, made["id"])


def test_a_draft_waits_for_its_start(system: System) -> None:
    system.add_clients(2, "938")
    made = mailing(system, filter={"operator_codes": ["938"]}, state="draft")
    assert made["state"] == "draft"
    assert system.call("POST", f"/mailing/{made['id']}/start/").json()["state"] in ("scheduled", "running")
    assert wait_until_done(system, made["id"])["by_status"]["sent"] == 2


def test_a_closed_window_holds_the_messages_until_it_opens(system: System) -> None:
    system.add_clients(2, "939")
    opens = (datetime.now(UTC) + timedelta(minutes=31)).replace(second=0, microsecond=0)
    system.execute("UPDATE client SET timezone = 'UTC' WHERE operator_code = '939'")
    window = {"from": opens.strftime("%H:%M"), "to": (opens + timedelta(minutes=5)).strftime("%H:%M")}
    made = mailing(system, filter={"operator_codes": ["939"]}, send_window=window)
    system.wait(lambda: detail(system, made["id"])["messages"] == 2)
    due = {item["next_attempt_at"] for item in detail(system, made["id"])["items"]}
    assert due == {opens.isoformat().replace("+00:00", "Z")}
    # The window is taken away: they go at once.
    assert system.call("PATCH", f"/mailing/{made['id']}/", {"send_window": None}).status_code == 200
    assert wait_until_done(system, made["id"])["by_status"]["sent"] == 2


def test_a_refused_number_fails_and_can_be_tried_again(system: System) -> None:
    system.add_clients(3, "940")
    system.simulator.add({"kind": "status", "status": 422, "phones": [79400000002], "times": 1})
    made = mailing(system, filter={"operator_codes": ["940"]})
    done = wait_until_done(system, made["id"])
    assert (done["by_status"]["sent"], done["by_status"]["failed"]) == (2, 1)
    answer = system.call("POST", f"/mailing/{made['id']}/retry-failed/", {"reasons": ["http_422"]})
    assert answer.status_code == 200, answer.text
    done = wait_until_done(system, made["id"])
    assert (done["by_status"]["sent"], done["by_status"]["failed"]) == (3, 0)


def test_everything_ends_in_good_order(tmp_path: Path, servers: Servers) -> None:
    with System(tmp_path, servers) as own:
        for process in own.processes:
            process.stop()
        assert {process.name: process.exit_code for process in own.processes} == dict.fromkeys(
            (process.name for process in own.processes), 0
        )

"""People change their minds in the middle of a large mailing: within two seconds, and the counts add up."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from db.queries.messages import STATUS
from tests.conftest import SystemMaker
from tests.system import Mailing, System, at_this_load

AUDIENCE = 50_000  # what waits of it is settled in a second, also on a slow machine
HALFWAY = 6_000
# What people ask for takes effect within this time for everything that is not on the wire.
EFFECT_SECONDS = 2.0
# Two clocks are compared: the simulator reads its own when a request has arrived, on a busy machine some time later.
CLOCK_MARGIN_SECONDS = 0.05


def test_no_request_leaves_after_the_end_and_the_rest_expires_within_two_seconds(make_system: SystemMaker) -> None:
    with make_system() as system:
        system.add_clients(30_000)
        mailing = system.start_mailing(30_000, ends_in=10, are_there=True)
        ends_at = end_of(system, mailing)
        system.wait(lambda: time.time() > ends_at)
        system.wait(lambda: nothing_waits(system, mailing), 30)
        expired_after = time.time() - ends_at
        late = system.simulator.arrivals()[-1] - ends_at
        system.check(
            mailing,
            "the end comes in the middle",
            statuses=("sent", "expired"),
            note=f"last request {late * 1000:+.0f} ms from the end, the rest expired after {expired_after:.1f} s",
        )
        assert late <= at_this_load(CLOCK_MARGIN_SECONDS)
        assert expired_after < at_this_load(EFFECT_SECONDS)


@pytest.mark.faults
def test_pause_resume_and_a_nearer_end(make_system: SystemMaker) -> None:
    with make_system() as system:
        mailing = system.start_mailing(AUDIENCE)
        system.wait_for_accepted(HALFWAY)
        assert system.call("POST", f"/mailing/{mailing.id}/pause/").json()["state"] == "paused"
        paused_at = time.time()
        time.sleep(5)
        silent_after = system.simulator.arrivals()[-1] - paused_at
        assert system.call("POST", f"/mailing/{mailing.id}/resume/").json()["state"] == "running"
        requests = system.simulator.received()["requests"]
        system.simulator.wait_for(lambda seen: seen["requests"] > requests + 4_000, 60)
        new_end = (datetime.now(UTC) + timedelta(seconds=3)).isoformat()
        assert system.call("PATCH", f"/mailing/{mailing.id}/", {"ends_at": new_end}).status_code == 200
        ends_at = end_of(system, mailing)
        system.wait(lambda: time.time() > ends_at)
        system.wait(lambda: nothing_waits(system, mailing), 30)
        expired_after = time.time() - ends_at
        late = system.simulator.arrivals()[-1] - ends_at
        system.check(
            mailing,
            "paused, resumed, end moved to now + 3 s",
            statuses=("sent", "expired"),
            note=f"silent {silent_after:.2f} s after the pause, last request {late * 1000:+.0f} ms from the new end,"
            f" the rest expired after {expired_after:.1f} s",
        )
        assert silent_after < EFFECT_SECONDS
        assert late <= at_this_load(CLOCK_MARGIN_SECONDS)
        assert expired_after < at_this_load(EFFECT_SECONDS)


@pytest.mark.faults
def test_cancel(make_system: SystemMaker) -> None:
    with make_system() as system:
        mailing = system.start_mailing(AUDIENCE)
        system.wait_for_accepted(HALFWAY)
        written = system.scalar("SELECT count(*) FROM message WHERE mailing_id = :id", id=mailing.id)
        assert system.call("POST", f"/mailing/{mailing.id}/cancel/").json()["state"] == "cancelled"
        cancelled_at = time.time()
        settled_after = system.wait(lambda: nothing_waits(system, mailing), 30)
        time.sleep(3)
        silent_after = system.simulator.arrivals()[-1] - cancelled_at
        mailing.audience = system.scalar("SELECT count(*) FROM message WHERE mailing_id = :id", id=mailing.id)
        system.check(
            mailing,
            "cancelled",
            statuses=("sent", "cancelled"),
            note=f"silent after {silent_after:.2f} s, the rest cancelled after {settled_after:.1f} s",
        )
        assert mailing.audience >= written
        assert silent_after < EFFECT_SECONDS
        assert settled_after < at_this_load(EFFECT_SECONDS)


@pytest.mark.faults
def test_deleting_a_mailing(make_system: SystemMaker) -> None:
    with make_system() as system:
        mailing = system.start_mailing(AUDIENCE)
        system.wait_for_accepted(HALFWAY)
        began = time.monotonic()
        assert system.call("DELETE", f"/mailing/{mailing.id}/").status_code == 204
        assert time.monotonic() - began < EFFECT_SECONDS
        deleted_at = time.time()
        assert system.call("GET", f"/mailing/{mailing.id}/").status_code == 404
        tables = ("message", "batch", "planned_batch", "status_count", "status_flow")
        counts = " + ".join(f"(SELECT count(*) FROM {table} WHERE mailing_id = :id)" for table in tables)
        system.wait(lambda: system.scalar(f"SELECT {counts}", id=mailing.id) == 0, 60)
        assert system.scalar("SELECT count(*) FROM mailing WHERE id = :id", id=mailing.id) == 0
        assert system.simulator.arrivals()[-1] - deleted_at < EFFECT_SECONDS
        assert not mailing.violations


@pytest.mark.faults
def test_deleted_and_opted_out_clients_get_nothing_two_seconds_later(make_system: SystemMaker) -> None:
    with make_system() as system:
        mailing = system.start_mailing(AUDIENCE)
        system.wait_for_accepted(HALFWAY)
        # Some that are in a worker's hands just now, some that wait.
        in_hand = clients(system, mailing, "sending", "id DESC")
        waiting = clients(system, mailing, "pending", "id DESC")
        asked: dict[int, float] = {}  # when the API had answered, by client id
        for number, client_id in enumerate(in_hand + waiting):
            path, now = f"/client/{client_id}/", datetime.now(UTC).isoformat()
            answer = system.call("DELETE", path) if number % 2 else system.call("PATCH", path, {"opted_out_at": now})
            assert answer.status_code in (200, 204), answer.text
            asked[client_id] = time.time()
        system.check(mailing, "clients deleted and opted out", statuses=("sent", "cancelled"))
        rows = system.rows("SELECT id, client_id, status FROM message WHERE client_id = ANY(:ids)", ids=list(asked))
        accepted = {item["id"]: item["first_accepted_at"] for item in system.simulator.ids() if item["accepted"]}
        for row in rows:
            if row.status == "cancelled":
                assert row.id not in accepted
            else:
                assert accepted[row.id] < asked[row.client_id] + EFFECT_SECONDS
        assert {row.status for row in rows if row.client_id in waiting} == {"cancelled"}


def clients(system: System, mailing: Mailing, status: str, order: str) -> list[int]:
    """Twenty clients whose message has this status."""
    statement = f"SELECT client_id FROM message WHERE mailing_id = :id AND {STATUS} = :status ORDER BY {order} LIMIT 20"
    return [row[0] for row in system.rows(statement, id=mailing.id, status=status)]


def nothing_waits(system: System, mailing: Mailing) -> bool:
    """Whether no message of the mailing could still be sent; what is on the wire may be waiting for its answer."""
    statement = f"SELECT count(*) FROM message WHERE mailing_id = :id AND {STATUS} = 'pending'"
    return bool(system.scalar(statement, id=mailing.id) == 0)


def end_of(system: System, mailing: Mailing) -> float:
    """The mailing's end in seconds since 1970."""
    return float(system.scalar("SELECT extract(epoch FROM ends_at) FROM mailing WHERE id = :id", id=mailing.id))

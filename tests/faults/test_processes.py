"""Our own processes are killed, frozen and ended while they send."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import SystemMaker
from tests.system import CONCURRENCY, LATENCY, SENDING_PROCESSES, System
from tools.processes import Process, Running, family, look_up, wait_until

MESSAGES = 20_000
HALFWAY = 7_000


def test_a_killed_sending_process_repeats_at_most_what_was_on_the_wire(make_system: SystemMaker) -> None:
    with make_system() as system:
        mailing = system.start_mailing(MESSAGES)
        system.wait_for_accepted(HALFWAY)
        system.sending_children()[0].send(signal.SIGKILL)
        system.check(mailing, "kill -9 of a sending process", repeats=CONCURRENCY)
        assert len(system.sending_children()) == SENDING_PROCESSES


@pytest.mark.faults
def test_children_of_a_killed_sender_end_in_good_order(make_system: SystemMaker) -> None:
    with make_system(senders=2) as system:
        mailing = system.start_mailing(MESSAGES)
        system.wait_for_accepted(HALFWAY)
        children = family(system.senders[0].pid or 0)[1:]
        system.senders[0].send(signal.SIGKILL)
        # Without a parent they finish what is on the wire and give back the rest: nothing is repeated.
        system.wait(lambda: not any(child.is_alive for child in children), 40)
        system.check(mailing, "kill -9 of a sender's parent process", repeats=0)


@pytest.mark.faults
def test_a_killed_sender_with_all_its_children_loses_nothing(make_system: SystemMaker) -> None:
    with make_system() as system:
        mailing = system.start_mailing(MESSAGES)
        system.wait_for_accepted(HALFWAY)
        system.senders[0].kill()
        system.senders[0].launch()
        system.check(mailing, "kill -9 of a whole sender, started again", repeats=CONCURRENCY * SENDING_PROCESSES)


def test_a_standby_takes_over_from_a_killed_dispatcher(make_system: SystemMaker) -> None:
    with make_system(dispatchers=2) as system:
        mailing = system.start_mailing(MESSAGES)
        system.wait_for_accepted(HALFWAY)
        leader = leading(system)
        leader.kill()
        seconds = system.wait(lambda: system.leader() not in (None, leader))
        system.check(mailing, "kill -9 of the dispatcher", repeats=0, note=f"standby leads after {seconds:.1f} s")


@pytest.mark.faults
def test_a_frozen_sending_process_that_wakes_after_its_lease_does_no_harm(make_system: SystemMaker) -> None:
    with make_system() as system:
        mailing = system.start_mailing(30_000)
        system.wait_for_accepted(HALFWAY)
        child = system.sending_children()[0]
        child.send(signal.SIGSTOP)
        seconds = system.wait(lambda: system.scalar("SELECT count(*) FROM attempt WHERE outcome = 'lost'"))
        time.sleep(1)  # Its messages are on their way with another by now.
        child.send(signal.SIGCONT)
        system.check(
            mailing, "sending process frozen past its lease", repeats=CONCURRENCY, note=f"swept after {seconds:.1f} s"
        )


@pytest.mark.faults
def test_a_sender_frozen_inside_a_transaction_holds_up_the_others_for_seconds_only(make_system: SystemMaker) -> None:
    with make_system(senders=2, sender_processes=1) as system:
        mailing = system.start_mailing(30_000)
        system.wait_for_accepted(HALFWAY)
        child = system.sending_children()[0]
        freeze_inside_a_transaction(system, child)
        seconds = system.wait(lambda: system.scalar("SELECT count(*) FROM attempt WHERE outcome = 'lost'"), 20)
        system.wait_for_end(mailing, 60)
        child.send(signal.SIGCONT)
        system.check(
            mailing,
            "sending process frozen inside a transaction",
            repeats=CONCURRENCY,
            note=f"swept after {seconds:.1f} s",
        )


@pytest.mark.faults
def test_a_standby_takes_over_from_a_frozen_dispatcher(make_system: SystemMaker) -> None:
    with make_system(dispatchers=2) as system:
        mailing = system.start_mailing(MESSAGES)
        system.wait_for_accepted(HALFWAY)
        leader = leading(system)
        leader.send(signal.SIGSTOP)
        seconds = system.wait(lambda: system.leader() not in (None, leader), 20)
        time.sleep(3)  # Wakes in the middle of its successor's work.
        leader.send(signal.SIGCONT)
        system.check(mailing, "dispatcher frozen for a while", repeats=0, note=f"standby leads after {seconds:.1f} s")


@pytest.mark.faults
def test_a_dispatcher_frozen_inside_a_transaction_holds_up_its_successor_for_seconds_only(
    make_system: SystemMaker,
) -> None:
    with make_system(dispatchers=2) as system:
        mailing = system.start_mailing(MESSAGES)
        system.wait_for_accepted(2_000)
        leader = leading(system)
        process = look_up(leader.pid or 0)
        assert process
        freeze_inside_a_transaction(system, process)
        seconds = system.wait(lambda: system.leader() not in (None, leader), 20)
        system.wait_for_end(mailing, 60)
        leader.send(signal.SIGCONT)
        system.check(
            mailing,
            "dispatcher frozen inside a transaction",
            repeats=0,
            note=f"standby leads after {seconds:.1f} s",
        )


def test_a_stopped_sender_finishes_what_is_on_the_wire_and_repeats_nothing(make_system: SystemMaker) -> None:
    with make_system() as system:
        mailing = system.start_mailing(MESSAGES)
        system.wait_for_accepted(HALFWAY)
        seconds = stop(system, 1)
        # It has given everything back: nothing waits for a lease to run out.
        assert system.scalar("SELECT count(*) FROM batch WHERE worker_id IS NOT NULL") == 0
        system.senders[0].launch()
        system.check(mailing, "SIGTERM of the only sender, started again", note=f"ended within {seconds:.1f} s")


@pytest.mark.faults
def test_a_second_sigterm_to_everybody_changes_nothing(make_system: SystemMaker) -> None:
    with make_system() as system:
        mailing = system.start_mailing(MESSAGES)
        system.wait_for_accepted(HALFWAY)
        seconds = stop(system, 2)
        assert system.scalar("SELECT count(*) FROM batch WHERE worker_id IS NOT NULL") == 0
        system.senders[0].launch()
        system.check(mailing, "SIGTERM twice, to parent and children", note=f"ended within {seconds:.1f} s")


@pytest.mark.faults
def test_two_of_every_process_send_each_message_once(make_system: SystemMaker) -> None:
    with make_system(dispatchers=2, senders=2) as system:
        mailing = system.start_mailing(MESSAGES)
        system.check(mailing, "two of every process, nothing broken")


def test_logs_that_cannot_be_written_stop_nobody(make_system: SystemMaker) -> None:
    with make_system() as system:
        mailing = system.start_mailing(MESSAGES)
        system.wait_for_accepted(2_000)
        for process in system.processes:
            for member in family(process.pid or 0):
                # What a full disk does, to these processes alone: writing to any file fails.
                resource.prlimit(member.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        written = [process.log.stat().st_size for process in system.processes]
        # Something to log: the breaker's moves.
        system.simulator.control({"kind": "status", "status": 503})
        system.wait(lambda: system.scalar("SELECT state FROM gateway") == "open", 30)
        assert system.call("POST", "/client/", {"phone": "+79031234567"}).status_code == 201
        system.simulator.control(LATENCY)
        system.check(mailing, "no log can be written", repeats=0)
        assert [process.log.stat().st_size for process in system.processes] == written


def leading(system: System) -> Process:
    """The dispatcher that leads now."""
    leader = system.leader()
    assert leader
    return leader


def stop(system: System, times: int) -> float:
    """End the sender as Docker does, or as a terminal that signals everybody more than once; the seconds it took."""
    sender = system.senders[0]
    members = family(sender.pid or 0)
    began = time.monotonic()
    for _ in range(times):
        for member in members if times > 1 else members[:1]:
            member.send(signal.SIGTERM)
        time.sleep(0.3 * (times - 1))
    assert wait_until(lambda: sender.pid is None, 28)  # Docker Compose would kill it after 40 seconds.
    assert sender.exit_code == 0
    assert system.logged("child_killed") == 0
    return time.monotonic() - began


def freeze_inside_a_transaction(system: System, process: Running) -> None:
    """SIGSTOP it at a moment when PostgreSQL waits for its next statement and rows are locked."""
    ports = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND client_port = ANY(:ports)"
    for _ in range(2_000):
        process.send(signal.SIGSTOP)
        time.sleep(0.002)  # For the statement that is running to end.
        if system.scalar(ports + " AND backend_xid IS NOT NULL", ports=local_ports(process)):
            return
        process.send(signal.SIGCONT)
        time.sleep(0.005)
    raise AssertionError("it never was inside a transaction")


def local_ports(process: Running) -> list[int]:
    """The local ports of a process's TCP connections."""
    inodes = set()
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(descriptor))
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [int(line[1].rpartition(":")[2], 16) for line in lines if f"socket:[{line[9]}]" in inodes]

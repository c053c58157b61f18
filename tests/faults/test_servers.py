"""RabbitMQ and PostgreSQL are killed, wiped, cut off and filled up while we send."""

from __future__ import annotations

import time

import pytest

from tests.conftest import SystemMaker
from tests.databases import can_be_full
from tests.system import CONCURRENCY, SENDING_PROCESSES, System, at_this_load, cpu_seconds

MESSAGES = 20_000
HALFWAY = 7_000
ON_THE_WIRE = CONCURRENCY * SENDING_PROCESSES


@pytest.mark.faults
def test_a_killed_rabbitmq_delays_and_repeats_nothing(make_system: SystemMaker) -> None:
    with make_system() as system:
        mailing = system.start_mailing(MESSAGES)
        system.wait_for_accepted(HALFWAY)
        system.servers.rabbitmq.kill()
        system.servers.rabbitmq.start()
        system.check(mailing, "kill -9 of RabbitMQ", note=back_at_work(system))


@pytest.mark.faults
def test_a_wiped_rabbitmq_loses_nothing(make_system: SystemMaker) -> None:
    with make_system() as system:
        mailing = system.start_mailing(MESSAGES)
        system.wait_for_accepted(HALFWAY)
        system.servers.rabbitmq.kill()
        system.servers.rabbitmq.wipe()
        system.servers.rabbitmq.start()
        system.check(mailing, "RabbitMQ killed, all its data wiped", note=back_at_work(system))


@pytest.mark.faults
def test_rabbitmq_in_memory_alarm_delays_and_repeats_nothing(make_system: SystemMaker) -> None:
    rabbitmq_limit = "set_vm_memory_high_watermark"
    with make_system() as system:
        mailing = system.start_mailing(MESSAGES)
        system.wait_for_accepted(HALFWAY)
        system.servers.rabbitmq.control(rabbitmq_limit, "0.0001")
        time.sleep(15)
        system.servers.rabbitmq.control(rabbitmq_limit, "0.4")
        system.check(mailing, "RabbitMQ in memory alarm for 15 s", note=back_at_work(system))


def test_an_import_that_rabbitmq_does_not_take_holds_up_no_mailing(make_system: SystemMaker) -> None:
    with make_system() as system:
        system.servers.rabbitmq.control("set_vm_memory_high_watermark", "0.0001")
        try:
            assert system.upload(b"phone\n+79170000001\n").status_code == 202
            # It is named, and published from now on.
            system.wait(lambda: system.scalar("SELECT count(*) FROM import_job WHERE lease_until IS NOT NULL") == 1)
            mailing = system.start_mailing(10)
            seconds = system.wait(lambda: system.scalar("SELECT count(*) FROM message") == 10)
        finally:
            system.servers.rabbitmq.control("set_vm_memory_high_watermark", "0.4")
        assert seconds < at_this_load(5), seconds
        system.check(mailing, "an import while RabbitMQ is in memory alarm", note=f"written after {seconds:.1f} s")
        system.wait(lambda: system.scalar("SELECT state FROM import_job") == "completed")


def test_a_killed_postgresql_repeats_nothing_that_was_recorded(make_system: SystemMaker) -> None:
    with make_system() as system:
        mailing = system.start_mailing(MESSAGES)
        system.wait_for_accepted(HALFWAY)
        system.servers.postgresql.kill()
        system.servers.postgresql.start()
        # The senders keep in memory what they could not record.
        system.check(mailing, "kill -9 of PostgreSQL", note=back_at_work(system))


@pytest.mark.faults
def test_postgresql_away_for_longer_than_the_leases(make_system: SystemMaker) -> None:
    with make_system() as system:
        mailing = system.start_mailing(MESSAGES)
        system.wait_for_accepted(HALFWAY)
        system.servers.postgresql.kill()
        before = [cpu_seconds(process) for process in system.processes]
        time.sleep(14)
        used = [cpu_seconds(process) - earlier for process, earlier in zip(system.processes, before, strict=True)]
        system.servers.postgresql.start()
        system.check(mailing, "PostgreSQL away for 14 s", repeats=ON_THE_WIRE, note=back_at_work(system))
        assert max(used) < 14 * 0.3, used  # They wait, they do not spin.


@pytest.mark.faults
@pytest.mark.parametrize("seconds", [6, 16])
def test_a_network_to_postgresql_that_swallows_everything(make_system: SystemMaker, seconds: int) -> None:
    with make_system(through_proxy=True) as system:
        assert system.proxy
        mailing = system.start_mailing(MESSAGES)
        system.wait_for_accepted(HALFWAY)
        system.proxy.stall()
        time.sleep(seconds)
        system.proxy.mend()
        system.check(
            mailing, f"network to PostgreSQL silent for {seconds} s", repeats=ON_THE_WIRE, note=back_at_work(system)
        )


@pytest.mark.faults
def test_a_network_to_postgresql_that_swallows_everything_and_then_breaks(make_system: SystemMaker) -> None:
    with make_system(through_proxy=True) as system:
        assert system.proxy
        mailing = system.start_mailing(MESSAGES)
        system.wait_for_accepted(HALFWAY)
        system.proxy.stall()
        time.sleep(12)
        system.proxy.cut()
        time.sleep(4)
        system.proxy.mend()
        system.check(mailing, "network to PostgreSQL silent, then cut", repeats=ON_THE_WIRE, note=back_at_work(system))


@pytest.mark.faults
def test_connections_to_postgresql_that_are_cut_again_and_again(make_system: SystemMaker) -> None:
    with make_system(through_proxy=True) as system:
        assert system.proxy
        mailing = system.start_mailing(MESSAGES)
        system.wait_for_accepted(2_000)
        for _ in range(5):
            system.proxy.cut()
            time.sleep(0.7)
            system.proxy.mend()
            time.sleep(2.5)
        # Each cut hits transactions under way; a commit whose answer was lost is not done twice.
        system.check(mailing, "connections to PostgreSQL cut five times")


@pytest.mark.faults
def test_a_full_disk_under_postgresql_is_waited_out(make_system: SystemMaker) -> None:
    with make_system() as system:
        system.execute(can_be_full("message", "batch"))
        mailing = system.start_mailing(MESSAGES)
        system.wait_for_accepted(HALFWAY)
        system.execute("UPDATE disk SET is_full = true")
        time.sleep(6)
        system.execute("UPDATE disk SET is_full = false")
        system.check(mailing, "disk full under PostgreSQL for 6 s", note=back_at_work(system))


@pytest.mark.faults
def test_an_idle_system_gets_over_a_restart_of_both_servers_by_itself(make_system: SystemMaker) -> None:
    with make_system() as system:
        idle = cpu_share(system, 10)
        system.servers.postgresql.stop()
        system.servers.rabbitmq.stop()
        away = cpu_share(system, 10)
        system.servers.postgresql.start()
        system.servers.rabbitmq.start()
        mailing = system.start_mailing(2_000)
        shares = f"{idle:.0%} of a core idle, {away:.0%} with both away"
        system.check(mailing, "both servers restarted while idle", note=f"all processes together: {shares}")
        # Five processes; a loop that spins would take a whole core.
        assert idle < 0.5, shares
        assert away < 0.5, shares


def cpu_share(system: System, seconds: float) -> float:
    """The share of one core that the dispatchers and senders use together."""
    processes = system.dispatchers + system.senders
    before = sum(cpu_seconds(process) for process in processes)
    time.sleep(seconds)
    return (sum(cpu_seconds(process) for process in processes) - before) / seconds


def back_at_work(system: System) -> str:
    """How long after now the gateway hears of us, told as a note; the fault has just ended."""
    ended_at = time.time()
    requests = system.simulator.received()["requests"]
    system.simulator.wait_for(lambda seen: seen["requests"] > requests + 500 or seen["accepted"] >= MESSAGES, 120)
    return f"back at work {time.time() - ended_at:.1f} s after the end of the fault"

"""Everything at once, at random: the seed is printed and MIX_SEED repeats it."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable

import pytest

from tests.conftest import SystemMaker
from tests.system import CONCURRENCY, LATENCY, SENDING_PROCESSES, System
from tools.processes import family

Fault = Callable[["Mix"], None]


class Mix:
    """Breaks one thing after another, and mends it."""

    def __init__(self, system: System, seed: int) -> None:
        self.system = system
        self.random = random.Random(seed)
        self.repeats = 0  # what the faults so far may have caused
        self.done: list[str] = []

    def go_on_for(self, seconds: float, faults: list[Fault]) -> None:
        """Choose faults until the time is up; each comes once before any comes again."""
        end = time.monotonic() + seconds
        left: list[Fault] = []
        while time.monotonic() < end:
            left = left or self.random.sample(faults, len(faults))
            fault = left.pop()
            self.done.append(fault.__name__)
            tell(f"{time.strftime('%X')} {fault.__name__}")
            fault(self)
            time.sleep(self.random.uniform(0.5, 3.0))

    def calm(self) -> None:
        """Have every process run again."""
        for process in self.system.processes:
            for member in family(process.pid) if process.pid else ():
                member.send(signal.SIGCONT)
            if process.pid is None:
                process.launch()
        self.system.simulator.control(LATENCY)

    def spell(self, longest: float) -> None:
        """Let the fault last."""
        time.sleep(self.random.uniform(0.2, longest))


def tell(line: str) -> None:
    """Leave a trace that pytest shows when the test fails."""
    sys.stdout.write(f"{line}\n")


def kill_a_sending_process(mix: Mix) -> None:
    children = [child for n in range(len(mix.system.senders)) for child in mix.system.sending_children(n)]
    if children:
        mix.random.choice(children).send(signal.SIGKILL)
        mix.repeats += CONCURRENCY


def kill_a_sender(mix: Mix) -> None:
    sender = mix.random.choice(mix.system.senders)
    sender.kill()
    mix.repeats += CONCURRENCY * SENDING_PROCESSES
    mix.spell(3)
    sender.launch()


def stop_a_sender(mix: Mix) -> None:
    sender = mix.random.choice(mix.system.senders)
    sender.stop(30)
    sender.launch()


def freeze_a_sending_process(mix: Mix) -> None:
    children = mix.system.sending_children(mix.random.randrange(len(mix.system.senders)))
    if children:
        child = mix.random.choice(children)
        child.send(signal.SIGSTOP)
        mix.repeats += CONCURRENCY
        mix.spell(14)
        child.send(signal.SIGCONT)


def kill_a_dispatcher(mix: Mix) -> None:
    dispatcher = mix.random.choice(mix.system.dispatchers)
    dispatcher.kill()
    mix.spell(2)
    dispatcher.launch()


def freeze_a_dispatcher(mix: Mix) -> None:
    dispatcher = mix.random.choice(mix.system.dispatchers)
    dispatcher.send(signal.SIGSTOP)
    mix.spell(8)
    dispatcher.send(signal.SIGCONT)


def kill_rabbitmq(mix: Mix) -> None:
    mix.system.servers.rabbitmq.kill()
    mix.spell(3)
    mix.system.servers.rabbitmq.start()


def wipe_rabbitmq(mix: Mix) -> None:
    mix.system.servers.rabbitmq.kill()
    mix.system.servers.rabbitmq.wipe()
    mix.system.servers.rabbitmq.start()


def kill_postgresql(mix: Mix) -> None:
    # The senders keep what they could not record; only a lease that runs out meanwhile makes it a repeat.
    mix.system.servers.postgresql.kill()
    mix.repeats += CONCURRENCY * SENDING_PROCESSES * len(mix.system.senders)
    mix.spell(12)
    mix.system.servers.postgresql.start()


def silence_the_network(mix: Mix) -> None:
    assert mix.system.proxy
    mix.system.proxy.stall()
    mix.repeats += CONCURRENCY * SENDING_PROCESSES * len(mix.system.senders)
    mix.spell(14)
    if mix.random.random() < 0.5:
        mix.system.proxy.cut()
        mix.spell(2)
    mix.system.proxy.mend()


def cut_the_network(mix: Mix) -> None:
    assert mix.system.proxy
    mix.system.proxy.cut()
    mix.spell(2)
    mix.system.proxy.mend()


def shut_the_gateway(mix: Mix) -> None:
    # What it had accepted and not yet answered is lost with the connections.
    mix.repeats += CONCURRENCY * SENDING_PROCESSES * len(mix.system.senders)
    mix.system.simulator.add({"kind": "refuse", "for_seconds": mix.random.uniform(0.5, 6)})


def slow_the_gateway(mix: Mix) -> None:
    mix.system.simulator.add({"kind": "latency", "milliseconds": 1500, "for_seconds": mix.random.uniform(0.5, 6)})


def make_the_gateway_fail(mix: Mix) -> None:
    share = mix.random.uniform(0.1, 1.0)
    mix.system.simulator.add(
        {"kind": "status", "status": 500, "share": share, "for_seconds": mix.random.uniform(0.5, 6)}
    )


QUICK: list[Fault] = [
    kill_a_sending_process,
    kill_a_dispatcher,
    cut_the_network,
    shut_the_gateway,
    make_the_gateway_fail,
    slow_the_gateway,
]
ALL: list[Fault] = [
    *QUICK,
    kill_a_sender,
    stop_a_sender,
    freeze_a_sending_process,
    freeze_a_dispatcher,
    kill_rabbitmq,
    wipe_rabbitmq,
    kill_postgresql,
    silence_the_network,
]


@pytest.mark.timeout(600)  # longer than its own patience
def test_a_short_mix_of_faults(make_system: SystemMaker) -> None:
    break_at_random(make_system, 10, QUICK, 10_000)


@pytest.mark.faults
def test_two_minutes_of_all_faults(make_system: SystemMaker) -> None:
    break_at_random(make_system, 120, ALL, 150_000)


def break_at_random(make_system: SystemMaker, seconds: float, faults: list[Fault], messages: int) -> None:
    """Run a mailing through a mix of faults, two of every process."""
    seed = int(os.environ.get("MIX_SEED") or random.SystemRandom().randrange(1_000_000))
    tell(f"MIX_SEED={seed}")
    with make_system(dispatchers=2, senders=2, through_proxy=True) as system:
        mailing = system.start_mailing(messages)
        system.wait_for_accepted(500)
        mix = Mix(system, seed)
        mix.go_on_for(seconds, faults)
        mix.calm()
        system.check(
            mailing,
            f"{len(mix.done)} random faults in {seconds} s (seed {seed})",
            repeats=mix.repeats,
            patience=400,
        )

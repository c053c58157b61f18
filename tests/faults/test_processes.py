"""Our own processes are killed, frozen and ended while they send."""

from __future__ import annotations

import signal
import time

import pytest

from tests.faults.conftest import SystemMaker
from tests.system import CONCURRENCY, SENDING_PROCESSES
from tools.processes import wait_until

MESSAGES = 20_000
HALFWAY = 7_000


def test_a_killed_sending_process_repeats_at_most_what_was_on_the_wire(make_system: SystemMaker) -> None:
    with make_system() as system:
        mailing = system.start_mailing(MESSAGES)
        system.wait_for_accepted(HALFWAY)
        system.sending_children()[0].send(signal.SIGKILL)
        system.check(mailing, "kill -9 of a sending process", repeats=CONCURRENCY)
        assert len(system.sending_children()) == SENDING_PROCESSES

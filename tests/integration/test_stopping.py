"""Signals, as processes of ours hear them."""

from __future__ import annotations

import signal
import subprocess
import sys

# It is in the middle of asking for the event, over and over, when the signal comes.
PROGRAM = """
import os
from common.stopping import stop_signal
stopping = stop_signal()
print("ready", flush=True)
while not stopping.wait(0):
    pass
os._exit(0)
"""


def test_signals_end_a_process_whatever_it_is_doing() -> None:
    for _ in range(30):
        with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE) as program:
            assert program.stdout
            assert program.stdout.readline() == b"ready\n"
            for _ in range(3):
                program.send_signal(signal.SIGTERM)
            try:
                assert program.wait(timeout=10) == 0
            finally:
                program.kill()

"""`python -m sender worker`: a few sending processes and one importing process, restarted when they die.

Dramatiq's own command line ends all processes when one is killed, and aborts running jobs on a second SIGTERM.
"""

from __future__ import annotations

import subprocess
import sys
import time

import structlog

from common.stopping import stop_signal
from sender.worker import DRAIN_SECONDS

log = structlog.get_logger(__name__)

RESTART_PAUSES_SECONDS = (0.2, 5.0)  # the first; doubled up to the last while a child dies young
YOUNG_SECONDS = 10.0


class Child:
    """One child process, by the role it is started with."""

    def __init__(self, role: str) -> None:
        self.role = role
        self._pause = RESTART_PAUSES_SECONDS[0]
        self._start_at = 0.0
        self._started_at = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def look_after(self, now: float) -> None:
        """Start the child if it is not there and its time has come; note its death."""
        if self._process is not None and self._process.poll() is not None:
            log.error("child_died", role=self.role, exit_code=self._process.returncode)
            self._process = None
            young = now - self._started_at < YOUNG_SECONDS
            self._pause = min(self._pause * 2, RESTART_PAUSES_SECONDS[1]) if young else RESTART_PAUSES_SECONDS[0]
            self._start_at = now + self._pause
        if self._process is None and now >= self._start_at:
            self._process = subprocess.Popen([sys.executable, "-m", "sender", self.role])
            self._started_at = now

    def terminate(self) -> None:
        """Ask the child to end in good order."""
        if self._process is not None:
            self._process.terminate()

    def wait(self, deadline: float) -> None:
        """Wait for its end; kill it at the deadline (monotonic)."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.error("child_killed", role=self.role)
            self._process.kill()
            self._process.wait()


def run(processes: int) -> None:
    """Keep the children running until SIGTERM or SIGINT, then end them in good order."""
    stopping = stop_signal()
    children = [Child("batches") for _ in range(processes)] + [Child("imports")]
    while not stopping.wait(0.2):
        for child in children:
            child.look_after(time.monotonic())
    for child in children:
        child.terminate()
    deadline = time.monotonic() + DRAIN_SECONDS + 5
    for child in children:
        child.wait(deadline)

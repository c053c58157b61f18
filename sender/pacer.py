"""The rate limit: sending slots leased from one database row, exact for any number of senders."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from db.queries import gateway

log = structlog.get_logger(__name__)

# A lease covers this much time: fifty small updates a second at full rate over all senders, whatever the rate.
LEASE_SECONDS = 0.02
# A slot that was not used in time is lost: catching up would break the limit in the second where it happens.
STALE_SECONDS = 0.03


class Pacer:
    """Hands out the moments at which calls may start. `rate` is in messages per second, None = no limit."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.demand = 0  # calls that wait for a slot: no more are leased, those left over would be lost to everyone
        self.wake: Callable[[], None] = lambda: None  # called when there are new slots
        self.rate: float | None = None
        self._slots: deque[float] = deque()  # monotonic times
        self._wanted = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="pacer", daemon=True)

    def start(self) -> None:
        """Start the leasing thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the leasing thread."""
        self._stopped = True
        self._wanted.set()

    def take(self, most: int, now: float) -> int:
        """Take the permission to start calls at this monotonic time; how many, up to `most`."""
        rate = self.rate
        if rate is None:
            return most
        stale = now - max(STALE_SECONDS, 1.0 / rate)
        while self._slots and self._slots[0] < stale:
            self._slots.popleft()
        if len(self._slots) * 2 <= self._lease_size(rate) and len(self._slots) < self.demand:
            self._wanted.set()
        taken = 0
        while taken < most and self._slots and self._slots[0] <= now:
            self._slots.popleft()
            taken += 1
        return taken

    def give_back(self, count: int, now: float) -> None:
        """Return permissions that were taken now and not used."""
        if self.rate is not None:
            self._slots.extendleft([now] * count)

    def wait_seconds(self, now: float) -> float:
        """Seconds until `take` may have something again; `wake` is called when there are new slots, too."""
        return self._slots[0] - now if self._slots else 0.5

    @staticmethod
    def _lease_size(rate: float) -> int:
        return max(1, round(rate * LEASE_SECONDS))

    def _run(self) -> None:
        try:
            self._lease_until_stopped()
        except Exception:
            # Without slots no call of the process ever starts: end it, its supervisor starts a new one.
            log.exception("pacer_failed")
            os._exit(70)

    def _lease_until_stopped(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            if self._stopped:
                return
            rate = self.rate
            if rate is None:
                continue
            try:
                self._lease(rate)
            except SQLAlchemyError:
                log.warning("slot_lease_failed")
                time.sleep(0.5)
                self._wanted.set()

    def _lease(self, rate: float) -> None:
        count = min(self._lease_size(rate), self.demand - len(self._slots))
        if count <= 0:
            return
        with self._engine.begin() as connection:
            first = gateway.lease_slots(connection, count, rate)
        start = time.monotonic() + first
        self._slots.extend(start + index / rate for index in range(count))
        self.wake()

"""A sender process's connection with the world: it beats, renews leases, hears of withdrawals, pauses and the pace."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

import psycopg2
import psycopg2.extensions
import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from db.models import GatewayState
from db.queries import batches, gateway, notifications, processes
from sender.clock import DatabaseClock
from sender.delivery import Delivery
from sender.pacer import Pacer

log = structlog.get_logger(__name__)

INTERVAL_SECONDS = 0.5
WITHDRAWN_MEMORY_SECONDS = 10.0


class Keeper:
    """Keeps the deliveries of this process true to the database, twice a second and on `withdrawn` notifications."""

    def __init__(
        self,
        engine: Engine,
        process_id: str,
        capacity: int,
        clock: DatabaseClock,
        pacer: Pacer,
        rate_limit: float | None,
        wake: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._process_id = process_id
        self._capacity = capacity
        self._clock = clock
        self._pacer = pacer
        self._rate_limit = rate_limit
        self._wake = wake
        self._deliveries: dict[int, Delivery] = {}
        self._withdrawn: deque[tuple[float, int]] = deque()  # when, client id
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.ready = threading.Event()  # set once the database was heard
        self.gateway_closed = True  # the breaker is: traffic flows; otherwise only probes go
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and sign off."""
        self._stopped.set()
        self._thread.join(timeout=5)

    def retire(self) -> None:
        """Offer no capacity any more: the dispatcher should send nothing new."""
        self._capacity = 0

    def add(self, delivery: Delivery) -> bool:
        """Keep this delivery's lease; False if another thread brought one of the same batch before."""
        with self._lock:
            # A client may have been withdrawn after the batch was read and before it was added here.
            delivery.withdrawn.update(client_id for _, client_id in self._withdrawn)
            return self._deliveries.setdefault(delivery.batch_id, delivery) is delivery

    def not_kept(self, batch_ids: Iterable[int]) -> list[int]:
        """Those of these batches that it has no delivery of."""
        with self._lock:
            return [batch_id for batch_id in batch_ids if batch_id not in self._deliveries]

    def remove(self, delivery: Delivery) -> None:
        """Let go of it."""
        with self._lock:
            self._deliveries.pop(delivery.batch_id, None)

    def wait_for_all(self, timeout: float) -> None:
        """Wait until every delivery is done, so many seconds at the most."""
        deadline = time.monotonic() + timeout
        with self._lock:
            deliveries = list(self._deliveries.values())
        for delivery in deliveries:
            delivery.done.wait(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        try:
            self._keep_until_stopped()
        except Exception:
            # A process that does not beat is given nothing to do: end it, its supervisor starts a new one.
            log.exception("keeper_failed")
            os._exit(70)

    def _keep_until_stopped(self) -> None:
        while not self._stopped.is_set():
            try:
                self._keep()
            except (SQLAlchemyError, psycopg2.Error, OSError):
                log.warning("keeper_lost_database")
                self._stopped.wait(INTERVAL_SECONDS)
        try:
            with self._engine.begin() as connection:
                processes.leave(connection, self._process_id)
        except SQLAlchemyError:
            log.warning("sign_off_failed")

    def _keep(self) -> None:
        """Beat on one connection until stopped; raises when the connection breaks."""
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            raw = connection.connection.driver_connection
            assert raw is not None
            connection.exec_driver_sql(f"LISTEN {notifications.WITHDRAWN}")
            self._start_afresh()
            while not self._stopped.is_set():
                self._beat(connection)
                self._listen(raw, INTERVAL_SECONDS)

    def _start_afresh(self) -> None:
        """After the connection was lost, notifications may have been missed: what is not on the wire is read again."""
        with self._lock:
            for delivery in self._deliveries.values():
                delivery.stop()

    def _beat(self, connection: Connection) -> None:
        asked_at = time.monotonic()
        processes.beat(connection, self._process_id, "sender", self._capacity)
        read_at = time.monotonic()
        state = gateway.read(connection)
        self._clock.sync(state.now, read_at)
        rates = [rate for rate in (self._rate_limit, state.pace) if rate]
        self._pacer.rate = min(rates) if rates else None
        self.gateway_closed = state.state is GatewayState.CLOSED
        self.ready.set()
        with self._lock:
            deliveries = dict(self._deliveries)
        if deliveries:
            standings = batches.renew(connection, self._process_id, list(deliveries))
            for batch_id, delivery in deliveries.items():
                delivery.renewed(standings.get(batch_id), batches.TAKEN_LEASE_SECONDS, asked_at)
                if not self.gateway_closed and not delivery.terms.is_probe:
                    delivery.stop()
        self._wake()

    def _listen(self, raw: psycopg2.extensions.connection, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not self._stopped.is_set():
            for payload in notifications.heard(raw, left):
                self._withdraw(payload)

    def _withdraw(self, payload: str) -> None:
        now = time.monotonic()
        client_ids = [int(client_id) for client_id in payload.split(",") if client_id]
        with self._lock:
            while self._withdrawn and self._withdrawn[0][0] < now - WITHDRAWN_MEMORY_SECONDS:
                self._withdrawn.popleft()
            self._withdrawn.extend((now, client_id) for client_id in client_ids)
            for delivery in self._deliveries.values():
                delivery.withdrawn.update(client_ids)

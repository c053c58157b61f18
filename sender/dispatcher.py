"""The dispatcher: one active, standbys take over. It starts mailings, writes and releases their messages, sweeps.

Three loops on three threads: `release` must answer a finished batch within milliseconds, `housekeeping` writes chunks
of messages for a hundred milliseconds each, `imports` may wait half a minute for a RabbitMQ that hangs. Every statement
is guarded by the rows themselves, so that a frozen dispatcher that wakes beside its successor does no harm.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import psycopg2
import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from common.settings import Settings
from common.stopping import stop_signal
from db.engine import cause_name, make_engine
from db.models import GatewayState
from db.queries import audience, batches, gateway, imports, notifications, processes
from db.queries.planned import BATCH_SIZE
from sender import breaker
from sender.actors import SEND_BATCHES
from sender.broker import BATCHES_QUEUE, IMPORTS_QUEUE, SafeRabbitmqBroker, connect, publish
from sender.gateway_watch import GatewayWatch
from sender.imports import ACTOR as IMPORT_CLIENTS
from sender.places import in_turn, places, share_of_place
from sender.worker import IDLE_TRANSACTION_SECONDS, process_name

log = structlog.get_logger(__name__)
_T = TypeVar("_T")

LEAD_ROLE = "dispatcher"
LEAD_LEASE_SECONDS = 4.0
LEAD_RENEWAL_SECONDS = 0.5
POLL_SECONDS = 0.5
# Rounds of releasing begin no more often. While more is due than there is room for, each then releases several batches
# for the same look around.
RELEASE_SECONDS = 0.02
BUSY_RELEASE_SECONDS = 0.1
# After the database or this dispatcher was away, workers get this long to record what they hold before the sweep.
SWEEP_GRACE_SECONDS = 5.0
TIDY_SECONDS = 10.0


class Dispatcher:
    """The loops, with what they share."""

    def __init__(self, engine: Engine, broker: SafeRabbitmqBroker, rate_limit: float | None) -> None:
        self._engine = engine
        self._broker = broker
        self._gateway = GatewayWatch(self._engine, rate_limit)
        self._name = process_name("dispatcher")
        self._stopping = threading.Event()
        self._leading = threading.Event()
        self._release_wanted = threading.Event()
        self._housekeeping_wanted = threading.Event()
        self._imports_wanted = threading.Event()
        self._heard_news = False  # for housekeeping, and then for releasing
        self._sweep_from = 0.0
        self._next_tidy = 0.0
        self._last_served: dict[int, int] = {}  # mailing id: the number of the turn in which it got its last batch
        self._turn = 0
        self._was_idle = True  # no batch was under way in the last round of releasing

    def run(self, stopping: threading.Event) -> None:
        """Work until told to stop; then let a standby go on at once."""
        self._stopping = stopping
        threads = [
            threading.Thread(target=self._repeat, args=(work, name), name=name)
            for name, work in (
                ("lead", self._lead),
                ("listen", self._listen),
                ("release", self._release_loop),
                ("housekeeping", self._housekeeping_loop),
                ("imports", self._imports_loop),
            )
        ]
        for thread in threads:
            thread.start()
        stopping.wait()
        self._wake()
        for thread in threads:
            thread.join(timeout=10)
        try:
            self._commit(lambda connection: processes.drop_lead(connection, LEAD_ROLE, self._name))
            self._commit(lambda connection: processes.leave(connection, self._name))
        except SQLAlchemyError:
            log.warning("sign_off_failed")
        log.info("dispatcher_stopped", process=self._name)

    def _repeat(self, work: Callable[[], None], name: str) -> None:
        """Run a loop; when the database fails it, wait and run it again."""
        while not self._stopping.is_set():
            try:
                work()
            except (SQLAlchemyError, psycopg2.Error, OSError) as error:
                log.warning("database_away", loop=name, error=cause_name(error))
                self._sweep_from = time.monotonic() + SWEEP_GRACE_SECONDS
                self._stopping.wait(0.5)
            except Exception:
                log.exception("loop_failed", loop=name)
                self._stopping.wait(1.0)

    def _commit(self, work: Callable[[Connection], _T]) -> _T:
        with self._engine.begin() as connection:
            return work(connection)

    def _wake(self) -> None:
        self._release_wanted.set()
        self._housekeeping_wanted.set()
        self._imports_wanted.set()

    # Leading and listening ----------------------------------------------------------------------------------------

    def _lead(self) -> None:
        while not self._stopping.wait(LEAD_RENEWAL_SECONDS if self._leading.is_set() else LEAD_RENEWAL_SECONDS / 2):
            try:
                won = self._commit(self._renew_lead)
            except BaseException:
                self._leading.clear()
                raise
            if won and not self._leading.is_set():
                log.info("dispatcher_leads", process=self._name)
                self._sweep_from = time.monotonic() + SWEEP_GRACE_SECONDS
                self._leading.set()
                self._wake()
            elif not won and self._leading.is_set():
                log.warning("dispatcher_lost_lead", process=self._name)
                self._leading.clear()

    def _renew_lead(self, connection: Connection) -> bool:
        processes.beat(connection, self._name, "dispatcher", 0)
        return processes.hold_lead(connection, LEAD_ROLE, self._name, LEAD_LEASE_SECONDS)

    def _listen(self) -> None:
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            raw = connection.connection.driver_connection
            assert raw is not None
            connection.exec_driver_sql(f"LISTEN {notifications.WORK}")
            self._wake()
            while not self._stopping.is_set():
                for payload in set(notifications.heard(raw, POLL_SECONDS)):
                    for wanted in self._concerned(payload):
                        wanted.set()

    def _concerned(self, payload: str) -> tuple[threading.Event, ...]:
        """The loops that have something to do at such a notification."""
        if payload == batches.ROOM:
            return (self._release_wanted,)
        if payload == imports.IMPORT:
            return (self._imports_wanted,)
        self._heard_news = True
        return (self._housekeeping_wanted,)

    def _wait(self, wanted: threading.Event, seconds: float) -> None:
        wanted.wait(seconds)
        wanted.clear()

    # Releasing ----------------------------------------------------------------------------------------------------

    def _release_loop(self) -> None:
        while not self._stopping.is_set():
            self._wait(self._release_wanted, POLL_SECONDS)
            if self._leading.is_set():
                began = time.monotonic()
                pause = BUSY_RELEASE_SECONDS if self.release_round() else RELEASE_SECONDS
                self._stopping.wait(began + pause - time.monotonic())

    def release_round(self) -> bool:
        """Release what is due and there is room for; whether more is due."""
        self._gateway.look()
        if self._gateway.state is not GatewayState.CLOSED:
            self._probe()
            return False
        with self._engine.begin() as connection:
            room, size = places(processes.capacity(connection), self._gateway.rate)
            under_way = batches.under_way(connection)
            held: defaultdict[int, float] = defaultdict(float)
            for earlier in under_way:
                held[earlier.mailing_id] += 0 if earlier.is_begun else share_of_place(earlier.messages, size)
            # A small batch that goes alone keeps a thread as busy as eight together do. What finds all busy waits here,
            # not in the queue: then it goes together, and the next mailing does not wait behind it.
            queued = sum(not earlier.is_taken for earlier in under_way)
            has_room = queued < room and sum(held.values()) < room
            due = audience.due(connection) if has_room else {}
        if not held and not self._was_idle:
            self._housekeeping_wanted.set()  # The last batch is back: a mailing may be complete.
        while not self._stopping.is_set() and (chosen := in_turn(due, held, self._last_served, room)):
            together = [mailing_id for mailing_id in chosen if due[mailing_id] == due[chosen[0]]]
            released = self._release(together, size, as_planned=due[chosen[0]] and size == BATCH_SIZE)
            if released is None:
                break  # Nothing else could be published either, and between rounds the gateway is looked at.
            for batch in released:
                held[batch.mailing_id] += share_of_place(batch.messages, size)
            exhausted = {batch.mailing_id for batch in released if not batch.has_more}
            if len(exhausted) == len(released):  # Who got nothing has nothing either, or what is larger than was left.
                exhausted = set(together)
            due = {mailing_id: has_plan for mailing_id, has_plan in due.items() if mailing_id not in exhausted}
        self._was_idle = not held
        return bool(due) or not has_room

    def _release(
        self, mailing_ids: Sequence[int], size: int, *, as_planned: bool = False, is_probe: bool = False
    ) -> list[batches.Released] | None:
        """Release and publish batches of `size` messages together, if any are due; None when the broker is away."""

        def work(connection: Connection) -> list[batches.Released]:
            planned = batches.release_planned(connection, mailing_ids, size) if as_planned else []
            return planned or batches.release(connection, mailing_ids, size, is_probe=is_probe)

        released = self._commit(work)
        ids = [batch.id for batch in released]
        if ids and not self._publish(BATCHES_QUEUE, SEND_BATCHES, *ids):
            # It may arrive all the same: then it finds no batches of these numbers.
            self._commit(partial(batches.withdraw, batch_ids=ids))
            self._stopping.wait(1.0)
            return None
        for batch in released:
            self._turn += 1
            self._last_served[batch.mailing_id] = self._turn
            log.info(
                "batch_released",
                batch_id=batch.id,
                mailing_id=batch.mailing_id,
                messages=batch.messages,
                probe=is_probe,
            )
        return released

    def _publish(self, queue: str, actor: str, *numbers: int) -> bool:
        try:
            publish(self._broker, queue, actor, *numbers)
        except Exception as error:  # noqa: BLE001
            # Not only Dramatiq's and pika's errors: a hung handshake and a failing name look-up raise their own.
            log.warning("broker_away", error=type(error).__name__)
            del self._broker.connection
            return False
        return True

    def _probe(self) -> None:
        """Release a single message to find out whether the gateway is back."""
        interval = breaker.probe_seconds(self._gateway.state)
        due = self._commit(audience.due)
        if not due:
            self._commit(self._gateway.forget_trouble)
            return
        if interval is None or not self._commit(partial(gateway.claim_probe, interval_seconds=interval)):
            return
        lately = self._commit(partial(gateway.recent, seconds=breaker.WINDOWS_SECONDS[-1]))
        mailing_id = breaker.mailing_to_probe(due, lately, self._last_served)
        self._release([mailing_id], 1, is_probe=True)

    # Housekeeping -------------------------------------------------------------------------------------------------

    def _housekeeping_loop(self) -> None:
        wait = 0.0
        while not self._stopping.is_set():
            self._wait(self._housekeeping_wanted, wait)
            heard_news, self._heard_news = self._heard_news, False
            wait = self.housekeeping_round() if self._leading.is_set() else POLL_SECONDS
            if heard_news:  # Only now: there is nothing to release of a mailing that has just been made.
                self._release_wanted.set()

    def housekeeping_round(self) -> float:
        """One step of everything that there is to do; the seconds until there is more."""
        looked_at = time.monotonic()
        chores = self._commit(audience.chores)
        unwritten = sorted([*chores.unwritten, *self._start()] if chores.starts else chores.unwritten)
        more = self._materialise(unwritten)
        # Before the rest of these mailings is settled or removed; another round does it where this was all.
        more |= chores.stopped and self._withdraw_stopped()
        more |= self._settle(chores.ended)
        more |= chores.rescheduled and self._commit(audience.reschedule_chunk)
        for mailing_id in chores.deleted:
            more |= self._commit(partial(audience.remove_chunk, mailing_id=mailing_id))
        if chores.lost:
            self._sweep()
        if chores.completes or unwritten or chores.ended:  # What was just written or settled may have been all.
            self._complete()
        if chores.crowded:
            self._commit(partial(audience.merge_counts, mailing_ids=chores.crowded))
        if time.monotonic() >= self._next_tidy:
            self._next_tidy = time.monotonic() + TIDY_SECONDS
            self._tidy()
        next_start = POLL_SECONDS if chores.next_start is None else looked_at + chores.next_start - time.monotonic()
        return 0.0 if more else max(0.0, min(POLL_SECONDS, next_start))

    def _start(self) -> list[int]:
        started = self._commit(audience.start_due)
        for mailing_id in started:
            log.info("mailing_started", mailing_id=mailing_id)
        return started

    def _sweep(self) -> None:
        if time.monotonic() < self._sweep_from:
            return
        swept = self._commit(batches.sweep)
        if swept:
            log.warning("leases_ran_out", messages=swept)
            self._release_wanted.set()

    def _complete(self) -> None:
        for mailing_id in self._commit(audience.complete):
            log.info("mailing_completed", mailing_id=mailing_id)

    def _materialise(self, mailing_ids: Iterable[int]) -> bool:
        """A chunk of every mailing that is being written: none waits for another's million."""
        more = False
        for mailing_id in mailing_ids:
            if self._commit(partial(audience.materialise_chunk, mailing_id=mailing_id)):
                more = True
            else:
                log.info("mailing_materialised", mailing_id=mailing_id)
            self._release_wanted.set()
        return more

    def _withdraw_stopped(self) -> bool:
        """Take back what waits in the queue in vain: at a slow gateway a worker would find that out minutes later."""
        withdrawn = self._commit(batches.withdraw_stopped)
        if withdrawn:
            log.info("batches_withdrawn", batches=withdrawn)
            self._release_wanted.set()
        return withdrawn > 0

    def _settle(self, mailing_ids: Iterable[int]) -> bool:
        more = False
        for mailing_id in mailing_ids:
            settled = self._commit(partial(audience.settle_chunk, mailing_id=mailing_id))
            if settled:
                log.info("messages_settled", mailing_id=mailing_id, messages=settled)
            more |= settled > 0
        return more

    def _tidy(self) -> None:
        self._commit(audience.merge_flow)
        self._commit(processes.forget_silent)
        self._commit(gateway.forget_old_tallies)
        for mailing_id in self._commit(audience.running):
            orphans = self._commit(partial(batches.sweep_orphans, mailing_id=mailing_id))
            if orphans:
                log.error("orphans_found", mailing_id=mailing_id, messages=orphans)

    # Imports ------------------------------------------------------------------------------------------------------

    def _imports_loop(self) -> None:
        while not self._stopping.is_set():
            self._wait(self._imports_wanted, POLL_SECONDS)
            if self._leading.is_set():
                self._hand_out_imports()

    def _hand_out_imports(self) -> None:
        # Each is named once and then given some time: one that could not be published now is named again after that.
        for import_id in self._commit(lambda connection: list(imports.waiting(connection, imports.clock(connection)))):
            self._publish(IMPORTS_QUEUE, IMPORT_CLIENTS, import_id)


def run(settings: Settings) -> None:
    """Run a dispatcher until SIGTERM or SIGINT."""
    assert settings.database_url
    assert settings.amqp_url
    engine = make_engine(
        settings.database_url,
        "mailings dispatcher",
        pool_size=5,
        statement_timeout_seconds=60,
        idle_transaction_seconds=IDLE_TRANSACTION_SECONDS,
        pre_ping=False,
    )
    Dispatcher(engine, connect(settings.amqp_url), settings.gateway_rate_limit or None).run(stop_signal())

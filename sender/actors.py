"""What a worker does with batches: take them, have the gateway called for each message, see all recorded."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from datetime import datetime

import dramatiq
import structlog
from sqlalchemy import Connection, Engine

from db.models import MessageStatus
from db.placeholders import UnfillableError, fill
from db.queries import batches
from db.queries.batches import Recipient, TakenBatch
from sender.broker import BATCHES_QUEUE
from sender.clock import DatabaseClock
from sender.delivery import Call, Delivery, Settled
from sender.gateway import GatewayClient
from sender.keeper import Keeper
from sender.outcomes import Terms, unsendable
from sender.recorder import GivenUpError, Recorder, until_committed

log = structlog.get_logger(__name__)

SEND_BATCHES = "send_batch"
# A batch whose calls have all begun is soon done. If it is not after so long, its last calls are slow ones (a few that
# hang are enough), and the next batch does not wait for them.
PATIENCE_SECONDS = 0.25


class BatchSender:
    """The actor for batches, with what it needs of its process, whose parts are told of each other here."""

    def __init__(
        self,
        engine: Engine,
        process_id: str,
        client: GatewayClient,
        recorder: Recorder,
        keeper: Keeper,
        clock: DatabaseClock,
        max_attempts: int,
    ) -> None:
        self._engine = engine
        self._process_id = process_id
        self._client = client
        self._recorder = recorder
        self._keeper = keeper
        self._clock = clock
        self._max_attempts = max_attempts
        self._giving_up = threading.Event()
        recorder.on_recorded = client.recorded
        recorder.on_done = self.note_done
        client.on_waiting = recorder.hurry

    def declare(self) -> None:
        """Register the actor with the process's broker."""
        dramatiq.actor(actor_name=SEND_BATCHES, queue_name=BATCHES_QUEUE)(self.send_batches)

    def give_up(self) -> None:
        """Stop waiting for a database that is away."""
        self._giving_up.set()

    def send_batches(self, *batch_ids: int) -> None:
        """Send the messages of those batches that are still to be had; safe to run twice, and anywhere at once."""
        taken_at = time.monotonic()
        # Missing are those that are finished, swept, or in another worker's hands.
        begun = [self._try_to_begin(batch, taken_at) for batch in self._take(batch_ids)]
        deliveries = [delivery for delivery in begun if delivery]
        for delivery in deliveries:
            delivery.begun.wait()
        patience_ends = time.monotonic() + PATIENCE_SECONDS
        slow = [d.batch_id for d in deliveries if not d.done.wait(max(0.0, patience_ends - time.monotonic()))]
        if slow:
            with contextlib.suppress(GivenUpError):
                until_committed(self._engine, lambda connection: batches.note_begun(connection, slow), self._giving_up)

    def _take(self, batch_ids: Sequence[int]) -> list[TakenBatch]:
        is_repeat = False

        def work(connection: Connection) -> list[TakenBatch]:
            nonlocal is_repeat
            # The answer to a commit may have been lost: then the batches are ours, and nobody knows of it.
            again = self._keeper.not_kept(batch_ids) if is_repeat else []
            is_repeat = True
            return batches.take(connection, batch_ids, self._process_id, again)

        return until_committed(self._engine, work, self._giving_up)

    def _try_to_begin(self, batch: TakenBatch, taken_at: float) -> Delivery | None:
        try:
            return self._begin(batch, taken_at)
        except Exception:
            # Those taken with it are sent all the same; this one's lease runs out, and the sweep has it.
            log.exception("batch_failed", batch_id=batch.id)
            return None

    def _begin(self, batch: TakenBatch, taken_at: float) -> Delivery | None:
        delivery, settled = self._prepare(batch, taken_at)
        if not batch.standing.may_send or not (self._keeper.gateway_closed or batch.is_probe):
            delivery.stop()  # Released just before the mailing was paused, or the breaker opened.
        if not self._keeper.add(delivery):  # It keeps it until it is done.
            return None
        # No connection is held from here on: a slow gateway must not keep one.
        self._client.submit(delivery)
        delivery.put(settled)
        if not delivery.size:
            self.note_done(delivery)
        return delivery

    def note_done(self, delivery: Delivery) -> None:
        """All results of the delivery are in the database."""
        self._keeper.remove(delivery)
        log.info("batch_sent", batch_id=delivery.batch_id, mailing_id=delivery.mailing_id, messages=delivery.size)

    def _prepare(self, batch: TakenBatch, taken_at: float) -> tuple[Delivery, list[Settled]]:
        """The calls to make, and the outcomes of messages that are not worth one."""
        calls: list[Call] = []
        settled: list[Settled] = []
        now = self._clock.now()
        for recipient in batch.recipients:
            call = _call(recipient, batch.text, now)
            if isinstance(call, Call):
                calls.append(call)
            else:
                settled.append(call)
        terms = Terms(batch.standing.ends_at, batch.standing.window, batch.is_probe, self._max_attempts)
        lease_seconds = batches.TAKEN_LEASE_SECONDS - (time.monotonic() - taken_at)
        return Delivery(batch, terms, calls, self._clock, lease_seconds, self._recorder), settled


def _call(recipient: Recipient, text: str, now: datetime) -> Call | Settled:
    if recipient.phone is None:
        return Settled(recipient, unsendable(recipient, MessageStatus.CANCELLED, "client_deleted", now))
    if recipient.opted_out:
        return Settled(recipient, unsendable(recipient, MessageStatus.CANCELLED, "opted_out", now))
    try:
        return Call(recipient, int(recipient.phone), fill(text, recipient.attributes or {}))
    except UnfillableError as error:
        return Settled(recipient, unsendable(recipient, MessageStatus.FAILED, error.reason, now))

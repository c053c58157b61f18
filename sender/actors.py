"""What a worker does with a batch: take it, call the gateway for each message, record what came of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

import dramatiq
import structlog
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker

from db.models import MessageStatus
from db.placeholders import MissingAttributeError, fill
from db.queries import batches, gateway
from db.queries.batches import Outcome, TakenBatch
from db.windows import Window
from sender.broker import BATCHES_QUEUE
from sender.clock import DatabaseClock
from sender.delivery import Call, Called, Delivery, Result, Skip
from sender.gateway import GatewayClient
from sender.keeper import Keeper
from sender.outcomes import Terms, add_to_tally, after_answer, outside_window, unsendable

log = structlog.get_logger(__name__)

_T = TypeVar("_T")

SEND_BATCH = "send_batch"
# The first pause when the database does not take a result; doubled up to the last.
RECORD_PAUSES_SECONDS = (0.1, 2.0)


class GivenUpError(Exception):
    """The process ends and the database is still away: leases will run out, nothing is lost."""


class BatchSender:
    """The actor for batches, with what it needs of its process."""

    def __init__(
        self,
        sessions: sessionmaker[Session],
        process_id: str,
        client: GatewayClient,
        keeper: Keeper,
        clock: DatabaseClock,
        max_attempts: int,
    ) -> None:
        self._sessions = sessions
        self._process_id = process_id
        self._client = client
        self._keeper = keeper
        self._clock = clock
        self._max_attempts = max_attempts
        self._giving_up = False

    def declare(self) -> None:
        """Register the actor with the process's broker."""
        dramatiq.actor(actor_name=SEND_BATCH, queue_name=BATCHES_QUEUE)(self.send_batch)

    def give_up(self) -> None:
        """Stop waiting for a database that is away."""
        self._giving_up = True

    def send_batch(self, batch_id: int) -> None:
        """Send the messages of a batch that is still to be had; safe to run twice, and anywhere at once."""
        taken_at = time.monotonic()
        batch = self._in_transaction(lambda session: batches.take(session, batch_id, self._process_id))
        if batch is None:
            return  # Finished, swept, or in another worker's hands.
        terms = Terms(
            batch.ends_at, Window(*batch.window) if batch.window else None, batch.is_probe, self._max_attempts
        )
        calls, unsent = self._prepare(batch)
        delivery = Delivery(
            batch, terms, calls, self._clock, batches.TAKEN_LEASE_SECONDS - (time.monotonic() - taken_at)
        )
        if not self._keeper.gateway_closed and not batch.is_probe:
            delivery.stop()  # Released just before the breaker opened.
        self._keeper.add(delivery)
        try:
            if unsent:
                self._in_transaction(lambda session: batches.record(session, batch_id, unsent))
            # From here to `record` no connection is held: a slow gateway must not keep one.
            self._client.submit(delivery)
            for group in delivery.groups():
                self._record(delivery, group)
            self._in_transaction(lambda session: batches.finish(session, batch_id))
        finally:
            delivery.stop()
            self._keeper.remove(delivery)
        log.info("batch_sent", batch_id=batch_id, mailing_id=batch.mailing_id, messages=len(batch.recipients))

    def _prepare(self, batch: TakenBatch) -> tuple[list[Call], list[Outcome]]:
        """The calls to make, and the outcomes of messages that are not worth one."""
        calls: list[Call] = []
        unsent: list[Outcome] = []
        now = self._clock.now()
        for recipient in batch.recipients:
            if recipient.phone is None:
                unsent.append(unsendable(recipient, MessageStatus.CANCELLED, "client_deleted", now))
            elif recipient.opted_out:
                unsent.append(unsendable(recipient, MessageStatus.CANCELLED, "opted_out", now))
            else:
                try:
                    text = fill(batch.text, recipient.attributes or {})
                except MissingAttributeError as missing:
                    reason = f"missing_placeholder:{missing.name}"
                    unsent.append(unsendable(recipient, MessageStatus.FAILED, reason, now))
                else:
                    calls.append(Call(recipient, int(recipient.phone), text))
        return calls, unsent

    def _record(self, delivery: Delivery, group: list[Result]) -> None:
        """Write a group of results, waiting for the database if need be, and free the calls' places."""
        outcomes, returned, tally = self._sort(delivery, group)

        def write(session: Session) -> None:
            if outcomes:
                batches.record(session, delivery.batch_id, outcomes)
            if returned:
                batches.give_back(session, delivery.batch_id, returned)
            if tally is not None:
                gateway.add_tally(session, delivery.mailing_id, tally)

        self._in_transaction(write)
        self._client.recorded(delivery, sum(isinstance(result, Called) for result in group))

    def _sort(self, delivery: Delivery, group: list[Result]) -> tuple[list[Outcome], list[int], gateway.Tally | None]:
        outcomes: list[Outcome] = []
        returned: list[int] = []
        tally: gateway.Tally | None = None
        now = self._clock.now()
        for result in group:
            recipient = result.recipient
            if isinstance(result, Called):
                outcomes.append(after_answer(recipient, result.answer, result.judgement, delivery.terms, now))
                tally = tally or gateway.Tally()
                add_to_tally(tally, result.judgement)
                tally.time(result.answer.milliseconds)
            elif result.skip is Skip.CLOSED:
                outcomes.append(outside_window(recipient, delivery.terms, now))
            else:
                # A withdrawn client's message goes back too: the next release reads what has become of the client.
                returned.append(recipient.message_id)
        return outcomes, returned, tally

    def _in_transaction(self, work: Callable[[Session], _T]) -> _T:
        """Run and commit; while the database is away, wait for it: results in hand must not be lost.

        Every statement here is guarded by the batch, so repeating a transaction whose commit was cut off does no harm.
        Raises GivenUpError when the process ends meanwhile.
        """
        pause, longest = RECORD_PAUSES_SECONDS
        while True:
            try:
                with self._sessions.begin() as session:
                    return work(session)
            except (OperationalError, InterfaceError, InternalError, PoolTimeout) as error:
                if self._giving_up:
                    raise GivenUpError from error
                log.warning("database_away", error=type(error).__name__)
                time.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, longest)

"""What the dispatcher's rounds do; nothing is published, the test takes the batches."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from db.models import Batch, GatewayState, Mailing, MailingState, Message, MessageStatus
from db.queries import audience, batches, gateway, mailings, planned, processes
from sender.dispatcher import Dispatcher
from sender.places import BATCHES_TOGETHER
from tests.factories import make_client, make_mailing, make_message, told_statuses

PLACES = 6


@pytest.fixture
def engine(emptied_engine: Engine) -> Engine:
    """Nothing here needs a database of its own."""
    return emptied_engine


class Unpublished(Dispatcher):
    """A dispatcher that notes what it would publish."""

    def __init__(self, engine: Engine) -> None:
        broker: Any = None
        super().__init__(engine, broker, None)
        self.published: list[tuple[int, ...]] = []
        self.is_broker_away = False

    def _publish(self, _queue: str, _actor: str, *numbers: int) -> bool:
        self.published.append(numbers)
        return not self.is_broker_away


@pytest.fixture
def dispatcher(engine: Engine, session: Session) -> Unpublished:
    """With a sending process of six places, none of them taken."""
    processes.beat(session, "a worker", "sender", PLACES)
    session.commit()
    return Unpublished(engine)


def small_mailing(session: Session) -> Mailing:
    mailing = make_mailing(session)
    make_message(session, mailing, make_client(session), status=MessageStatus.PENDING, attempts=0)
    return mailing


def test_one_round_fills_all_places_with_small_mailings_that_go_together(
    session: Session, dispatcher: Unpublished
) -> None:
    for _ in range(PLACES * BATCHES_TOGETHER + 2):
        small_mailing(session)

    dispatcher.release_round()

    assert [len(batch_ids) for batch_ids in dispatcher.published] == [BATCHES_TOGETHER] * PLACES


def test_small_mailings_do_not_queue_up_behind_busy_threads_but_go_together_later(
    session: Session, dispatcher: Unpublished
) -> None:
    for _ in range(PLACES + 5):
        small_mailing(session)
        dispatcher.release_round()
    # Alone, while nobody takes them: as many as there are threads, however little of a place each has.
    assert [len(batch_ids) for batch_ids in dispatcher.published] == [1] * PLACES

    batches.take(session, dispatcher.published[0], "a worker")
    session.commit()
    dispatcher.release_round()

    assert [len(batch_ids) for batch_ids in dispatcher.published[PLACES:]] == [5]
    assert session.scalar(sa.select(sa.func.count()).select_from(Batch)) == PLACES + 5


@pytest.mark.parametrize("planned_first", [True, False])
def test_planned_and_other_batches_go_in_one_round(
    session: Session, dispatcher: Unpublished, monkeypatch: pytest.MonkeyPatch, planned_first: bool
) -> None:
    monkeypatch.setattr(planned, "BATCH_SIZE", 2)
    for _ in range(6):
        make_client(session)
    made = []
    for is_planned in (planned_first, not planned_first):
        mailing = make_mailing(session) if is_planned else small_mailing(session)
        made.append(mailing.id)
        if is_planned:
            audience.materialise_chunk(session, mailing.id)
            session.commit()

    dispatcher.release_round()

    assert told_statuses(session).keys() == {"sending"}
    sizes = session.execute(sa.select(Batch.mailing_id, sa.func.cardinality(Batch.message_ids))).all()
    assert {mailing_id for mailing_id, _ in sizes} == set(made)
    assert [size for _, size in sizes].count(2) == 3


def test_under_a_rate_limit_planned_batches_go_in_parts(session: Session, dispatcher: Unpublished) -> None:
    for _ in range(20):
        make_client(session)
    audience.materialise_chunk(session, make_mailing(session).id)
    session.execute(sa.text("UPDATE gateway SET pace = 2"))
    session.commit()

    dispatcher.release_round()

    sizes = session.scalars(sa.select(sa.func.cardinality(Batch.message_ids))).all()
    assert sizes
    assert max(sizes) <= 2
    assert told_statuses(session) == {"sending": sum(sizes), "pending": 20 - sum(sizes)}


def test_a_round_ends_when_the_broker_is_away(session: Session, dispatcher: Unpublished) -> None:
    for _ in range(2 * BATCHES_TOGETHER + 1):
        small_mailing(session)
    dispatcher.is_broker_away = True

    dispatcher.release_round()

    assert len(dispatcher.published) == 1
    assert told_statuses(session).keys() == {"pending"}
    assert not session.scalars(sa.select(Batch)).all()


@pytest.mark.parametrize("state", [GatewayState.OPEN, GatewayState.BLOCKED])
def test_trouble_is_forgotten_when_nothing_is_left_to_ask_with(
    session: Session, dispatcher: Unpublished, state: GatewayState
) -> None:
    small_mailing(session)
    session.execute(sa.text("UPDATE message SET next_attempt_at = now() + interval '290 s'"))
    gateway.set_state(session, state, "connection_reset", 0.0)
    session.commit()
    dispatcher.release_round()
    assert gateway.read(session).state is state  # The message backs off: it will ask.

    # That of a mailing whose window opens tomorrow does not, nor does a paused one's.
    session.execute(sa.text("UPDATE message SET next_attempt_at = now() + interval '1 day'"))
    session.commit()
    dispatcher._gateway._next_look = 0.0
    dispatcher.release_round()

    assert (gateway.read(session).state, gateway.read(session).reason) == (GatewayState.CLOSED, None)
    assert not dispatcher.published


def test_a_probe_that_is_on_the_wire_is_waited_for(session: Session, dispatcher: Unpublished) -> None:
    small_mailing(session)
    gateway.set_state(session, GatewayState.OPEN, "timeout", 0.0)
    session.commit()
    dispatcher.release_round()
    assert len(dispatcher.published) == 1

    dispatcher._gateway._next_look = 0.0
    dispatcher.release_round()

    assert gateway.read(session).state is GatewayState.OPEN


@pytest.mark.parametrize(
    ("changes", "status", "state"),
    [
        ({"state": "cancelled", "finished_at": sa.func.now()}, "cancelled", MailingState.CANCELLED),
        ({"starts_at": sa.text("now() - interval '2 h'"), "ends_at": sa.func.now()}, "expired", MailingState.COMPLETED),
        ({"state": "paused"}, "pending", MailingState.PAUSED),
    ],
)
def test_what_waits_in_the_queue_when_a_mailing_stops_is_settled_at_once(
    session: Session, dispatcher: Unpublished, changes: dict[str, Any], status: str, state: MailingState
) -> None:
    mailing, other, taken = (small_mailing(session) for _ in range(3))
    session.execute(sa.update(Mailing).values(materialised_at=sa.func.now()))
    session.commit()
    dispatcher.release_round()
    of_mailing = dict(session.execute(sa.select(Batch.mailing_id, Batch.id)).all())
    batches.take(session, [of_mailing[taken.id]], "a worker")
    session.execute(sa.update(Mailing).where(Mailing.id != other.id).values(**changes))
    session.commit()

    while not dispatcher.housekeeping_round():
        pass

    messages = {m.id: told_statuses(session, m) for m in (mailing, other, taken)}
    assert messages == {mailing.id: {status: 1}, other.id: {"sending": 1}, taken.id: {"sending": 1}}
    assert set(session.scalars(sa.select(Message.attempts))) == {0}
    assert set(session.scalars(sa.select(Batch.id))) == set(of_mailing.values()) - {of_mailing[mailing.id]}
    session.expire_all()
    assert mailing.state is state


def test_a_mailing_deleted_while_all_of_it_waits_in_the_queue_is_removed_at_once(
    session: Session, dispatcher: Unpublished
) -> None:
    mailing_id = small_mailing(session).id
    dispatcher.release_round()
    mailings.delete(session, mailing_id, datetime.now(UTC))
    session.commit()

    while not dispatcher.housekeeping_round():
        pass

    assert session.scalars(sa.select(Mailing.id).where(Mailing.id == mailing_id)).all() == []

"""Messages as people look at them: pages by key, one with its history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import InstrumentedAttribute, Session

from db.models import Attempt, Client, Mailing, Message, MessageStatus, StatusCount
from db.refusals import MissingError

# A row of `message`, with the phone of its client (None when the client is gone).
MessageRow = sa.Row[*tuple[Any, ...]]


class Filter(NamedTuple):
    """Which messages; None is any."""

    mailing_id: int | None = None
    client_id: int | None = None
    status: MessageStatus | None = None
    reason: str | None = None  # of a failure: messages that failed for it


_COLUMNS = (
    Message.id,
    Message.mailing_id,
    Message.client_id,
    Client.phone,
    Message.status,
    Message.attempts,
    Message.created_at,
    Message.next_attempt_at,
    Message.sent_at,
    Message.last_error,
)


_Column = sa.ColumnElement[int] | InstrumentedAttribute[int]


class Place(NamedTuple):
    """Where in the list, which goes by id: beyond this one, in this direction."""

    beyond: int | None = None
    backwards: bool = False

    def select(self, ids: sa.Select[int], column: _Column, limit: int) -> sa.Select[int]:
        """Return the first of these ids from here on."""
        if self.beyond is not None:
            ids = ids.where(column < self.beyond if self.backwards else column > self.beyond)
        return ids.order_by(column.desc() if self.backwards else column).limit(limit)


def page(
    session: Session, wanted: Filter, after: int | None, limit: int, *, backwards: bool = False
) -> Sequence[MessageRow]:
    """The next messages after this id, in the order of their ids, or before it, in the opposite one.

    Costs the same wherever in the list.
    """
    if wanted.reason is not None:
        wanted = wanted._replace(status=MessageStatus.FAILED)
    place = Place(after, backwards)
    if wanted.client_id is not None:
        ids = _ids_of_client(wanted.client_id, wanted, place, limit)
    elif wanted.mailing_id is not None or wanted.status is not None:
        ids = _ids_by_mailing_and_status(wanted, place, limit)
    else:
        ids = _ids_of_all(place, limit)
    found = session.scalars(ids).all()
    if not found:
        return []
    rows = session.execute(
        sa.select(*_COLUMNS)
        .join(Client, Client.id == Message.client_id, isouter=True)
        .where(Message.id.in_(found))
        .order_by(Message.id.desc() if backwards else Message.id)
    )
    return rows.all()


def get(session: Session, message_id: int) -> tuple[MessageRow, Sequence[Attempt]]:
    """One message and its attempts, oldest first; raise MissingError."""
    row = session.execute(
        sa.select(*_COLUMNS)
        .join(Mailing, Mailing.id == Message.mailing_id)
        .join(Client, Client.id == Message.client_id, isouter=True)
        .where(Message.id == message_id, Mailing.deleted_at.is_(None))
    ).one_or_none()
    if row is None:
        raise MissingError("no such message")
    history = session.scalars(sa.select(Attempt).where(Attempt.message_id == message_id).order_by(Attempt.id))
    return row, history.all()


def _ids_of_client(client_id: int, wanted: Filter, place: Place, limit: int) -> sa.Select[int]:
    """One probe of the unique key for each mailing, of which there are few beside the messages."""
    probes = sa.select(Message.id, Message.status).where(
        Message.mailing_id == Mailing.id, Message.client_id == client_id
    )
    if wanted.reason is not None:
        probes = probes.where(Message.last_error == wanted.reason)
    mailings = sa.select(Mailing.id.label("mailing_id")).where(Mailing.deleted_at.is_(None))
    if wanted.mailing_id is not None:
        mailings = mailings.where(Mailing.id == wanted.mailing_id)
    # OFFSET 0 keeps the planner from walking all messages in the order of their ids instead.
    probe = probes.offset(sa.literal_column("0")).lateral("probe")
    found = mailings.add_columns(probe.c.id, probe.c.status).join(probe, sa.true()).cte("found")
    ids = sa.select(found.c.id)
    if wanted.status is not None:
        ids = ids.where(found.c.status == wanted.status)
    return place.select(ids, found.c.id, limit)


def _ids_by_mailing_and_status(wanted: Filter, place: Place, limit: int) -> sa.Select[int]:
    """The first ids of every (mailing, status) that has any, each from the index made for it, then the first of all.

    The counters tell where there are any, so that a rare status is found without walking a table of millions.
    """
    pairs = (
        sa.select(StatusCount.mailing_id, StatusCount.status)
        .join(Mailing, Mailing.id == StatusCount.mailing_id)
        .where(Mailing.deleted_at.is_(None))
        .group_by(StatusCount.mailing_id, StatusCount.status)
        .having(sa.func.sum(StatusCount.amount) > 0)
    )
    if wanted.mailing_id is not None:
        pairs = pairs.where(StatusCount.mailing_id == wanted.mailing_id)
    if wanted.status is not None:
        pairs = pairs.where(StatusCount.status == wanted.status)
    pair = pairs.cte("pair")
    of_pair = sa.select(Message.id).where(Message.mailing_id == pair.c.mailing_id, Message.status == pair.c.status)
    if wanted.reason is not None:
        # The status once more, as a constant: only so does the planner see that the index of reasons fits.
        of_pair = of_pair.where(
            Message.last_error == wanted.reason, Message.status == sa.literal_column(f"'{MessageStatus.FAILED}'")
        )
    first = place.select(of_pair, Message.id, limit).lateral("first")
    return Place(None, place.backwards).select(
        sa.select(first.c.id).select_from(pair.join(first, sa.true())), first.c.id, limit
    )


def _ids_of_all(place: Place, limit: int) -> sa.Select[int]:
    deleted = sa.select(Mailing.id).where(Mailing.deleted_at.is_not(None))
    return place.select(sa.select(Message.id).where(Message.mailing_id.not_in(deleted)), Message.id, limit)
